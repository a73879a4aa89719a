package netio

import (
	"testing"

	"golang.org/x/sys/unix"
)

// What a listener accepts, and what is dialled, has keep-alive and no delay,
// whoever set them.
func TestSocketOptions(t *testing.T) {
	ln, err := OS{}.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dialled, err := OS{}.Dial(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer dialled.Close()
	accepted, err := ln.AcceptConn()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	for name, c := range map[string]Conn{"accepted": accepted, "dialled": dialled} {
		rc, _ := c.Raw()
		for _, o := range []struct {
			name             string
			level, opt, want int
		}{
			{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 10},
			{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 5},
			{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
			{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		} {
			var got int
			var gerr error
			if err := rc.Control(func(fd uintptr) { got, gerr = unix.GetsockoptInt(int(fd), o.level, o.opt) }); err != nil || gerr != nil {
				t.Fatal(err, gerr)
			}
			if got != o.want {
				t.Errorf("%s: %s is %d, want %d", name, o.name, got, o.want)
			}
		}
	}
}
