package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/test/consultest"
	"github.com/parrel-mesh/parrel/test/e2e/rig"
)

// configWrite is `consul config write`, as users do it.
func (m *mesh) configWrite(hcl string) {
	m.T.Helper()
	file := filepath.Join(m.Dir, "entry.hcl")
	if err := os.WriteFile(file, []byte(hcl), 0o600); err != nil {
		m.T.Fatal(err)
	}
	cmd := exec.Command(consultest.Binary(m.T), "config", "write", "-http-addr="+m.agent.HTTP, file)
	if out, err := cmd.CombinedOutput(); err != nil {
		m.T.Fatalf("consul config write: %v: %s", err, out)
	}
}

// TestIntentions writes intentions, exact and with wildcards, in the order in
// which each overrules the one before.
func TestIntentions(t *testing.T) {
	t.Parallel()
	m := newMesh(t, options{})
	denied := func() {
		t.Helper()
		m.refusedWith(soon, m.api, http.StatusForbidden, "rbac_denied")
	}
	allowed := func() { t.Helper(); m.Only(soon, m.api, "api-1") }

	m.Step("an exact deny by `consul config write`")
	m.configWrite(`Kind = "service-intentions"
Name = "api"
Sources = [ { Name = "web" Action = "deny" } ]`)
	denied()
	m.apis["api-1"].sidecar.Accessed(soon, "the denial of web", func(a rig.AccessLine) bool {
		return a.Direction == "inbound" && a.Code == "rbac_denied" && a.Flags == "RBAC" && a.SourcePrincipal == principal("web")
	})
	m.Step("an exact allow")
	m.configWrite(`Kind = "service-intentions"
Name = "api"
Sources = [ { Name = "web" Action = "allow" } ]`)
	allowed()
	m.Step("deleted: the default, which is allow without ACLs")
	m.agent.DeleteEntry("service-intentions", "api")
	allowed()
	m.Step("* → * deny overrules the default")
	m.agent.Entry(rig.Intentions("*", "*", "deny"))
	denied()
	m.Step("web → * allow overrules * → *")
	m.agent.Entry(rig.Intentions("*", "*", "deny", "web", "allow"))
	allowed()
	m.Step("* → api deny overrules web → *")
	m.agent.Entry(rig.Intentions("api", "*", "deny"))
	denied()
	m.Step("web → api allow overrules * → api")
	m.agent.Entry(rig.Intentions("api", "*", "deny", "web", "allow"))
	allowed()
	m.Step("the same for somebody else: * → api deny holds")
	m.agent.Entry(rig.Intentions("api", "*", "deny", "orders", "allow"))
	denied()
}

// TestDefaultIntention: what Consul's servers are configured to do where no
// intention says anything.
func TestDefaultIntention(t *testing.T) {
	for _, policy := range []string{"deny", "allow"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, options{agent: fmt.Sprintf(`default_intention_policy = %q`, policy)})
			s, err := m.cp.Status()
			if err != nil || s.ControlPlane.DefaultIntention != policy {
				t.Errorf("the control plane's default is %q (%v)", s.ControlPlane.DefaultIntention, err)
			}
			m.agent.DeleteEntry("service-intentions", "api")
			if policy == "allow" {
				m.agent.Entry(rig.Intentions("api", "web", "deny")) // so that the default's return is seen
				m.refusedWith(soon, m.api, http.StatusForbidden, "rbac_denied")
				m.agent.DeleteEntry("service-intentions", "api")
				m.Only(soon, m.api, "api-1")
				return
			}
			m.refusedWith(soon, m.api, http.StatusForbidden, "rbac_denied")
		})
	}
}

// TestDenyEndsConnections: a deny ends open connections within a second of the
// write's return, and an allow of somebody else does not.
func TestDenyEndsConnections(t *testing.T) {
	t.Parallel()
	m := newMesh(t, options{})
	up := rig.Port(t)
	m.agent.Entry(rig.Intentions("ledger", "web", "allow"))
	ledger := m.serve("ledger", m.TCPApp("ledger-1"))
	m.call("ledger", up)
	var line *rig.Line
	open := func() {
		t.Helper()
		m.Eventually(soon, "a connection to ledger", func() error {
			l, greeting, err := rig.DialLine(up)
			if err != nil {
				return err
			}
			line = l
			if greeting != "ledger-1" {
				return fmt.Errorf("greeted with %q", greeting)
			}
			return nil
		})
	}
	var ends []time.Duration
	for range 3 {
		open()
		m.Step("an entry that still allows web changes nothing for the open connection")
		m.agent.Entry(rig.Intentions("ledger", "web", "allow", "orders", "deny"))
		m.Eventually(soon, "the new policy at ledger", func() error {
			if page := ledger.Page("/config_dump"); !strings.Contains(page, "orders") {
				return errors.New("the sidecar does not have it")
			}
			return nil
		})
		if err := line.Echo("still here"); err != nil {
			t.Fatalf("the connection of an allowed caller: %v", err)
		}
		m.Step("a deny ends it")
		m.agent.Entry(rig.Intentions("ledger", "web", "deny"))
		written := time.Now()
		_, err := line.Read(soon)
		took := time.Since(written)
		line.Close()
		if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("the connection is in the state: %v", err)
		}
		ends = append(ends, took)
		ledger.Accessed(soon, "the end of the connection", func(a rig.AccessLine) bool {
			return a.Direction == "inbound" && a.Code == "reauthorised_denied" && a.SourcePrincipal == principal("web")
		})
		m.agent.Entry(rig.Intentions("ledger", "web", "allow"))
	}
	slices.Sort(ends)
	t.Logf("ended after %s", ends)
	// The middle one: the machine may be busy with other tests.
	if ends[1] > time.Second {
		t.Errorf("connections were ended %s after the write", ends)
	}
}
