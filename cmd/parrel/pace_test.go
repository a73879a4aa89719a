package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestPercentFor(t *testing.T) {
	for _, c := range []struct {
		live uint64
		want int
	}{{0, mostPace}, {1 << 20, mostPace}, {3 << 20, 700}, {8 << 20, 200}, {12 << 20, ownPace}, {500 << 20, ownPace}} {
		if got := percentFor(c.live); got != c.want {
			t.Errorf("%d MB live: %d %%, want %d %%", c.live>>20, got, c.want)
		}
	}
}

// The pace follows the live heap, both ways, and goes back to the runtime's.
func TestPaceFollowsTheHeap(t *testing.T) {
	t.Setenv("GOGC", "")
	before := debug.SetGCPercent(ownPace)
	defer debug.SetGCPercent(before)
	ctx, cancel := context.WithCancel(t.Context())
	pace(ctx)
	now := func() int {
		p := debug.SetGCPercent(ownPace)
		debug.SetGCPercent(p)
		return p
	}
	becomes := func(what string, ok func(int) bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !ok(now()); runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatalf("%s: the pace is %d %%", what, now())
			}
			runtime.GC()
		}
	}
	becomes("small heap", func(p int) bool { return p > ownPace })
	held := make([]byte, 32<<20)
	becomes("large heap", func(p int) bool { return p == ownPace })
	runtime.KeepAlive(held)
	held = nil
	becomes("small again", func(p int) bool { return p > ownPace })
	cancel()
	becomes("over", func(p int) bool { return p == ownPace })
}
