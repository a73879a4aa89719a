package filter

import (
	"context"
	"net/netip"

	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/decide"
)

// Exchange is one request and its response on their way through the filters.
// It belongs to one goroutine at a time and is valid until Done returned.
type Exchange struct {
	// Facts are what decisions know beyond the head. A filter may add claims
	// and metadata, then ask the chain to route again with ClearRoute.
	Facts *decide.Facts
	// Route is the verdict in force; nil before routing and after ClearRoute.
	Route *decide.RouteVerdict
	// Local and Remote are the downstream connection's addresses.
	Local, Remote netip.AddrPort
	// Record is filled as the exchange goes on and written at its end.
	Record *telemetry.Record

	view View
}

// Head is the request's head as decisions see it, valid until the exchange is
// over. A filter may change the head and ask again: what is decided on is always
// what stands in the head.
func (x *Exchange) Head(req *stream.Request) *View {
	if x.view.head != &req.Head {
		x.view.head, x.view.from, x.view.authority = &req.Head, "", ""
	}
	return &x.view
}

// Reset makes x that of a new exchange: Facts and Record stay, all else is as in
// the zero value.
func (x *Exchange) Reset() {
	x.Route = nil
	x.view.head = nil
}

// ClearRoute makes the chain decide the route again before it is used.
func (x *Exchange) ClearRoute() { x.Route = nil }

// Filter is one configured HTTP filter of one filter chain. It is shared by all
// exchanges of the chain: state of one exchange lives in what Request returns.
type Filter interface {
	// Request is called with the request's head before anything is sent
	// upstream. A nil response lets the request go on. state is handed to
	// Response and Done.
	Request(ctx context.Context, x *Exchange, req *stream.Request) (resp *stream.Response, state any, err error)
	// Response is called with the response's head before anything is sent
	// downstream; also for responses that a later filter or the mesh made.
	Response(ctx context.Context, x *Exchange, state any, resp *stream.Response) error
	// Done is called once at the end, whatever happened.
	Done(x *Exchange, state any)
}

// Abort is how a filter, or the engine, ends an exchange with a response that
// the mesh makes.
type Abort struct {
	Status int
	Code   telemetry.Code
	Detail string // for the log; never shown to the client
}

func (a *Abort) Error() string { return a.Detail }
