package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// How memory is given back: looked at every lookAfter, given back when there was
// too much to spare spareLooks times in a row, and not sooner than spareRest
// after the last time, since each time costs a garbage collection.
const (
	lookAfter  = 500 * time.Millisecond
	spareLooks = 2
	spareRest  = 10 * time.Second
	spareLeast = 4 << 20 // bytes that are left to the runtime at any rate
	// While less is allocated from look to look, what is dead stays dead: nobody
	// is about to use its room again.
	quietBelow = 1 << 20
	// stackEach is what a goroutine at work may need; more are stacks of
	// goroutines that have ended, which a collection frees.
	stackEach = 16 << 10
)

// giveBack returns to the system what a burst has left, and ends with ctx: free
// heap, and by giving pages back. The runtime keeps what the next collection may
// need, which after some thousand new connections is a multiple of what they
// hold once they are idle.
func giveBack(ctx context.Context, pages func()) {
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"},
		{Name: "/gc/heap/allocs:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}, {Name: "/sched/goroutines:goroutines"},
	}
	tick := time.NewTicker(lookAfter)
	defer tick.Stop()
	var s spare
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			metrics.Read(samples)
			v := func(i int) uint64 { return samples[i].Value.Uint64() }
			if s.due(heap{free: v(0), objects: v(1), live: v(2), allocated: v(3), stacks: v(4), goroutines: v(5)}, now) {
				debug.FreeOSMemory()
				pages()
			}
		}
	}
}

// heap is what a look found, in bytes but for goroutines.
type heap struct {
	free, objects uint64
	live          uint64 // after the last collection
	allocated     uint64 // since the process began
	stacks        uint64
	goroutines    uint64
}

// spare is what could be given back. In a process at work the collector's pace
// is about to use as much as [leastHeap] again; in a quiet one all of it is
// spare, and so are objects that may be dead and stacks of goroutines that have
// ended.
func (h heap) spare(quiet bool) uint64 {
	if !quiet {
		return h.free - min(h.free, leastHeap)
	}
	return h.free + h.objects - min(h.live, h.objects) + h.stacks - min(h.goroutines*stackEach, h.stacks)
}

// spare decides when memory is given back.
type spare struct {
	looks     int    // that found too much, in a row
	allocated uint64 // at the last look
	last      time.Time
}

// due is told of one look.
func (s *spare) due(h heap, now time.Time) bool {
	quiet := h.allocated-s.allocated < quietBelow
	s.allocated = h.allocated
	if n := h.spare(quiet); n < spareLeast || n < h.live/2 && n < h.objects/2 {
		s.looks = 0
		return false
	}
	s.looks++
	if s.looks < spareLooks || !s.last.IsZero() && now.Sub(s.last) < spareRest {
		return false
	}
	s.looks, s.last = 0, now
	return true
}
