package netio

import (
	"testing"
	"testing/synctest"
)

// A peer that has ended its direction may still be reading; one that has reset
// the connection is not.
func TestGone(t *testing.T) {
	each := func(t *testing.T, client, server Conn, settle func()) {
		if Gone(server) {
			t.Error("a quiet connection")
		}
		_ = client.CloseWrite()
		if _, err := server.Read(make([]byte, 1)); err == nil {
			t.Error("no end")
		}
		if Gone(server) {
			t.Error("a peer that has ended its direction")
		}
		_ = client.Reset()
		settle()
		if !Gone(server) {
			t.Error("a peer that has reset the connection")
		}
		_ = server.Close()
		if !Gone(server) {
			t.Error("a closed connection")
		}
	}
	connect := func(t *testing.T, n Net, address string) (client, server Conn) {
		l, err := n.Listen(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		if client, err = n.Dial(t.Context(), "tcp", l.Addr().String()); err != nil {
			t.Fatal(err)
		}
		if server, err = l.AcceptConn(); err != nil {
			t.Fatal(err)
		}
		return client, server
	}
	t.Run("memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, s := connect(t, NewMemory().Host("h", "10.0.0.1"), "10.0.0.1:80")
			each(t, c, s, synctest.Wait)
		})
	})
	t.Run("kernel", func(t *testing.T) {
		c, s := connect(t, OS{}, "127.0.0.1:0")
		each(t, c, s, func() { // the loopback delivers within the call
			_ = s.WaitReadable()
		})
	})
}
