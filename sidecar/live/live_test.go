package live

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// conn is a connection whose fate the test decides.
type conn struct {
	fate  Verdict
	ended []string
}

func (c *conn) Recheck() (Verdict, string) { return c.fate, "as told" }
func (c *conn) End(v Verdict, why string)  { c.ended = append(c.ended, fmt.Sprint(v, " ", why)) }

func TestRecheckEndsWhatMayNotStay(t *testing.T) {
	for _, n := range []int{3, 300} { // one goroutine, several
		x := New(Config{})
		conns := make([]conn, n)
		var want Counts
		for i := range conns {
			conns[i].fate = Verdict(i % 3)
			x.Add(&conns[i])
		}
		want = Counts{Checked: n, Kept: n / 3, Draining: n / 3, Closed: n / 3}
		if got := x.Recheck(t.Context()); got != want {
			t.Errorf("%d entries: %+v, want %+v", n, got, want)
		}
		for i := range conns {
			want := map[Verdict]string{Keep: "[]", CloseAfterRequest: "[1 as told]", CloseNow: "[2 as told]"}[conns[i].fate]
			if got := fmt.Sprint(conns[i].ended); got != want {
				t.Errorf("entry %d: ended %s, want %s", i, got, want)
			}
		}
	}
}

func TestRemovedIsNotAsked(t *testing.T) {
	x := New(Config{})
	a, b := &conn{fate: CloseNow}, &conn{fate: CloseNow}
	x.Add(a)
	x.Add(b)
	x.Remove(a)
	x.Remove(a)
	if got := x.Recheck(t.Context()); got.Checked != 1 || len(a.ended) != 0 || len(b.ended) != 1 {
		t.Errorf("%+v, a %v, b %v", got, a.ended, b.ended)
	}
	if x.Len() != 1 {
		t.Errorf("Len %d, want 1", x.Len())
	}
}

func TestRecheckStopsWithItsContext(t *testing.T) {
	x := New(Config{})
	c := &conn{fate: CloseNow}
	x.Add(c)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := x.Recheck(ctx); got.Checked != 0 || len(c.ended) != 0 {
		t.Errorf("%+v, ended %v", got, c.ended)
	}
}

// nested adds another one when it is ended.
type nested struct {
	x     *Index
	ended *atomic.Int64
	depth int
}

func (n *nested) Recheck() (Verdict, string) { _ = n.x.Len(); return CloseNow, "" }

func (n *nested) End(Verdict, string) {
	n.ended.Add(1)
	n.x.Remove(n)
	if n.depth > 0 {
		n.x.Add(&nested{n.x, n.ended, n.depth - 1})
	}
}

// TestNoLockIsHeld: entries come and go from within Recheck and End, and from
// other goroutines, while rechecks run.
func TestNoLockIsHeld(t *testing.T) {
	x := New(Config{})
	var ended atomic.Int64
	for range 200 {
		x.Add(&nested{x, &ended, 2})
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				c := &conn{}
				x.Add(c)
				x.Recheck(context.Background())
				x.Remove(c)
			}
		})
	}
	wg.Wait()
	if ended.Load() != 600 || x.Len() != 0 {
		t.Errorf("%d ended, %d left; want 600 and 0", ended.Load(), x.Len())
	}
}

func BenchmarkRecheck10k(b *testing.B) {
	x := New(Config{})
	for range 10_000 {
		x.Add(&conn{})
	}
	b.ReportAllocs()
	for b.Loop() {
		x.Recheck(context.Background())
	}
}
