package overload

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const cap100 = 100 << 20

// pressed is a manager whose memory in use the test sets.
func pressed(c Config) (*Manager, *atomic.Int64) {
	var used atomic.Int64
	if c.Memory == 0 {
		c.Memory = cap100
	}
	return New(c, Deps{Memory: used.Load}), &used
}

func percent(n int64) int64 { return cap100 / 100 * n }

// TestStates: memory alone decides the state, with hysteresis, within 100 ms of
// somebody asking; and once nobody asks, no timer runs.
func TestStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, used := pressed(Config{})
		for i, step := range []struct {
			percent int64
			want    State
		}{
			{10, Normal}, {84, Normal}, {85, Slow}, {81, Slow}, {94, Slow}, {95, Refusing}, {91, Refusing}, {89, Slow},
			{96, Refusing}, {82, Slow}, {79, Normal}, {85, Slow}, {99, Refusing}, {10, Normal},
		} {
			used.Store(percent(step.percent))
			m.Refuse()
			time.Sleep(rarely + 10*time.Millisecond)
			if got := m.State(); got != step.want {
				t.Errorf("step %d, %d %%: %v, want %v", i, step.percent, got, step.want)
			}
		}
		used.Store(percent(10))
		time.Sleep(time.Minute)
		if m.armed.Load() {
			t.Error("the timer runs though nothing was asked for a minute")
		}
		used.Store(percent(97))
		time.Sleep(time.Minute)
		if m.State() != Normal {
			t.Error("somebody looked at the memory though nothing was asked")
		}
		m.Refuse()
		time.Sleep(20 * time.Millisecond)
		if !m.Refuse() {
			t.Errorf("a request is taken in state %v", m.State())
		}
		used.Store(0)
		time.Sleep(time.Second)
	})
}

// TestSlow: under pressure reads from clients are held for a second at the most
// and go on at once when it is over; those from upstreams are not held.
func TestSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, used := pressed(Config{})
		net := netio.NewMemory()
		h := net.Host("a", "10.0.0.1")
		n := m.Net(h)
		ln, err := n.Listen(context.Background(), "tcp", "10.0.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		c, err := n.Dial(context.Background(), "tcp", "10.0.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		s, err := ln.AcceptConn()
		if err != nil {
			t.Fatal(err)
		}
		if a, d := m.guard.Open(); a != 1 || d != 1 {
			t.Errorf("%d accepted and %d dialled connections counted", a, d)
		}
		read := func(from, to netio.Conn) time.Duration {
			t.Helper()
			if _, err := from.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			if _, err := to.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			return time.Since(began)
		}
		if d := read(c, s); d != 0 {
			t.Errorf("without pressure a read waited %s", d)
		}
		used.Store(percent(90))
		time.Sleep(rarely + 10*time.Millisecond) // the read above asked
		if d := read(c, s); d != time.Second {
			t.Errorf("under pressure a read from a client waited %s", d)
		}
		if d := read(s, c); d != 0 {
			t.Errorf("under pressure a read from an upstream waited %s", d)
		}
		go func() {
			time.Sleep(100 * time.Millisecond)
			used.Store(0)
		}()
		if d := read(c, s); d < 100*time.Millisecond || d > 220*time.Millisecond {
			t.Errorf("a read waited %s though the pressure was over after 100ms", d)
		}
		if m.guard.Delayed() != 2 {
			t.Errorf("%d delayed reads counted", m.guard.Delayed())
		}
		c.Close()
		_ = c.Reset()
		_ = s.Reset()
		if a, d := m.guard.Open(); a != 0 || d != 0 {
			t.Errorf("%d accepted and %d dialled connections are still counted", a, d)
		}
	})
}

// TestPromised: however many requests come before the timer does, the memory is
// looked at before they can hold a quarter of what there is to the next state; in
// state slow each of them waits.
func TestPromised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, used := pressed(Config{})
		used.Store(percent(5))
		m.Refuse()
		used.Store(percent(97))
		began, n := time.Now(), 0
		for !m.Refuse() {
			if n++; n > cap100*slowAt/100/4/requestCost {
				t.Fatalf("%d requests were taken with no look at the memory", n)
			}
		}
		for range 9 { // and the next few see that it is better, or worse, again
			used.Store(percent(50))
			m.Refuse()
		}
		if m.State() != Normal || time.Since(began) != 0 {
			t.Errorf("state %v after %s", m.State(), time.Since(began))
		}
		used.Store(percent(90))
		time.Sleep(rarely + 10*time.Millisecond)
		began = time.Now()
		if m.Refuse() || time.Since(began) != time.Second {
			t.Errorf("in state %v a request waits %s", m.State(), time.Since(began))
		}
		go func() {
			time.Sleep(100 * time.Millisecond)
			used.Store(percent(96))
		}()
		if began = time.Now(); !m.Refuse() || time.Since(began) != time.Second {
			t.Errorf("in state %v a request that waited %s is taken", m.State(), time.Since(began))
		}
		used.Store(0)
		time.Sleep(time.Second)
	})
}

func TestAdmit(t *testing.T) {
	one, two, six, sixToo := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::ffff")
	local := netip.MustParseAddr("127.0.0.1")
	for _, tt := range []struct {
		name   string
		c      Config
		open   int
		src    []netip.Addr
		expect []telemetry.Code
	}{
		{"no limit", Config{}, 0, []netip.Addr{one, one, one}, []telemetry.Code{0, 0, 0}},
		{"process", Config{Connections: 2, PerSource: -1}, 0, []netip.Addr{one, two, six}, []telemetry.Code{0, 0, telemetry.ConnectionLimit}},
		{"listener", Config{PerListener: 3}, 3, []netip.Addr{one}, []telemetry.Code{telemetry.ConnectionLimit}},
		{"named listener", Config{PerListener: 3, Listeners: map[string]int{"L": 4}}, 3, []netip.Addr{one}, []telemetry.Code{0}},
		{"source", Config{PerSource: 1}, 0, []netip.Addr{one, one, two, six, sixToo, local, local},
			[]telemetry.Code{0, telemetry.SourceLimit, 0, 0, telemetry.SourceLimit, 0, telemetry.SourceLimit}},
		{"mapped addresses are the same", Config{PerSource: 1}, 0, []netip.Addr{one, netip.MustParseAddr("::ffff:192.0.2.1")}, []telemetry.Code{0, telemetry.SourceLimit}},
	} {
		m := New(tt.c, Deps{})
		var tickets []Ticket
		for i, src := range tt.src {
			ticket, code := m.Admit("L", tt.open, src)
			if code != tt.expect[i] {
				t.Errorf("%s: connection %d: %v, want %v", tt.name, i, code, tt.expect[i])
			}
			tickets = append(tickets, ticket)
		}
		for _, ticket := range tickets {
			ticket.Release()
		}
		if n := m.open.Load(); n != 0 {
			t.Errorf("%s: %d connections left", tt.name, n)
		}
		for i := range m.sources.shards {
			if n := len(m.sources.shards[i].n); n != 0 {
				t.Errorf("%s: %d sources left", tt.name, n)
			}
		}
	}
}

// TestDefaults: half of what traffic may use is for clients, half of that for
// one of them, and loopback stands for many.
func TestDefaults(t *testing.T) {
	m := New(Config{Descriptors: 256}, Deps{})
	if b := m.c; b.descriptors != 208 || b.waitAt != 104 || b.perSource != 64 || b.connections != 0 {
		t.Errorf("256 descriptors: %+v", b)
	}
	if b := (Config{Descriptors: 1 << 30}).bounds(); b.waitAt != 1<<20 || b.perSource != 1<<19 {
		t.Errorf("any number of descriptors: %+v", b)
	}
	src := netip.MustParseAddr("192.0.2.1")
	for i := range 65 {
		if _, code := m.Admit("L", 0, src); (code == telemetry.OK) != (i < 64) {
			t.Errorf("connection %d of one source: %v", i, code)
		}
		if _, code := m.Admit("L", 0, netip.MustParseAddr("::1")); code != telemetry.OK {
			t.Errorf("connection %d from loopback: %v", i, code)
		}
	}
}

// TestAwait: accepting waits while there are as many connections as descriptors
// allow, or while memory is short, and goes on by itself.
func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, used := pressed(Config{Descriptors: 100})
		var tickets []Ticket
		for range m.c.waitAt {
			if !m.Await(nil) {
				t.Fatal("no place")
			}
			ticket, _ := m.Admit("L", 0, netip.Addr{})
			tickets = append(tickets, ticket)
		}
		began := time.Now()
		go func() {
			time.Sleep(3 * time.Second)
			tickets[0].Release()
		}()
		if m.Await(nil); time.Since(began) < 3*time.Second || time.Since(began) > 4*time.Second {
			t.Errorf("accepting waited %s for a place", time.Since(began))
		}
		used.Store(percent(90))
		m.Refuse()
		time.Sleep(50 * time.Millisecond)
		done := make(chan struct{})
		go func() {
			time.Sleep(time.Second)
			close(done)
		}()
		if m.Await(done) {
			t.Errorf("accepting goes on in state %v", m.State())
		}
		used.Store(percent(96))
		time.Sleep(50 * time.Millisecond)
		if !m.Await(nil) {
			t.Error("connections are not taken to be refused")
		}
		if _, code := m.Admit("L", 0, netip.Addr{}); code != telemetry.Overload {
			t.Errorf("a new connection: %v", code)
		}
		used.Store(0)
		time.Sleep(time.Second)
	})
}

// TestShed: while memory does not come back, connections are ended, a twentieth
// at a time, and no longer once it does.
func TestShed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, used := pressed(Config{})
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = m.Run(ctx)
		}()
		for range 200 {
			_, _ = m.Admit("L", 0, netip.Addr{})
		}
		var shed atomic.Int64
		stop := m.OnShed(func(n int) int {
			if n != 10 {
				t.Errorf("%d connections are to be ended, want 10", n)
			}
			if shed.Add(int64(n)) == 30 {
				used.Store(percent(50))
			}
			return n
		})
		used.Store(percent(96))
		began := time.Now()
		time.Sleep(150 * time.Millisecond)
		if shed.Load() != 0 {
			t.Error("connections are ended before the collector could show what is in use")
		}
		time.Sleep(2 * time.Second)
		if shed.Load() != 30 || m.State() != Normal {
			t.Errorf("%d connections ended after %s, state %v", shed.Load(), time.Since(began), m.State())
		}
		stop()
		cancel()
		<-ended
	})
}

func TestMemoryLimit(t *testing.T) {
	f := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	for name, tt := range map[string]struct {
		files fstest.MapFS
		want  int64
	}{
		"none":                  {fstest.MapFS{}, 0},
		"version 2":             {fstest.MapFS{"proc/self/cgroup": f("0::/a/b\n"), "sys/fs/cgroup/a/b/memory.max": f("1000\n")}, 1000},
		"the lowest above":      {fstest.MapFS{"proc/self/cgroup": f("0::/a/b\n"), "sys/fs/cgroup/a/b/memory.max": f("max\n"), "sys/fs/cgroup/a/memory.max": f("500\n"), "sys/fs/cgroup/memory.max": f("900\n")}, 500},
		"max":                   {fstest.MapFS{"proc/self/cgroup": f("0::/\n"), "sys/fs/cgroup/memory.max": f("max\n")}, 0},
		"version 1":             {fstest.MapFS{"proc/self/cgroup": f("5:cpu:/x\n4:memory,x:/d/e\n0::/\n"), "sys/fs/cgroup/memory/memory.limit_in_bytes": f("2000\n")}, 2000},
		"version 1 has no max":  {fstest.MapFS{"proc/self/cgroup": f("4:memory:/\n"), "sys/fs/cgroup/memory/memory.limit_in_bytes": f("9223372036854771712\n")}, 0},
		"a path that goes up":   {fstest.MapFS{"proc/self/cgroup": f("0::/../x\n"), "sys/fs/cgroup/memory.max": f("7\n")}, 7},
		"not a number":          {fstest.MapFS{"proc/self/cgroup": f("0::/\n"), "sys/fs/cgroup/memory.max": f("-1\n")}, 0},
		"another controller":    {fstest.MapFS{"proc/self/cgroup": f("4:memoryx:/\n"), "sys/fs/cgroup/memory/memory.limit_in_bytes": f("3\n")}, 0},
		"lines without a colon": {fstest.MapFS{"proc/self/cgroup": f("nonsense\n\n")}, 0},
	} {
		if got := MemoryLimit(tt.files); got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
}

// TestCost: what a request and a connection pay.
func TestCost(t *testing.T) {
	m, _ := pressed(Config{Descriptors: 1000})
	defer m.timer.Remove()
	src := netip.MustParseAddr("192.0.2.1")
	keep, _ := m.Admit("L", 0, src)
	defer keep.Release()
	if n := testing.AllocsPerRun(100, func() { m.Refuse() }); n != 0 {
		t.Errorf("a request allocates %v times", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		ticket, _ := m.Admit("L", 0, src)
		ticket.Release()
	}); n != 0 {
		t.Errorf("a connection allocates %v times", n)
	}
	g := newGauge()
	if n := testing.AllocsPerRun(100, func() { g.read() }); n != 0 {
		t.Errorf("a look at the memory allocates %v times", n)
	}
	if used := g.read(); used < 1<<20 || used > 1<<30 {
		t.Errorf("%d bytes in use", used)
	}
	var none *Manager
	if none.Refuse() || none.State() != Normal || !none.Await(nil) {
		t.Error("no manager refuses")
	}
}

func BenchmarkRefuse(b *testing.B) {
	m, _ := pressed(Config{})
	defer m.timer.Remove()
	for b.Loop() {
		m.Refuse()
	}
}

func BenchmarkSample(b *testing.B) {
	g := newGauge()
	for b.Loop() {
		g.read()
	}
}
