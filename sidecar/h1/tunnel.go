package h1

import (
	"io"
	"sync"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// tunnel is a connection after an upgrade: what came behind the head first,
// then the connection's own bytes. One goroutine reads, one writes.
type tunnel struct {
	c    netio.Conn
	in   *input
	once sync.Once
	over func() // the end of the exchange; nil: the codec sees it otherwise
}

var _ stream.Tunnel = (*tunnel)(nil)

func (t *tunnel) Read(p []byte) (int, error) {
	in := t.in
	if in.empty() || len(p) == 0 {
		return in.read(p)
	}
	n := copy(p, in.b[in.r:in.w])
	in.r += n
	return n, nil
}

func (t *tunnel) Write(p []byte) (int, error) { return t.c.Write(p) }
func (t *tunnel) CloseWrite() error           { return t.c.CloseWrite() }

func (t *tunnel) Close() error {
	err := t.c.Close()
	if t.over != nil {
		t.once.Do(t.over)
	}
	return err
}

var _ io.ReadWriteCloser = (*tunnel)(nil)
