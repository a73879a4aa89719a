package l4

import (
	"context"
	"errors"

	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

var _ listener.Opener = (*Engine)(nil)

var errAbandoned = errors.New("l4: the client speaks another protocol")

// opening is an upstream connection that began before the client spoke.
type opening struct {
	cancel    context.CancelCauseFunc
	connected chan struct{} // closed when what follows is set
	r         *telemetry.Record
	up        netio.Conn
	err       error

	heard chan struct{} // closed when the upstream has spoken or has ended
}

// Open implements [listener.Opener].
func (e *Engine) Open(ctx context.Context, c *listener.Conn, heard func(error)) listener.Opening {
	ctx, cancel := context.WithCancelCause(ctx)
	o := &opening{cancel: cancel, connected: make(chan struct{}), r: e.record(c), heard: make(chan struct{})}
	inbound, redirected := c.Inbound, c.Redirected
	go func() {
		defer close(o.heard)
		o.up, o.err = e.connect(ctx, inbound, redirected, o.r)
		cancel(nil) // it is for connecting only
		close(o.connected)
		if o.err != nil {
			heard(o.err)
			return
		}
		_ = o.up.WaitReadable() // a failure is the pipe's to find
		heard(nil)
	}()
	return o
}

// Abandon implements [listener.Opening]. Connecting ends with its context, and
// waiting with the connection.
func (o *opening) Abandon() {
	o.cancel(errAbandoned)
	<-o.connected
	if o.up != nil {
		_ = o.up.Close()
	}
	<-o.heard
}
