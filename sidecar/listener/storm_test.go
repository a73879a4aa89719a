package listener

import (
	"context"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
)

// Connections that are reset, at once, after a byte, or while they are parked,
// leave nothing.
func TestResetStorm(t *testing.T) {
	const n, workers = 20000, 8
	set, address := realSet(t, HandlerFunc(func(_ context.Context, c *Conn) {
		if b, _, err := netio.ReadBuf(c.Conn); err == nil {
			netio.PutBuf(b)
		}
	}))
	parking, parked := realSet(t, &patient{})
	goroutines, files, heap := runtime.NumGoroutine(), descriptors(t), liveHeap()
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range n / workers {
				to := address
				if i%3 == 2 {
					to = parked
				}
				c, err := net.Dial("tcp", to)
				if err != nil {
					t.Error(err)
					return
				}
				if i%3 == 1 || i%9 == 2 {
					_, _ = c.Write([]byte{byte(w)})
				}
				_ = c.(*net.TCPConn).SetLinger(0)
				_ = c.Close()
			}
		})
	}
	wg.Wait()
	until(t, "all are over", func() bool { return set.Live.Len()+parking.Live.Len() == 0 })
	until(t, "their goroutines are gone", func() bool { return runtime.NumGoroutine() <= goroutines+5 })
	until(t, "their descriptors are closed", func() bool { return descriptors(t) <= files+8 })
	if grown := liveHeap() - heap; grown > 4<<20 {
		t.Errorf("the heap has grown by %d bytes after %d resets", grown, n)
	}
	for _, s := range []*Set{set, parking} {
		if got := s.Status()[0].Counts; got.Active != 0 || got.Panics != 0 {
			t.Errorf("%+v", got)
		}
	}
	c, err := net.DialTimeout("tcp", parked, 10*time.Second) // and it serves
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := say(c, "hello"); got != "line 1" || err != nil {
		t.Errorf("after the storm: %q, %v", got, err)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func liveHeap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
