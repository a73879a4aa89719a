package lifecycle

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/test/e2e/rig"
)

// instance is one of a rolling restart.
type instance struct {
	*rig.Process
	id, service, admin, stats string
}

// TestRollingRestart: every instance of three services, over HTTP/1.1, HTTP/2,
// gRPC and TCP, is ended and started again by `parrel run`, one after the other,
// under 500 requests a second with long ones among them, and each application
// makes calls while it shuts down. No request fails and no call fails, as the
// client counts and as the applications count; no application has anything in
// hand when its signal comes (DP6, Z3). The catalogue is a folder that nobody
// edits: callers learn of it all from connections alone.
func TestRollingRestart(t *testing.T) {
	at := ports{rig.Port(t), rig.Port(t), rig.Port(t)}
	ledger, ledgerProxy := rig.Port(t), rig.Port(t)
	definitions := []any{
		rig.Define("web", "web-1", rig.Port(t), rig.Port(t), rig.Upstream{Service: "page", Port: at.http}, rig.Upstream{Service: "rpc", Port: at.grpc}, rig.Upstream{Service: "line", Port: at.tcp}),
		rig.Define("ledger", "ledger-1", ledger, ledgerProxy), rig.Protocol("ledger", "http"),
		rig.Protocol("page", "http"), rig.Protocol("rpc", "grpc"), rig.Protocol("line", "tcp"),
		rig.Intentions("ledger", "*", "allow"), rig.Intentions("page", "web", "allow"), rig.Intentions("rpc", "web", "allow"), rig.Intentions("line", "web", "allow"),
	}
	type plan struct {
		service, id, protocol string
		app, upstream         int
	}
	var plans []plan
	for _, s := range []struct {
		name, protocol string
		n              int
	}{{"page", "http", 3}, {"rpc", "grpc", 2}, {"line", "tcp", 2}} {
		for i := range s.n {
			p := plan{s.name, fmt.Sprintf("%s-%d", s.name, i+1), s.protocol, rig.Port(t), rig.Port(t)}
			plans = append(plans, p)
			definitions = append(definitions, rig.Define(p.service, p.id, p.app, rig.Port(t), rig.Upstream{Service: "ledger", Port: p.upstream}))
		}
	}
	m := newMesh(t, definitions...)
	book := m.AppAt("ledger-1", ledger)
	m.Sidecar(m.cp.XDS, []string{"ledger-1=ledger"}, "--admin-access-log-path", "").Ready(soon)
	m.Sidecar(m.cp.XDS, []string{"web-1=web"}, "--admin-access-log-path", "").Ready(soon)
	var all []*instance
	for _, p := range plans {
		i := &instance{id: p.id, service: p.service, admin: rig.Addr(rig.Port(t)), stats: filepath.Join(m.Dir, p.id+".stats")}
		i.Process = m.runs(p.id, p.service, []string{"--admin-bind", i.admin, "--drain-time", soon.String(), "--shutdown-delay", "50ms"}, os.Args[0])
		i.Env = []string{asApplication + "=" + p.protocol, "APP_PORT=" + strconv.Itoa(p.app), "APP_UPSTREAM=" + strconv.Itoa(p.upstream), "APP_STATS=" + i.stats}
		i.Start()
		all = append(all, i)
	}
	for _, i := range all {
		m.ready(i)
	}
	l := newLoad(t, at)
	l.more(t, 300)
	for _, i := range all {
		begin := time.Now()
		i.end(t)
		down := time.Since(begin)
		i.Start()
		m.ready(i)
		m.Step("%s: ended within %s, serves again after %s", i.id, down.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
		l.more(t, 250)
	}
	l.end()
	for _, i := range all {
		i.end(t)
	}

	served, calls := map[string]int64{}, int64(0)
	for _, i := range all {
		sum, lives, err := readStats(i.stats)
		if err != nil || lives != 2 {
			t.Errorf("%s: %d lives were counted, want 2: %v", i.id, lives, err)
		}
		if sum.Failed > 0 || sum.Calls == 0 {
			t.Errorf("%s: %d calls failed, %d were made while it shut down: %s", i.id, sum.Failed, sum.Calls, sum.Reason)
		}
		if sum.InHand > 0 {
			t.Errorf("%s had %d requests in hand when its signal came", i.id, sum.InHand)
		}
		served[i.service] += sum.Served
		calls += sum.Calls
	}
	for _, c := range []struct {
		service string
		*count
	}{{"page", &l.http}, {"rpc", &l.grpc}, {"line", &l.tcp}} {
		t.Logf("%s: %d sent, %d succeeded, %d served by its applications", c.service, c.sent.Load(), c.ok.Load(), served[c.service])
		if c.ok.Load() != c.sent.Load() {
			t.Errorf("%s: %d of %d requests failed", c.service, c.sent.Load()-c.ok.Load(), c.sent.Load())
		}
		if served[c.service] != c.sent.Load() {
			t.Errorf("%s: %d requests were sent and %d served", c.service, c.sent.Load(), served[c.service])
		}
		if c.sent.Load() == 0 {
			t.Errorf("%s was not called", c.service)
		}
	}
	for n, err := range l.errs {
		if n < 20 {
			t.Error(err)
		}
	}
	t.Logf("%d requests in %s: %.0f a second; %d calls while shutting down; the ledger was called %d times",
		l.sent(), l.took.Round(time.Millisecond), float64(l.sent())/l.took.Seconds(), calls, book.Hits.Load())
}

// ready waits until an instance serves.
func (m *mesh) ready(i *instance) {
	m.T.Helper()
	if _, stderr, err := m.Command("check", "ready", "--admin", i.admin, "--wait", soon.String()); err != nil {
		m.T.Fatalf("%s is not ready: %v %s", i.id, err, stderr)
	}
}

// end ends an instance, which must end well.
func (i *instance) end(t *testing.T) {
	t.Helper()
	i.Stop(2 * soon)
	if i.ExitCode() != 0 {
		t.Errorf("%s ended with %d", i.id, i.ExitCode())
	}
}
