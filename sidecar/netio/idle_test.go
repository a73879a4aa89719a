package netio

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// woken counts calls of Wake.
type woken chan struct{}

func (w woken) Wake() { w <- struct{}{} }

func (w woken) await(t *testing.T, why string) {
	t.Helper()
	select {
	case <-w:
	case <-time.After(10 * time.Second):
		t.Fatalf("not woken: %s", why)
	}
}

func (w woken) never(t *testing.T, why string) {
	t.Helper()
	select {
	case <-w:
		t.Fatalf("woken once more: %s", why)
	default:
	}
}

// A parked connection is woken once by whatever happens to it.
func TestParkIsWokenOnce(t *testing.T) {
	for name, happen := range map[string]func(i *Idler, a, b Conn){
		"byte":        func(_ *Idler, a, _ Conn) { a.Write([]byte("x")) },
		"end":         func(_ *Idler, a, _ Conn) { a.CloseWrite() },
		"reset":       func(_ *Idler, a, _ Conn) { a.Reset() },
		"closed here": func(_ *Idler, _, b Conn) { b.Close() },
		"reset here":  func(_ *Idler, _, b Conn) { b.Reset() },
		"Wake":        func(i *Idler, _, b Conn) { i.Wake(b) },
		"Idler ends":  func(i *Idler, _, _ Conn) { i.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			eachPair(t, func(t *testing.T, a, b Conn) {
				var i Idler
				defer i.Close()
				w := make(woken, 10)
				if !i.Park(b, w) {
					t.Fatal("cannot be parked")
				}
				w.never(t, "nothing has happened")
				happen(&i, a, b)
				w.await(t, name)
				if n := i.Parked(); n != 0 {
					t.Errorf("%d are parked", n)
				}
				i.Wake(b)
				w.never(t, "after it was woken")
			})
		})
	}
}

// What was there before is not missed, a connection can be parked again and
// again, and bytes of a wrapper count.
func TestParkAgain(t *testing.T) {
	eachPair(t, func(t *testing.T, a, b Conn) {
		var i Idler
		defer i.Close()
		w, buf := make(woken, 10), make([]byte, 8)
		for range 3 {
			a.Write([]byte("ab"))
			b.WaitReadable()
			i.Park(b, w)
			w.await(t, "bytes were there before")
			b.Read(buf)
			i.Park(b, w)
			i.Wake(b)
			w.await(t, "Wake")
			i.Park(b, w)
			a.Write([]byte("c"))
			w.await(t, "a byte after the second Park")
			b.Read(buf)
		}
		p := Pending{GetBuf(), 1}
		r := Replay(b, p)
		i.Park(r, w)
		w.await(t, "a byte that was read ahead")
		r.Read(buf)
		i.Park(r, w)
		w.never(t, "nothing is left")
		a.Write([]byte("d"))
		w.await(t, "a byte under a wrapper")
	})
}

// A descriptor that is used again is not taken for the one before.
func TestParkDescriptorUsedAgain(t *testing.T) {
	var i Idler
	defer i.Close()
	for range 50 {
		a, b := osPair(t)
		w, v := make(woken, 10), make(woken, 10)
		i.Park(a, w)
		i.Park(b, v)
		a.Close()
		w.await(t, "closed here")
		v.await(t, "ended by the peer")
		b.Close()
		w.never(t, "a")
		v.never(t, "b")
	}
}

func TestParkClosedConnection(t *testing.T) {
	eachPair(t, func(t *testing.T, _, b Conn) {
		var i Idler
		defer i.Close()
		w := make(woken, 10)
		b.Close()
		i.Park(b, w)
		w.await(t, "it was closed before")
	})
}

// Close, a byte and Wake come at once; the waker hears of it once.
func TestParkRaces(t *testing.T) {
	var i Idler
	defer i.Close()
	for n := range 300 {
		a, b := osPair(t)
		w := make(woken, 10)
		var wg sync.WaitGroup
		wg.Go(func() { b.Close() })
		wg.Go(func() { a.Write([]byte("x")) })
		if n%2 == 0 {
			wg.Go(func() { i.Wake(b) })
		}
		i.Park(b, w)
		wg.Wait()
		w.await(t, "closed")
		w.never(t, "closed")
		a.Close()
	}
}

// In virtual time nothing of a parked connection runs.
func TestParkVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory()
		m.SetLatency(time.Second)
		h, o := m.Host("h", "10.0.0.1"), m.Host("o", "10.0.0.2")
		l, err := h.Listen(t.Context(), "tcp", ":80")
		if err != nil {
			t.Fatal(err)
		}
		a, err := o.Dial(t.Context(), "tcp", "10.0.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		b, err := l.AcceptConn()
		if err != nil {
			t.Fatal(err)
		}
		var i Idler
		w := make(woken, 10)
		start := time.Now()
		i.Park(b, w)
		b.SetReadDeadline(time.Now().Add(time.Minute)) // does not count
		time.Sleep(time.Hour)
		w.never(t, "nothing has happened")
		a.Write([]byte("x"))
		<-w
		if d := time.Since(start); d != time.Hour+time.Second {
			t.Errorf("woken after %s", d)
		}
		i.Close()
		a.Close()
		b.Close()
		l.Close()
	})
}
