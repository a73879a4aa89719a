package main

import (
	"testing"
	"time"
)

func TestSpareIsGivenBack(t *testing.T) {
	var s spare
	now := time.Unix(1_000_000, 0)
	look := func(freeMB, usedMB uint64, want bool) {
		t.Helper()
		now = now.Add(lookAfter)
		h := heap{free: freeMB << 20, objects: usedMB << 20, live: usedMB << 20, allocated: s.allocated + 8<<20}
		if got := s.due(h, now); got != want {
			t.Errorf("%d MB free beside %d MB: %v, want %v", freeMB, usedMB, got, want)
		}
	}
	look(3, 1, false) // too little to be worth it
	look(40, 20, false)
	look(3, 20, false) // used again: there was no end of the burst
	look(40, 20, false)
	look(40, 20, true)
	for range int(spareRest/lookAfter) - 1 {
		look(40, 20, false) // each time costs a collection
	}
	look(40, 20, true)
	now = now.Add(spareRest)
	look(40, 100, false) // less than half of what is in use
	look(40, 100, false)
}

// What is dead, and stacks without a goroutine, are given back once nothing is
// allocated any more, and not before.
func TestSpareOfTheDead(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for name, h := range map[string]heap{
		"objects": {objects: 20 << 20, live: 4 << 20},
		"free":    {objects: 4 << 20, live: 4 << 20, free: 20 << 20},
		"stacks":  {objects: 15 << 20, live: 15 << 20, stacks: 40 << 20, goroutines: 20},
	} {
		var s spare
		for range 10 {
			now = now.Add(lookAfter)
			if h.allocated += 8 << 20; s.due(h, now) {
				t.Errorf("%s: given back while they are used", name)
			}
		}
		now = now.Add(lookAfter)
		if s.due(h, now) || !s.due(h, now.Add(lookAfter)) {
			t.Errorf("%s: not given back after two quiet looks", name)
		}
	}
	var s spare
	s.due(heap{stacks: 40 << 20, goroutines: 5000}, now)
	if s.due(heap{stacks: 40 << 20, goroutines: 5000}, now.Add(lookAfter)) {
		t.Error("stacks of goroutines at work were taken for spare ones")
	}
}
