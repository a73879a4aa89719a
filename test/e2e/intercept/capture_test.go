//go:build linux

package intercept

import (
	"bufio"
	"fmt"
	"net"
	"testing"
	"time"
)

// TestCapture: who is captured, who is not, and what is left alone, in each
// combination of the families.
func TestCapture(t *testing.T) {
	for _, f := range []families{dual, v4only, v6only} {
		t.Run(f.name, func(t *testing.T) {
			w := newWorld(t, f)
			w.fakeSidecar()
			w.serve(w.peer, "peer", w.any(9000), w.any(53))
			w.serve(w.host, "app", w.any(8080), w.any(22), w.any(53))

			var open []net.Conn
			w.each(func(t *testing.T, host, peer, _, _ string) {
				for ns, addr := range map[string]string{w.host: at(peer, 9000), w.peer: at(host, 8080)} {
					c := enter(ns, app, func() net.Conn { c, _ := net.DialTimeout("tcp", addr, within); return c })
					if c == nil {
						t.Fatalf("no connection to %s before there were rules", addr)
					}
					open = append(open, c)
				}
			})
			defer func() {
				for _, c := range open {
					c.Close()
				}
			}()
			w.apply(w.config())

			w.each(func(t *testing.T, host, peer, virtual, loopback string) {
				// Outbound.
				w.want(t, w.host, app, "tcp", at(peer, 9000), "outbound "+at(peer, 9000))
				w.want(t, w.host, root, "tcp", at(peer, 9000), "outbound "+at(peer, 9000))
				w.want(t, w.host, app, "tcp", at(virtual, 80), "outbound "+at(virtual, 80))
				w.want(t, w.host, sidecar, "tcp", at(peer, 9000), "peer "+at(peer, 9000))
				w.want(t, w.host, app, "tcp", at(loopback, 8080), "app "+at(loopback, 8080))
				// An address of the host's own, too: the sidecar decides.
				w.want(t, w.host, app, "tcp", at(host, 8080), "outbound "+at(host, 8080))
				// DNS, and UDP other than DNS.
				w.want(t, w.host, app, "udp", at(peer, 53), "dns hello")
				w.want(t, w.host, app, "tcp", at(peer, 53), "dns "+at(peer, 53))
				w.want(t, w.host, app, "udp", at(loopback, 53), "dns hello")
				w.want(t, w.host, app, "tcp", at(loopback, 53), "dns "+at(loopback, 53))
				w.want(t, w.host, sidecar, "udp", at(peer, 53), "peer hello")
				w.want(t, w.host, sidecar, "tcp", at(peer, 53), "peer "+at(peer, 53))
				w.want(t, w.host, app, "udp", at(peer, 9000), "peer hello")
				// What nobody serves, and a capture port by itself.
				w.want(t, w.host, sidecar, "tcp", at(virtual, 80), "refused")
				w.want(t, w.host, app, "tcp", at(loopback, outPort), "refused")
				w.want(t, w.host, sidecar, "tcp", at(loopback, outPort), "refused")
				// Inbound.
				w.want(t, w.peer, app, "tcp", at(host, 8080), "inbound "+at(host, 8080))
				w.want(t, w.peer, app, "tcp", at(host, 7777), "inbound "+at(host, 7777))
				w.want(t, w.peer, app, "tcp", at(host, 22), "app "+at(host, 22))
				w.want(t, w.peer, app, "udp", at(host, 8080), "app hello")
				ping(t, w, peer)
			})
			for _, c := range open {
				if err := echo(c); err != nil {
					t.Errorf("a connection that was open before the rules: %s to %s: %v", c.LocalAddr(), c.RemoteAddr(), err)
				}
			}
		})
	}
}

// echo says that a connection still works.
func echo(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(within))
	if _, err := c.Write([]byte("still here\n")); err != nil {
		return err
	}
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		if line == "still here\n" {
			return nil
		}
	}
}

// TestCaptureFromOutside: nobody outside gets to a capture port or a virtual
// address by itself.
func TestCaptureFromOutside(t *testing.T) {
	w := newWorld(t, dual)
	w.fakeSidecar()
	w.serve(w.host, "app", w.any(80))
	w.ip("-n", w.peer, "route", "add", "240.0.0.0/4", "via", host4)
	w.ip("-n", w.peer, "route", "add", "fd70:6172:7265:6c::/96", "via", host6)
	w.apply(w.config())
	w.each(func(t *testing.T, host, _, virtual, _ string) {
		for _, addr := range []string{at(host, inPort), at(host, outPort), at(virtual, 80)} {
			got := enter(w.peer, app, func() string {
				c, err := net.DialTimeout("tcp", addr, 300*time.Millisecond)
				if err != nil {
					return "nothing"
				}
				c.Close()
				return fmt.Sprintf("a connection to %s", c.RemoteAddr())
			})
			if got != "nothing" {
				t.Errorf("from outside to %s: %s", addr, got)
			}
		}
	})
}
