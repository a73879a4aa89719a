package cluster

import (
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
	if g.limit.Load() < 0 {
		g.n.Add(1)
		return true
	}
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

// breakers are the limits of the pools (envoy.config.cluster.v3.CircuitBreakers):
// a request that finds no room for a connection waits as a pending one.
var _ pool.Limits = (*breakers)(nil)

// Take implements [pool.Limits].
func (b *breakers) Take() bool { return b.connections.take() }

// Give implements [pool.Limits].
func (b *breakers) Give() {
	b.connections.give()
	b.wake()
}

// Enter implements [pool.Limits].
func (b *breakers) Enter() error {
	if b.pending.take() {
		return nil
	}
	return &pool.Error{Kind: pool.Overflow, Detail: "the limit of connections and pending requests is reached"}
}

// Leave implements [pool.Limits].
func (b *breakers) Leave() { b.pending.give() }

// Freed implements [pool.Limits].
func (b *breakers) Freed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.freed == nil {
		b.freed = make(chan struct{})
	}
	return b.freed
}
