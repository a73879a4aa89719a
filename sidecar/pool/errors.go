package pool

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// Kind is what went wrong with an endpoint.
type Kind uint8

const (
	Connect        Kind = iota + 1 // refused, unreachable, reset while connecting
	ConnectTimeout                 // neither yes nor no within the connect time-out
	TLS                            // handshake failed or the peer is not who it should be
	NoIdentity                     // our own certificate cannot be used
	Refused                        // HTTP/2 refused the stream: it was not processed (RFC 9113, 8.7)
	Reset                          // the stream or connection ended before a response head
	Protocol                       // what came back is not the protocol
	Overflow                       // no room for another connection
	Cancelled                      // the caller's context ended
	Gone                           // the pool takes no more requests
	Leaving                        // the connection was going away and did not take the request (RFC 9113, 6.8)
)

// Error is why a request or a connection failed at one endpoint.
type Error struct {
	Kind   Kind
	Detail string
	Reason mtls.Reason // of TLS and NoIdentity, "" where only the other side knows
	// Sent says that some of the request may have reached the endpoint.
	Sent bool
	Err  error
}

func (e *Error) Error() string { return "pool: " + e.Detail }

func (e *Error) Unwrap() error { return e.Err }

// connectError types a failed dial. ctx is the caller's, dctx the one with the
// time-out.
func connectError(ctx, dctx context.Context, err error, limit time.Duration) *Error {
	var ne net.Error
	switch {
	case ctx.Err() != nil:
		return cancelled(ctx, err)
	case dctx.Err() != nil:
		return &Error{Kind: ConnectTimeout, Err: err, Detail: fmt.Sprintf("no connection within %s", limit)}
	case errors.As(err, &ne) && ne.Timeout():
		return &Error{Kind: ConnectTimeout, Err: err, Detail: err.Error()}
	}
	return &Error{Kind: Connect, Err: err, Detail: err.Error()}
}

// handshakeError types a failed TLS handshake.
func handshakeError(ctx, hctx context.Context, err error, limit time.Duration) *Error {
	reason, known := mtls.ReasonOf(err)
	var own *mtls.IdentityError
	switch {
	case errors.As(err, &own):
		return &Error{Kind: NoIdentity, Reason: reason, Err: err, Detail: err.Error()}
	case known:
		return &Error{Kind: TLS, Reason: reason, Err: err, Detail: err.Error()}
	case ctx.Err() != nil:
		return cancelled(ctx, err)
	case hctx.Err() != nil:
		return &Error{Kind: ConnectTimeout, Err: err, Detail: fmt.Sprintf("no TLS handshake within %s", limit)}
	}
	return &Error{Kind: TLS, Err: err, Detail: "TLS handshake: " + err.Error()}
}

func cancelled(ctx context.Context, err error) *Error {
	return &Error{Kind: Cancelled, Err: context.Cause(ctx), Detail: fmt.Sprintf("the caller gave up: %v (%v)", context.Cause(ctx), err)}
}

// errorOf is what a codec's failure means to those who choose endpoints.
func errorOf(f *stream.Failure) *Error {
	e := &Error{Detail: f.Error(), Sent: f.Sent, Err: f}
	switch f.Kind {
	case stream.FailedRefused:
		e.Kind = Refused
	case stream.FailedProtocol:
		e.Kind = Protocol
	case stream.FailedCancelled, stream.FailedRequest:
		e.Kind = Cancelled
	default: // stale, reset, gone
		e.Kind = Reset
	}
	return e
}
