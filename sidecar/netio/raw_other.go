//go:build !linux

package netio

import "net"

const tellsWaits = false

func (c *osConn) recv(p []byte) (int, error) { return c.kernelConn.Read(p) }
func (c *osConn) send(p []byte) (int, error) { return c.kernelConn.Write(p) }

func (c *osConn) recvBuf(big bool) (taken, int, error) {
	if err := c.waitReadable(); err != nil {
		return taken{}, 0, err
	}
	t := take(big)
	n, err := c.kernelConn.Read(t.bytes())
	if n == 0 {
		t.release()
		return taken{}, 0, err
	}
	return t, n, nil
}

func (c *osConn) sendv(bufs [][]byte) (int64, error) {
	nb := append(net.Buffers(nil), bufs...)
	return nb.WriteTo(c.kernelConn)
}

func (c *osConn) waitReadable() error {
	first := true
	return c.rc.Read(func(uintptr) bool { // called again once the poller says readable
		ready := !first
		first = false
		return ready
	})
}

// alive cannot tell here; an exchange on a connection that is over fails and is
// tried again.
func (c *osConn) alive() bool { return true }
