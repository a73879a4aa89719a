package cluster

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/parrel-mesh/parrel/sidecar/pool"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// gauge counts what is open, up to a limit that may change at any time.
type gauge struct {
	n     atomic.Int64
	limit atomic.Int64 // -1: none
}

// take counts one in if there is room: never more than the limit are in at a
// time, whatever the race.
func (g *gauge) take() bool {
	for {
		n, limit := g.n.Load(), g.limit.Load()
		if limit >= 0 && n >= limit {
			return false
		}
		if g.n.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (g *gauge) give() { g.n.Add(-1) }

// breakers are the cluster's limits (envoy.config.cluster.v3.CircuitBreakers).
// There is no limit that was not configured.
type breakers struct {
	connections, pending, requests, retries gauge

	mu    sync.Mutex
	freed chan struct{} // closed when a connection ended or a limit changed; nil: nobody waits
}

func (b *breakers) set(r *resource.Breakers) {
	if r == nil {
		r = &resource.Breakers{}
	}
	for _, x := range []struct {
		g *gauge
		v *uint32
	}{{&b.connections, r.MaxConnections}, {&b.pending, r.MaxPendingRequests}, {&b.requests, r.MaxRequests}, {&b.retries, r.MaxRetries}} {
		limit := int64(-1)
		if x.v != nil {
			limit = int64(*x.v)
		}
		x.g.limit.Store(limit)
	}
	b.wake()
}

func (b *breakers) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.freed != nil {
		close(b.freed)
		b.freed = nil
	}
}

func (b *breakers) waitFreed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.freed == nil {
		b.freed = make(chan struct{})
	}
	return b.freed
}

func (b *breakers) release() {
	b.connections.give()
	b.wake()
}

// slot is pool.Hooks.Slot: it waits for room for a connection as a pending
// request.
func (b *breakers) slot(ctx context.Context) (func(), error) {
	if b.connections.take() {
		return b.release, nil
	}
	if !b.pending.take() {
		return nil, overflow("connections and pending requests")
	}
	defer b.pending.give()
	for {
		freed := b.waitFreed()
		if b.connections.take() {
			return b.release, nil
		}
		select {
		case <-freed:
		case <-pool.Served(ctx):
			return nil, pool.ErrServed()
		case <-ctx.Done():
			return nil, &pool.Error{Kind: pool.Cancelled, Err: context.Cause(ctx), Detail: "the caller gave up while waiting for a connection"}
		}
	}
}

func overflow(what string) *pool.Error {
	return &pool.Error{Kind: pool.Overflow, Detail: "the limit of " + what + " is reached"}
}
