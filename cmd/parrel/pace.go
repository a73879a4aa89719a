package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// leastHeap is the heap that the collector waits for. A sidecar's live heap is
// some 3 MB: with the runtime's own pace, twice the live heap, a TLS handshake,
// which allocates about 50 KB, would make it collect each hundred times, and an
// eighth of a handshake's CPU would be the collector's.
const leastHeap = 24 << 20

// Bounds of the pace, in percent of the live heap.
const (
	ownPace  = 100 // the runtime's own
	mostPace = 1000
)

// pace makes the collector wait for leastHeap while the live heap is small, and
// leaves it its own pace once it is not. A memory limit stays above it all. What
// lies dead in a process that has become quiet is [giveBack]'s. It ends with ctx.
func pace(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return // somebody knows better
	}
	p := &pacer{ctx: ctx, percent: ownPace, samples: []metrics.Sample{{Name: "/gc/heap/live:bytes"}}}
	p.collected()
}

// pacer hears of each collection by a finaliser of its own: on the runtime's
// goroutine for them.
type pacer struct {
	ctx     context.Context
	percent int
	samples []metrics.Sample
}

// collected sets the pace for the next collection.
func (p *pacer) collected() {
	metrics.Read(p.samples)
	want := percentFor(p.samples[0].Value.Uint64())
	if p.ctx.Err() != nil {
		want = ownPace
	}
	if d := want - p.percent; d > p.percent/8 || -d > p.percent/8 || want == ownPace && d != 0 { // it stops the world for a moment
		debug.SetGCPercent(want)
		p.percent = want
	}
	if p.ctx.Err() == nil {
		runtime.SetFinalizer(p, (*pacer).collected)
	}
}

// percentFor is the pace for so many bytes of live heap.
func percentFor(live uint64) int {
	if live >= leastHeap/2 {
		return ownPace
	}
	return int(min((leastHeap-live)*100/max(live, 1), mostPace))
}
