package e2e

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/test/consultest"
	"github.com/parrel-mesh/parrel/test/e2e/rig"
)

// parrel is the binary that all tests run; set once, before they do.
var parrel string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	binary, remove, err := rig.Build()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer remove()
	parrel = binary
	return m.Run()
}

// soon bounds what should take a fraction of a second, on a busy machine.
const soon = 30 * time.Second

// mesh is web, which calls api, on one Consul agent. Where a test needs
// another shape it builds it of the parts.
type mesh struct {
	*rig.Rig
	agent  *consultest.Agent
	o      options
	cp     *rig.ControlPlane
	second *rig.ControlPlane // nil unless options.planes is 2
	web    *rig.Sidecar
	ports  struct{ app, proxy int } // web-1's
	ups    []rig.Upstream           // web-1's
	api    int                      // web's upstream port for api
	apis   map[string]*instance
}

// instance is one of api's.
type instance struct {
	id      string
	app     *rig.App
	port    int // its sidecar's public one
	sidecar *rig.Sidecar
}

func (i *instance) addr() string { return rig.Addr(i.port) }

// options of a mesh.
type options struct {
	consul       string              // address that the control planes read; "": the agent's
	controlPlane []string            // flags
	planes       int                 // how many control planes; 0: one
	sidecar      []string            // flags of every sidecar
	agent        string              // Consul configuration
	agents       []*consultest.Agent // instead of a new one; the first is used for registrations
	instances    []string            // of api; nil: api-1
	define       func(id string, s rig.Service) rig.Service
}

// newMesh starts everything and waits until web's requests are answered by
// every instance.
func newMesh(t *testing.T, o options) *mesh {
	t.Helper()
	m := &mesh{Rig: rig.New(t, parrel), o: o, api: rig.Port(t), apis: map[string]*instance{}}
	if o.agents != nil {
		m.agent = o.agents[0]
	} else {
		m.agent = consultest.Dev(t, consultest.Options{HCL: o.agent})
	}
	m.agent.Entry(rig.Protocol("web", "http"))
	m.agent.Entry(rig.Protocol("api", "http"))
	m.agent.Entry(rig.Intentions("api", "web", "allow", "*", "deny"))
	m.ports.app, m.ports.proxy = m.App("web-1").Port, rig.Port(t)
	m.call("api", m.api)
	if o.consul == "" {
		o.consul = m.agent.HTTP
	}
	m.cp = m.ControlPlane(o.consul, o.controlPlane...)
	if o.planes > 1 {
		m.second = m.ControlPlane(o.consul, o.controlPlane...)
	}
	m.web = m.Sidecar(m.planes(), []string{"web-1=web"}, o.sidecar...)
	if o.instances == nil {
		o.instances = []string{"api-1"}
	}
	for _, id := range o.instances {
		m.start(id, o.define)
	}
	t.Cleanup(m.explain)
	m.Only(60*time.Second, m.api, o.instances...)
	return m
}

// explain shows, where the test failed, what each of the three knows of api:
// Consul, the control plane, web's sidecar.
func (m *mesh) explain() {
	if !m.T.Failed() {
		return
	}
	if body, err := rig.Fetch("http://" + m.agent.HTTP + "/v1/health/connect/api"); err == nil {
		m.T.Logf("Consul says of api: %s", body)
	}
	if out, _, err := m.Command("config", "endpoints", "--api", m.cp.API, "web-1-sidecar-proxy"); err == nil {
		m.T.Logf("the control plane says: %s", out)
	}
	if body, err := rig.Fetch("http://" + m.web.Admin + "/clusters"); err == nil {
		m.T.Logf("web's sidecar says: %s", body)
	}
}

// planes are the addresses of the control planes.
func (m *mesh) planes() string {
	if m.second != nil {
		return m.cp.XDS + "," + m.second.XDS
	}
	return m.cp.XDS
}

// call registers web-1 with one more upstream.
func (m *mesh) call(service string, port int) {
	m.T.Helper()
	m.ups = append(m.ups, rig.Upstream{Service: service, Port: port})
	m.agent.Register(rig.Define("web", "web-1", m.ports.app, m.ports.proxy, m.ups...))
}

// start starts and registers an instance of api.
func (m *mesh) start(id string, define func(string, rig.Service) rig.Service) *instance {
	m.T.Helper()
	i := &instance{id: id, app: m.App(id), port: rig.Port(m.T)}
	s := rig.Define("api", id, i.app.Port, i.port)
	if define != nil {
		s = define(id, s)
	}
	m.agent.Register(s)
	i.sidecar = m.Sidecar(m.planes(), []string{id + "=api"}, m.o.sidecar...)
	m.apis[id] = i
	return i
}

// serve registers an instance of another service than api, whose application
// listens on port, and starts its sidecar.
func (m *mesh) serve(service string, port int) *rig.Sidecar {
	m.T.Helper()
	m.agent.Register(rig.Define(service, service+"-1", port, rig.Port(m.T)))
	return m.Sidecar(m.planes(), []string{service + "-1=" + service}, m.o.sidecar...)
}

// principal is a service's SPIFFE id.
func principal(service string) string {
	return "spiffe://" + rig.TrustDomain + "/ns/default/dc/dc1/svc/" + service
}
