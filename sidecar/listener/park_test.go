package listener

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/live"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// patient answers each line and leaves the connection to the listener between
// them. c.State counts the lines.
type patient struct {
	calls, over atomic.Int32
	ended       chan telemetry.Code // nil: nobody asks
}

func (p *patient) Serve(context.Context, *Conn) { panic("a Parker is asked as one") }

func (p *patient) ServeUntilIdle(_ context.Context, c *Conn) (idle bool) {
	p.calls.Add(1)
	lines, _ := c.State.(int)
	if lines < 0 {
		panic("as told")
	}
	defer func() {
		if !idle {
			p.over.Add(1)
			if code, _ := c.Ended(); p.ended != nil {
				p.ended <- code
			}
		}
	}()
	if c.Draining.Cause() != nil {
		return false
	}
	b, n, err := netio.ReadBuf(c.Conn)
	if err != nil {
		return false
	}
	defer netio.PutBuf(b)
	lines++
	c.State = lines
	if string(b[:n]) == "panic\n" {
		c.State = -1
	}
	_, err = fmt.Fprintf(c, "line %d\n", lines)
	return err == nil
}

func TestParkedConnections(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		p := &patient{}
		b.update("1", plain("a", 1000, p))
		c, d := b.dial(1000), b.dial(1000)
		for i := range 3 {
			time.Sleep(time.Hour)
			b.talks(c, fmt.Sprintf("line %d", i+1))
			b.talks(d, fmt.Sprintf("line %d", i+1))
		}
		synctest.Wait()
		if n := b.set.idle.Parked(); n != 2 {
			t.Fatalf("%d are parked, want 2", n)
		}
		if got := b.set.Status()[0].Counts.Active; got != 2 {
			t.Errorf("%d active, want 2: an idle connection is one", got)
		}
		// The peer's end.
		c.CloseWrite()
		b.closed(c)
		synctest.Wait()
		if p.over.Load() != 1 || b.set.idle.Parked() != 1 || b.live.Len() != 1 {
			t.Errorf("%d over, %d parked, %d live; want 1, 1, 1", p.over.Load(), b.set.idle.Parked(), b.live.Len())
		}
		// A drain asks for the end of those that are idle.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.set.Drain(ctx); err != nil {
			t.Errorf("Drain: %v", err)
		}
		b.closed(d)
	})
}

func TestParkedConnectionIsReauthorised(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		p := &patient{ended: make(chan telemetry.Code, 1)}
		config := func(allowed ...string) Config {
			c := b.public("a", allowed...)
			c.Chains["public"].Handler = p
			return c
		}
		b.update("1", config("web"))
		web := b.mustAs("web")
		b.talks(web, "line 1")
		synctest.Wait()
		if n := b.set.idle.Parked(); n != 1 {
			t.Fatalf("%d are parked, want 1", n)
		}
		b.talks(web, "line 2")
		b.update("2", config("orders"))
		if got := b.live.Recheck(t.Context()); got != (live.Counts{Checked: 1, Closed: 1}) {
			t.Errorf("recheck: %+v", got)
		}
		if code := <-p.ended; code != telemetry.ReauthorisedDenied {
			t.Errorf("ended with %s", code)
		}
		b.closed(web)
	})
}

func TestParkedConnectionEndsWithTheSet(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) { // whose end waits for all goroutines
		p := &patient{}
		b.update("1", plain("a", 1000, p), plain("b", 1001, p))
		c, d := b.dial(1000), b.dial(1001)
		b.talks(c, "line 1")
		b.talks(d, "line 1")
		b.update("2", plain("b", 1001, p)) // a is removed
		b.closed(c)
	})
}

func TestPanicAfterParking(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.update("1", plain("a", 1000, &patient{}))
		c, d := b.dial(1000), b.dial(1000)
		if _, err := io.WriteString(c, "panic\n"); err != nil {
			t.Fatal(err)
		}
		b.talks(d, "line 1")
		c.Read(make([]byte, 20))
		c.Write([]byte("x"))
		b.closed(c)
		b.talks(d, "line 2")
		synctest.Wait()
		if got := b.set.Status()[0].Counts; got.Panics != 1 || got.Active != 1 {
			t.Errorf("%+v", got)
		}
	})
}

// realSet is a Set on kernel sockets of loopback.
func realSet(t testing.TB, h Handler) (set *Set, address string) {
	t.Helper()
	set = NewSet(Deps{Net: netio.OS{}})
	held, err := set.Hold(t.Context(), resource.Address{Host: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	l := &resource.Listener{Name: "l", Address: held, Chains: []resource.FilterChain{{Name: "c", TCP: &resource.TCPProxy{Cluster: "x"}}}}
	for _, err := range set.Update("1", []Config{{Resource: l, Chains: map[string]*Chain{"c": {Resource: &l.Chains[0], Handler: h}}}}) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- set.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return set, net.JoinHostPort("127.0.0.1", fmt.Sprint(held.Port))
}

// until waits for something that the kernel does.
func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("after 20 s not: %s", what)
		}
	}
}

// On kernel sockets: an idle connection has no goroutine, and serves again.
func TestParkedSocketsHaveNoGoroutine(t *testing.T) {
	const n = 300
	p := &patient{}
	set, address := realSet(t, p)
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	before := 0
	for i := range n {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		if got, err := say(c, "hello"); err != nil || got != "line 1" {
			t.Fatal(got, err)
		}
		if i == 0 {
			until(t, "the first is parked", func() bool { return set.idle.Parked() == 1 })
			before = runtime.NumGoroutine()
		}
	}
	until(t, "all are parked", func() bool { return set.idle.Parked() == n })
	until(t, "their goroutines are gone", func() bool { return runtime.NumGoroutine() <= before+5 })
	for _, c := range conns {
		if got, err := say(c, "hello"); err != nil || got != "line 2" {
			t.Fatal(got, err)
		}
	}
	until(t, "all are parked again", func() bool { return set.idle.Parked() == n })
	for _, c := range conns[:n/3] {
		c.Close()
	}
	for _, c := range conns[n/3 : n/2] {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	until(t, "those that went are gone", func() bool { return set.idle.Parked() == n-n/2 && set.Live.Len() == n-n/2 })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := set.Drain(ctx); err != nil {
		t.Errorf("Drain: %v", err)
	}
	if got := p.over.Load(); got != n {
		t.Errorf("%d are over, want %d", got, n)
	}
}
