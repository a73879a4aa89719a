package dns

import (
	"net/netip"
	"sync"
	"time"
)

// maxSources is how many addresses have a budget of their own; more share one.
const maxSources = 1024

// limiter bounds own answers per source address: a token bucket each that holds
// one second's worth.
type limiter struct {
	rate float64 // tokens a second; read-only

	mu      sync.Mutex
	buckets map[netip.Addr]bucket // guarded by mu
	rest    bucket                // guarded by mu: of addresses beyond maxSources
}

type bucket struct {
	left float64
	at   time.Time
}

func newLimiter(rate float64) *limiter {
	return &limiter{rate: rate, buckets: map[netip.Addr]bucket{}}
}

// allow takes one token of a source's.
func (l *limiter) allow(a netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.buckets[a]
	if !ok && len(l.buckets) >= maxSources && !l.forget(now) {
		return l.rest.take(l.rate, now)
	}
	yes := b.take(l.rate, now)
	l.buckets[a] = b
	return yes
}

// take fills the bucket up to now and takes one token.
func (b *bucket) take(rate float64, now time.Time) bool {
	if b.at.IsZero() {
		b.left = rate
	} else {
		b.left = min(rate, b.left+rate*now.Sub(b.at).Seconds())
	}
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// forget drops the buckets that are full again, and says whether there is room.
func (l *limiter) forget(now time.Time) bool {
	for a, b := range l.buckets {
		if now.Sub(b.at) >= time.Second {
			delete(l.buckets, a)
		}
	}
	return len(l.buckets) < maxSources
}
