package e2e

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/test/e2e/rig"
)

// registered is a service of the agent, as its API shows it.
type registered struct {
	Kind, ID, Service, Address string
	Port                       int
	Proxy                      struct {
		DestinationServiceName, DestinationServiceID, LocalServiceAddress string
		LocalServicePort                                                  int
	}
	Meta map[string]string
}

func (m *mesh) services() map[string]registered {
	m.T.Helper()
	var out map[string]registered
	m.agent.Get("/v1/agent/services", &out)
	return out
}

func (m *mesh) registeredProxy(id string) registered {
	m.T.Helper()
	var found registered
	m.Eventually(soon, id+" is registered", func() error {
		s, ok := m.services()[id]
		if !ok {
			return fmt.Errorf("the agent has %v", m.services())
		}
		found = s
		return nil
	})
	return found
}

// TestSidecarRegistersItself: where nobody registered a proxy the sidecar does,
// and takes it away when it leaves, without an error for any caller.
func TestSidecarRegistersItself(t *testing.T) {
	t.Parallel()
	m := newMesh(t, options{})
	app := m.App("api-2")
	plain := func() {
		m.agent.Register(map[string]any{"Name": "api", "ID": "api-2", "Address": "127.0.0.1", "Port": app.Port})
	}
	m.Step("the service alone is registered; its sidecar registers the proxy")
	plain()
	s := m.Sidecar(m.cp.XDS, []string{"api-2=api"}, "--http-addr", m.agent.HTTP)
	got := m.registeredProxy("api-2-sidecar-proxy")
	if got.Kind != "connect-proxy" || got.Service != "api-sidecar-proxy" || got.Address != "127.0.0.1" || got.Port < 21000 || got.Port > 21255 ||
		got.Proxy.DestinationServiceName != "api" || got.Proxy.DestinationServiceID != "api-2" || got.Proxy.LocalServicePort != app.Port {
		t.Errorf("registered %+v", got)
	}
	var checks map[string]struct{ CheckID, ServiceID, Status, Type string }
	m.agent.Get("/v1/agent/checks", &checks)
	aliases := 0
	for _, c := range checks {
		if c.ServiceID == "api-2-sidecar-proxy" && c.Type == "alias" {
			aliases++
		}
	}
	if aliases != 1 {
		t.Errorf("checks %+v, want one alias of the service", checks)
	}
	m.Only(soon, m.api, "api-1", "api-2")

	m.Step("killed and started again: the same port, and still its own to take away")
	s.Kill()
	s.Start()
	m.Eventually(soon, "the port is open again", func() error {
		c, err := net.Dial("tcp", rig.Addr(got.Port))
		if err == nil {
			c.Close()
		}
		return err
	})
	m.Only(soon, m.api, "api-1", "api-2")
	if again := m.registeredProxy("api-2-sidecar-proxy"); again.Port != got.Port {
		t.Errorf("the proxy moved from port %d to %d", got.Port, again.Port)
	}

	m.Step("SIGTERM under load: deregistered, nothing fails")
	load := m.Load(2, m.api)
	load.More(t, 50)
	s.Stop(soon)
	if s.ExitCode() != 0 {
		t.Errorf("exit code %d", s.ExitCode())
	}
	all := m.services()
	if _, there := all["api-2-sidecar-proxy"]; there {
		t.Error("the proxy is still registered")
	}
	if _, there := all["api-2"]; !there {
		t.Error("the service itself was deregistered")
	}
	m.Only(soon, m.api, "api-1")
	load.More(t, 50)
	load.Clean(t)

	m.Step("back: registered again")
	s.Start()
	m.registeredProxy("api-2-sidecar-proxy")
	m.Only(soon, m.api, "api-1", "api-2")
}

// TestUsersRegistrationIsLeft: a sidecar_service that the user wrote is used as
// it is, and stays when the sidecar leaves.
func TestUsersRegistrationIsLeft(t *testing.T) {
	t.Parallel()
	m := newMesh(t, options{})
	app, port := m.App("api-2"), rig.Port(t)
	m.agent.Register(rig.Define("api", "api-2", app.Port, port).Sidecar(map[string]any{"Meta": map[string]any{"mine": "yes"}}))
	s := m.Sidecar(m.cp.XDS, []string{"api-2=api"}, "--http-addr", m.agent.HTTP)
	m.Only(soon, m.api, "api-1", "api-2")
	before := m.registeredProxy("api-2-sidecar-proxy")
	if before.Port != port || before.Meta["mine"] != "yes" {
		t.Errorf("registered %+v, want what the user wrote", before)
	}
	m.Step("SIGTERM: what it did not make it does not take away")
	s.Stop(soon)
	if after := m.registeredProxy("api-2-sidecar-proxy"); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("registered %+v, and before %+v", after, before)
	}
	m.Step("its proxy is deregistered by the user: unused")
	m.agent.Deregister("api-2-sidecar-proxy")
	m.Only(soon, m.api, "api-1")
}

// TestNotRegistered: a sidecar whose service is not there says so, and goes on
// as soon as it is.
func TestNotRegistered(t *testing.T) {
	t.Parallel()
	m := newMesh(t, options{})
	app := m.App("api-2")
	s := m.Sidecar(m.cp.XDS, []string{"api-2=api"}, "--http-addr", m.agent.HTTP)
	s.Logged(soon, `api-2`, "register it with `consul services register`")
	m.agent.Register(map[string]any{"Name": "api", "ID": "api-2", "Address": "127.0.0.1", "Port": app.Port})
	m.Only(90*time.Second, m.api, "api-1", "api-2")
	if p := m.registeredProxy("api-2-sidecar-proxy"); !strings.Contains(s.Log(), strconv.Itoa(p.Port)) {
		t.Errorf("the log does not name port %d", p.Port)
	}
}
