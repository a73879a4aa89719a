//go:build linux

package intercept

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/intercept"
)

// eventually polls.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// hold holds until the test ends, or stop is called, which returns what Hold did.
func hold(t *testing.T, m intercept.Manager, h intercept.Holding) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Hold(ctx, h) }()
	var err error
	done := false
	stop = func() error {
		cancel()
		if !done {
			err, done = <-ended, true
		}
		return err
	}
	t.Cleanup(func() { stop() })
	return stop
}

// configs are some that differ in everything.
func (w *world) configs() map[string]intercept.Config {
	full := w.config()
	full.Outbound = []intercept.Workload{{Name: "web", UID: &app.uid, OutboundPort: 15001}, {Name: `a "strange\ name`, UID: &other.uid, OutboundPort: 15002}}
	full.ServicePorts, full.InboundScope = []uint16{80, 443, 8080}, intercept.ScopeServices
	full.ProxyPorts = []intercept.PortRange{{From: 21000, To: 21255}}
	full.ExcludeInboundPorts = []intercept.PortRange{{From: 65000, To: 65535}, {From: 1, To: 9}}
	full.ExcludeOutboundPorts = intercept.Ports(25, 26, 27, 3306)
	for _, s := range []string{"10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/8", "192.0.2.7/32", "255.255.255.0/24", "0.0.0.0/8", "fd00::/8", "2001:db8::1/128", "ff00::/8"} {
		full.ExcludeOutboundCIDRs = append(full.ExcludeOutboundCIDRs, netip.MustParsePrefix(s))
		full.ExcludeInboundCIDRs = append(full.ExcludeInboundCIDRs, netip.MustParsePrefix(s))
	}
	full.ExcludeUIDs, full.ExcludeGIDs, full.ExcludeDNSUIDs = []uint32{7, 4294967294, 0}, []uint32{8, 9}, []uint32{101}
	full.ExcludeInterfaces = []string{"docker*", "wg0"}
	full.FailOpen = true

	tproxy := w.config()
	tproxy.InboundMode, tproxy.DNSPort = intercept.TProxy, 0

	out := w.config()
	out.InboundPort, out.VirtualCIDRs = 0, []netip.Prefix{}

	in := intercept.Config{InboundPort: inPort}

	v4 := w.config()
	v4.IPv6 = false
	v4.VirtualCIDRs = []netip.Prefix{netip.MustParsePrefix("244.0.0.0/6")}
	return map[string]intercept.Config{"usual": w.config(), "full": full, "tproxy": tproxy, "outbound": out, "inbound": in, "IPv4": v4}
}

// TestPrintIsWhatApplyDoes: nft accepts the text of Print, and what it makes of it
// is what Apply makes.
func TestPrintIsWhatApplyDoes(t *testing.T) {
	w := newWorld(t, dual)
	for name, c := range w.configs() {
		t.Run(name, func(t *testing.T) {
			w := w.on(t)
			text, err := intercept.Print(c)
			if err != nil {
				t.Fatal(err)
			}
			w.apply(c)
			byApply := w.in("nft", "-s", "list", "ruleset")
			jsonByApply := unhandled(w.in("nft", "-s", "-j", "list", "ruleset"))
			w.feed(w.host, text, "nft", "-c", "-f", "-")
			w.feed(w.host, text, "nft", "-f", "-")
			if byNFT := w.in("nft", "-s", "list", "ruleset"); byNFT != byApply {
				t.Errorf("nft makes of the text\n%s\nApply makes\n%s", byNFT, byApply)
			}
			if byNFT := unhandled(w.in("nft", "-s", "-j", "list", "ruleset")); byNFT != jsonByApply {
				t.Errorf("as JSON nft makes of the text\n%s\nApply makes\n%s", byNFT, jsonByApply)
			}
			// And Clean takes away what nft made of it.
			if err := w.manager().Clean(t.Context()); err != nil {
				t.Fatal(err)
			}
			if rest := w.in("nft", "list", "ruleset"); rest != "" {
				t.Errorf("Clean left\n%s", rest)
			}
		})
	}
}

// unhandled takes the handles out, which count what was ever made.
func unhandled(s string) string {
	var b strings.Builder
	for {
		before, rest, ok := strings.Cut(s, `"handle": `)
		b.WriteString(before)
		if !ok {
			return b.String()
		}
		s = strings.TrimLeft(rest, "0123456789")
	}
}

// TestIdempotent: applying twice is applying once, and applying something else
// leaves nothing of what was there.
func TestIdempotent(t *testing.T) {
	w := newWorld(t, dual)
	fresh := map[string]string{}
	for name, c := range w.configs() {
		m := w.apply(c)
		fresh[name] = w.rules()
		w.apply(c)
		if again := w.rules(); again != fresh[name] {
			t.Errorf("%s: applied twice is\n%s\nonce is\n%s", name, again, fresh[name])
		}
		if err := m.Clean(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for before, b := range w.configs() {
		for name, c := range w.configs() {
			w.apply(b)
			w.apply(c)
			if got := w.rules(); got != fresh[name] {
				t.Errorf("%s after %s is\n%s\nfresh it is\n%s", name, before, got, fresh[name])
			}
		}
	}
}

// TestKilledAtAnyStep: whoever is killed at any step, the next one comes to the
// same end.
func TestKilledAtAnyStep(t *testing.T) {
	w := newWorld(t, dual)
	empty := w.state()
	configs := w.configs()
	ends := map[string]string{}
	for name, c := range configs {
		w.apply(c)
		ends[name] = w.rules()
		if err := w.manager().Clean(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	usual, tproxy := configs["usual"], configs["tproxy"]
	clean := func(w *world, why string) {
		t := w.t
		t.Helper()
		if err := w.manager().Clean(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := w.state(); got != empty {
			t.Fatalf("%s: Clean left\n%s\nthere was\n%s", why, got, empty)
		}
	}
	for _, tt := range []struct {
		name   string
		before *intercept.Config
		c      child
		end    string
	}{
		{"the first apply", nil, child{Apply: &tproxy}, ends["tproxy"]},
		{"a change", &usual, child{Apply: &tproxy}, ends["tproxy"]},
		{"a change back", &tproxy, child{Apply: &usual}, ends["usual"]},
		{"clean", &tproxy, child{Clean: true}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := w.on(t)
			tt.c.NetNS = w.host
			steps := 0
			for at := 1; ; at++ {
				for _, next := range []string{"the same again", "clean"} {
					if tt.before != nil {
						w.apply(*tt.before)
					}
					c := tt.c
					c.KillAt = at
					out, killed := spawn(t, c, nil)
					if !killed {
						if !strings.HasPrefix(out, "done") {
							t.Fatalf("at step %d: %s", at, out)
						}
						if steps < 3 {
							t.Fatalf("it has %d steps only: nothing was tried", steps)
						}
						t.Logf("killed at each of %d steps", steps)
						clean(w, "at the end")
						return
					}
					if next == "the same again" && !tt.c.Clean {
						w.apply(*tt.c.Apply)
						if got := w.rules(); got != tt.end {
							t.Errorf("killed at step %d and run again it is\n%s\nwant\n%s", at, got, tt.end)
						}
					}
					clean(w, fmt.Sprintf("killed at step %d", at))
				}
				steps++
			}
		})
	}
}

// TestFailOpen: with nobody to hold them the rules lapse and traffic flows as
// before; held again they capture again. Rules that fail closed do not.
func TestFailOpen(t *testing.T) {
	t.Parallel()
	w := newWorld(t, v4only)
	stop := w.fakeSidecar()
	w.serve(w.peer, "peer", w.any(9000), w.any(53))
	w.serve(w.host, "host", w.any(8080))
	c := w.config()
	c.FailOpen, c.HoldFor = true, 9*time.Second // renewed every 3 s: a busy machine may be late
	m := w.apply(c)
	var alive bool
	said := make(chan string, 100)
	var lock = make(chan struct{}, 1)
	set := func(v bool) { lock <- struct{}{}; alive = v; <-lock }
	set(true)
	hold(t, m, intercept.Holding{
		Alive: func(context.Context) error {
			lock <- struct{}{}
			defer func() { <-lock }()
			if !alive {
				return errors.New("it is dead")
			}
			return nil
		},
		Notify: func(err error) { said <- err.Error() },
	})
	captured := func() bool {
		got := w.dial(w.host, app, "tcp", at(peer4, 9000))
		return strings.HasPrefix(got, "outbound ")
	}
	for start := time.Now(); time.Since(start) < c.HoldFor+time.Second; { // longer than they hold by themselves
		if !captured() {
			t.Fatal("held rules do not capture")
		}
		time.Sleep(200 * time.Millisecond)
	}
	if st, _ := m.Show(t.Context()); st.Capture != intercept.CaptureHeld || !st.FailOpen || st.Lapses <= 0 {
		t.Errorf("held: show says %+v", st)
	}
	stop()
	set(false)
	eventually(t, "traffic flows past a sidecar that is gone", func() bool {
		return w.dial(w.host, app, "tcp", at(peer4, 9000)) == "peer "+at(peer4, 9000)+" from "+host4
	})
	w.want(t, w.host, app, "udp", at(peer4, 53), "peer hello")
	w.want(t, w.peer, app, "tcp", at(host4, 8080), "host "+at(host4, 8080))
	w.want(t, w.host, app, "tcp", at(virtual4, 80), "refused")
	if st, _ := m.Show(t.Context()); st.Capture != intercept.CaptureLapsed {
		t.Errorf("lapsed: show says %s", st.Capture)
	}
	if s := <-said; !strings.Contains(s, "does not answer") {
		t.Errorf("was told %q", s)
	}
	w.fakeSidecar()
	set(true)
	eventually(t, "a sidecar that is back is used again", captured)

	// The same with fail-closed.
	c.FailOpen, c.HoldFor = false, time.Second
	w2 := newWorld(t, v4only)
	w2.serve(w2.peer, "peer", w2.any(9000))
	m2 := w2.apply(c)
	w2.want(t, w2.host, app, "tcp", at(peer4, 9000), "refused")
	time.Sleep(c.HoldFor + time.Second)
	w2.want(t, w2.host, app, "tcp", at(peer4, 9000), "refused")
	if st, _ := m2.Show(t.Context()); st.Capture != intercept.CaptureStands || st.FailOpen {
		t.Errorf("fail-closed: show says %+v", st)
	}
}

// TestHoldRepairs: rules that a firewall's reload takes away are made again; those
// that somebody cleaned stay away.
func TestHoldRepairs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dual)
	c := w.config()
	c.HoldFor = time.Second
	m := w.apply(c)
	want := w.rules()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- m.Hold(ctx, intercept.Holding{}) }()
	for _, damage := range [][]string{
		{"nft", "flush", "ruleset"},
		{"nft", "flush", "chain", "inet", "parrel", "workloads"},
		{"ip", "route", "del", "local", "240.0.0.0/4", "dev", "lo", "table", "local"},
	} {
		w.in(damage[0], damage[1:]...)
		eventually(t, "repaired after "+strings.Join(damage, " "), func() bool { return w.rules() == want })
	}
	if err := w.manager().Clean(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, intercept.ErrCleaned) {
			t.Errorf("Hold ended with %v, want ErrCleaned", err)
		}
	case <-time.After(time.Minute):
		t.Error("Hold goes on a minute after Clean")
	}
	if got := w.in("nft", "list", "ruleset"); got != "" {
		t.Errorf("after Clean there is\n%s", got)
	}
}

// TestGuard: a sidecar that is not ready in time takes everything back; one that is
// makes it stand; one whose start dies leaves rules that lapse.
func TestGuard(t *testing.T) {
	t.Parallel()
	w := newWorld(t, v4only)
	before := w.state()
	m := w.manager()
	tried := 0
	err := intercept.Guard(t.Context(), m, w.config(), 600*time.Millisecond, func(context.Context) error {
		if tried++; tried == 1 {
			if st, err := m.Show(t.Context()); err != nil || st.Capture != intercept.CaptureHeld {
				t.Errorf("while waiting: %+v, %v", st, err)
			}
		}
		return errors.New("no certificate yet")
	})
	if err == nil || !strings.Contains(err.Error(), "not ready within 600ms") || !strings.Contains(err.Error(), "no certificate yet") {
		t.Errorf("not ready: %v", err)
	}
	if got := w.state(); got != before {
		t.Errorf("not ready left\n%s", got)
	}
	err = intercept.Guard(t.Context(), m, w.config(), time.Minute, func(context.Context) error { return nil })
	if st, serr := m.Show(t.Context()); err != nil || serr != nil || st.Capture != intercept.CaptureStands {
		t.Errorf("ready: %v, %+v, %v", err, st, serr)
	}
	c := w.config()
	c.Provisional = time.Second
	w.apply(c) // and nobody confirms
	eventually(t, "what a start that died left lapses", func() bool {
		st, err := m.Show(t.Context())
		return err == nil && st.Capture == intercept.CaptureLapsed
	})
	if err := m.Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st, err := m.Show(t.Context()); err != nil || st.Capture != intercept.CaptureStands {
		t.Errorf("confirmed: %+v, %v", st, err)
	}
}
