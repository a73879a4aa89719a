//go:build !race

package l7

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// parkedMost is the live heap that a connection may cost which has carried a
// request and is idle: package net's part (some 500 bytes), the listener's and
// the engine's. The kernel's and the runtime's own parts are not in it.
const parkedMost = 2048

// An idle connection has no goroutine and little memory, and is served again.
func TestParkedConnectionsAreSmall(t *testing.T) {
	const conns = 1000
	app := upstream(func(context.Context, *stream.Request) (*stream.Response, error) { return ok("hello"), nil })
	rt := routes(t, toApp())
	e, err := New(Config{
		Manager:  &resource.HTTPManager{UseRemoteAddress: true, Filters: []resource.HTTPFilter{{Name: "router", Router: &resource.Router{}}}},
		Routes:   func() *decide.Routes { return rt },
		Clusters: func(string) (Cluster, bool) { return app, true },
	}, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	set := listener.NewSet(listener.Deps{Net: netio.OS{}})
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- set.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-over; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	res := &resource.Listener{Name: "l", Address: resource.Address{Host: "127.0.0.1"},
		Chains: []resource.FilterChain{{Name: "c", HTTP: &resource.HTTPManager{}}}}
	for _, err := range set.Update("1", []listener.Config{{Resource: res, Chains: map[string]*listener.Chain{"c": {Resource: &res.Chains[0], Handler: e}}}}) {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(set.Status()[0].Address)

	// Clients without a heap.
	fds := make([]int, conns)
	answer := make([]byte, 4096)
	ask := func(fd int) {
		t.Helper()
		if _, err := unix.Write(fd, []byte("GET / HTTP/1.1\r\nhost: a\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		for n := 0; !bytes.HasSuffix(answer[:n], []byte("hello")); {
			m, err := unix.Read(fd, answer[n:])
			if n += max(m, 0); err != nil || m == 0 {
				t.Fatalf("%q, %v", answer[:n], err)
			}
		}
		if string(answer[:12]) != "HTTP/1.1 200" {
			t.Fatalf("%q", answer[:12])
		}
	}
	live := func() int64 {
		var m runtime.MemStats
		for range 2 { // what pools hold is gone after the second
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	goroutines := runtime.NumGoroutine()
	before := live()
	for i := range fds {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}); err != nil {
			t.Fatal(err)
		}
		fds[i] = fd
		ask(fd)
	}
	for end := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > goroutines+20; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines for %d idle connections", runtime.NumGoroutine(), conns)
		}
	}
	each := (live() - before) / conns
	t.Logf("%d bytes for each", each)
	if each > parkedMost {
		t.Errorf("an idle connection costs %d bytes of heap, want %d at the most", each, parkedMost)
	}
	for _, fd := range fds {
		ask(fd)
	}
}
