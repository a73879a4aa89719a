package filter

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Deps are what filters may use.
type Deps struct{ Log *slog.Logger }

// Entry is one line of the registry: a kind of filter and how it is made.
type Entry struct {
	// Kind names the filter's kind for messages.
	Kind string
	// Configured says whether the resource is of this kind.
	Configured func(*resource.HTTPFilter) bool
	// New makes the filter; a nil filter has no part in any exchange (the
	// router, rules that enforce nothing).
	New func(*resource.HTTPFilter, Deps) (Filter, error)
}

// Chain is the filters of one connection manager, built. Immutable.
type Chain struct{ filters []Filter }

// Build makes the chain that the configuration says, with the registry's
// filters. The last filter must be the router and no other may be. Its error
// names the filter by its place and name.
func Build(registry []Entry, fs []resource.HTTPFilter, d Deps) (*Chain, error) {
	c := new(Chain)
	for i := range fs {
		f := &fs[i]
		last := i == len(fs)-1
		if (f.Router != nil) != last {
			if last {
				return nil, fmt.Errorf("filter: http_filters[%d] %q is the last but not the router: add envoy.filters.http.router after it", i, f.Name)
			}
			return nil, fmt.Errorf("filter: http_filters[%d] %q is a router before the end: the router must be the last filter", i, f.Name)
		}
		if last {
			return c, nil
		}
		e := find(registry, f)
		if e == nil {
			return nil, fmt.Errorf("filter: http_filters[%d] %q is of a kind that this sidecar does not run: remove it or upgrade the sidecar", i, f.Name)
		}
		built, err := e.New(f, d)
		if err != nil {
			return nil, fmt.Errorf("filter: http_filters[%d] %q (%s): %w", i, f.Name, e.Kind, err)
		}
		if built != nil {
			c.filters = append(c.filters, built)
		}
	}
	return nil, fmt.Errorf("filter: http_filters is empty: the router must be its last filter")
}

func find(registry []Entry, f *resource.HTTPFilter) *Entry {
	for i := range registry {
		if registry[i].Configured(f) {
			return &registry[i]
		}
	}
	return nil
}

// Len is the number of filters that take part in exchanges.
func (c *Chain) Len() int { return len(c.filters) }

// Run is one exchange's way through a chain. The zero value is an exchange of
// an empty chain; it costs nothing until a filter keeps state.
type Run struct {
	filters []Filter
	seen    int // filters whose Request was called: those take part in Response and Done
	states  []any
}

// Start begins an exchange, in place: what r was before is over.
func (c *Chain) Start(r *Run) {
	r.filters, r.seen = c.filters, 0
	if r.states != nil {
		r.states = nil
	}
}

// Request calls the filters in order. It stops at the first that answers or
// fails.
func (r *Run) Request(ctx context.Context, x *Exchange, req *stream.Request) (*stream.Response, error) {
	if len(r.filters) == 0 { // inlined: an empty chain costs next to nothing
		return nil, nil
	}
	return r.request(ctx, x, req)
}

func (r *Run) request(ctx context.Context, x *Exchange, req *stream.Request) (*stream.Response, error) {
	for i, f := range r.filters {
		r.seen = i + 1
		resp, state, err := f.Request(ctx, x, req)
		if state != nil {
			if r.states == nil {
				r.states = make([]any, len(r.filters))
			}
			r.states[i] = state
		}
		if resp != nil || err != nil {
			return resp, err
		}
	}
	return nil, nil
}

// Response calls the filters that saw the request, in reverse order.
func (r *Run) Response(ctx context.Context, x *Exchange, resp *stream.Response) error {
	if r.seen == 0 {
		return nil
	}
	return r.response(ctx, x, resp)
}

func (r *Run) response(ctx context.Context, x *Exchange, resp *stream.Response) error {
	for i := r.seen - 1; i >= 0; i-- {
		if err := r.filters[i].Response(ctx, x, r.state(i), resp); err != nil {
			return err
		}
	}
	return nil
}

// Done calls the filters that saw the request, in reverse order, each once
// whatever happens: where one panics, a further call goes on with the next.
func (r *Run) Done(x *Exchange) {
	if r.seen != 0 {
		r.done(x)
	}
}

func (r *Run) done(x *Exchange) {
	for r.seen > 0 {
		r.seen--
		r.filters[r.seen].Done(x, r.state(r.seen))
	}
}

// Over says that no filter waits for Done.
func (r *Run) Over() bool { return r.seen == 0 }

func (r *Run) state(i int) any {
	if r.states == nil {
		return nil
	}
	return r.states[i]
}
