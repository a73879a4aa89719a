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
const soon = 10 * time.Second

// mesh is web, which calls api, on one Consul agent. Where a test needs
// another shape it builds it of the parts.
type mesh struct {
	*rig.Rig
	agent *consultest.Agent
	cp    *rig.ControlPlane
	web   *rig.Sidecar
	api   int // web's upstream port for api
	apis  map[string]*instance
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
	consul       string              // address that the control plane reads; "": the agent's
	controlPlane []string            // flags
	agent        string              // Consul configuration
	agents       []*consultest.Agent // instead of a new one; the first is used for registrations
	instances    []string            // of api; nil: api-1
	define       func(id string, s rig.Service) rig.Service
}

// newMesh starts everything and waits until web's requests are answered by
// every instance.
func newMesh(t *testing.T, o options) *mesh {
	t.Helper()
	m := &mesh{Rig: rig.New(t, parrel), api: rig.Port(t), apis: map[string]*instance{}}
	if o.agents != nil {
		m.agent = o.agents[0]
	} else {
		m.agent = consultest.Dev(t, consultest.Options{HCL: o.agent})
	}
	m.agent.Entry(rig.Protocol("web", "http"))
	m.agent.Entry(rig.Protocol("api", "http"))
	m.agent.Entry(rig.Intentions("api", "web", "allow"))
	m.agent.Register(rig.Define("web", "web-1", rig.Port(t), rig.Port(t), rig.Upstream{Service: "api", Port: m.api}))
	if o.consul == "" {
		o.consul = m.agent.HTTP
	}
	m.cp = m.ControlPlane(o.consul, o.controlPlane...)
	m.web = m.Sidecar(m.cp.XDS, []string{"web-1=web"})
	if o.instances == nil {
		o.instances = []string{"api-1"}
	}
	for _, id := range o.instances {
		m.start(id, o.define)
	}
	m.Only(20*time.Second, m.api, o.instances...)
	return m
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
	i.sidecar = m.Sidecar(m.cp.XDS, []string{id + "=api"})
	m.apis[id] = i
	return i
}

// principal is a service's SPIFFE id.
func principal(service string) string {
	return "spiffe://" + rig.TrustDomain + "/ns/default/dc/dc1/svc/" + service
}
