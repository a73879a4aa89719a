//go:build linux

package intercept

import (
	"context"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/intercept"
	"github.com/parrel-mesh/parrel/sidecar/netio"
)

// TestTProxy: the sidecar learns where the client meant to go, dials the application
// in the client's name, and the application sees the client's own address, though
// reverse paths are filtered strictly. What is not captured goes straight there.
func TestTProxy(t *testing.T) {
	for _, f := range []families{dual, v4only, v6only} {
		t.Run(f.name, func(t *testing.T) {
			w := newWorld(t, f)
			enter(w.host, root, func() error {
				for _, i := range []string{"all", "lo", "v0"} {
					write("/proc/sys/net/ipv4/conf/"+i+"/rp_filter", "1")
				}
				return nil
			})
			w.serve(w.host, "app", w.any(8080), w.any(22), w.any(9100))
			w.transparentSidecar(t)
			before := w.state()
			c := w.config()
			c.InboundMode, c.ExcludeInboundPorts = intercept.TProxy, intercept.Ports(9100)
			m := w.apply(c)
			w.each(func(t *testing.T, host, peer, _, loopback string) {
				for range 20 {
					got := w.dial(w.peer, app, "tcp", at(host, 8080))
					// The application's words, by way of the sidecar, which says its own first.
					if want := "by the sidecar: app " + at(loopback, 8080) + " from " + peer; got != want {
						t.Fatalf("got %q, want %q", got, want)
					}
				}
				w.want(t, w.peer, app, "tcp", at(host, 22), "app "+at(host, 22))
				w.want(t, w.peer, app, "tcp", at(host, 9100), "app "+at(host, 9100))
				w.want(t, w.peer, app, "udp", at(host, 8080), "app hello")
				w.want(t, w.host, sidecar, "tcp", at(loopback, 8080), "app "+at(loopback, 8080))
			})
			st, err := m.Show(t.Context())
			if err != nil || st.InboundMode != "tproxy" || st.InboundConnections == 0 {
				t.Errorf("show says %+v, %v", st, err)
			}
			if err := m.Clean(t.Context()); err != nil {
				t.Fatal(err)
			}
			if after := w.state(); after != before {
				t.Errorf("after:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

// TestTProxyWithoutListener: where no transparent socket listens, connections do not pass
// the sidecar by.
func TestTProxyWithoutListener(t *testing.T) {
	w := newWorld(t, dual)
	w.serve(w.host, "app", w.any(8080))
	w.serve(w.host, "redirected", w.any(inPort)) // as REDIRECT would have it
	c := w.config()
	c.InboundMode = intercept.TProxy
	w.apply(c)
	w.each(func(t *testing.T, host, _, _, _ string) { w.want(t, w.peer, app, "tcp", at(host, 8080), "refused") })
}

// transparentSidecar takes what TPROXY hands it to the same port on loopback, from the
// client's address.
func (w *world) transparentSidecar(t *testing.T) {
	t.Helper()
	type result struct {
		l   netio.Listener
		err error
	}
	r := enter(w.host, root, func() result {
		l, err := netio.OS{}.ListenTransparent(context.Background(), w.any(inPort))
		return result{l, err}
	})
	if r.err != nil {
		t.Fatal(r.err)
	}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			c, err := r.l.AcceptConn()
			if err != nil {
				return
			}
			wg.Add(1)
			go func() {
				defer wg.Done()
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(within))
				up, err := w.inClientsName(c)
				if err != nil {
					_, _ = io.WriteString(c, "by the sidecar: "+err.Error()+"\n")
					return
				}
				defer up.Close()
				_ = up.SetDeadline(time.Now().Add(within))
				_, _ = io.WriteString(c, "by the sidecar: ")
				wg.Add(1)
				go func() { defer wg.Done(); _, _ = io.Copy(up, c); _ = up.CloseWrite() }()
				_, _ = io.Copy(c, up)
			}()
		}
	}()
	t.Cleanup(func() { r.l.Close(); wg.Wait() })
}

func (w *world) inClientsName(c netio.Conn) (netio.Conn, error) {
	local, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		return nil, err
	}
	client, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return nil, err
	}
	to := "127.0.0.1"
	if client.Addr().Unmap().Is6() {
		to = "::1"
	}
	type result struct {
		c   netio.Conn
		err error
	}
	r := enter(w.host, root, func() result {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		c, err := netio.OS{}.DialFrom(ctx, client.Addr().Unmap(), intercept.DefaultMark, "tcp", at(to, int(local.Port())))
		return result{c, err}
	})
	return r.c, r.err
}

// TestTransparentNeedsRight: a transparent socket without CAP_NET_ADMIN says so.
func TestTransparentNeedsRight(t *testing.T) {
	w := newWorld(t, v4only)
	err := enter(w.host, nobody, func() error {
		l, err := netio.OS{}.ListenTransparent(context.Background(), "127.0.0.1:15006")
		if err == nil {
			l.Close()
		}
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "needs CAP_NET_ADMIN") {
		t.Error(err)
	}
}
