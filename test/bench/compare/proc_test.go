package main

import (
	"math"
	"os"
	"testing"
)

func near(a, b float64) bool { return math.Abs(a-b) < 1e-9 }

func TestProcessTime(t *testing.T) {
	got, err := processTime("4242 (a (very) odd name) S 1 4242 4242 0 -1 4194560 1201 0 0 0 150 250 7 8 20 0 5 0 100 1 2 3")
	if err != nil || !near(got, 4) {
		t.Errorf("got %v, %v; want 4 s", got, err)
	}
	for _, bad := range []string{"", "1 (x) S 1 2", "1 (x) S 1 2 3 4 5 6 7 8 9 10 user system"} {
		if v, err := processTime(bad); err == nil {
			t.Errorf("%q gave %v and no error", bad, v)
		}
	}
}

func TestCoreTimes(t *testing.T) {
	got, err := coreTimes("cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 100 10 50 1000 20 5 35 7 0 0\ncpu1 1 2 3 4 5 6 7 8 0 0\nintr 5\n")
	if err != nil || len(got) != 2 || !near(got[0].busy, 2) || !near(got[0].steal, .07) || !near(got[1].busy, .19) || !near(got[1].steal, .08) {
		t.Errorf("got %v, %v", got, err)
	}
	if v, err := coreTimes("intr 5\n"); err == nil {
		t.Errorf("no cores gave %v and no error", v)
	}
}

func TestSince(t *testing.T) {
	before := clock{proxy: 1, server: 2, children: 3, cores: map[int]coreTime{0: {busy: 10}, 1: {busy: 20}}}
	after := clock{proxy: 5, server: 3, children: 5, cores: map[int]coreTime{0: {busy: 14, steal: .5}, 1: {busy: 25}}}
	got := after.since(before)
	if !near(got.proxy, 4) || !near(got.core, 5) || !near(got.both, 9) || !near(got.others, 9.5-4-1-2) || !near(got.beside, 4.5-1-2) {
		t.Errorf("got %+v", got)
	}
}

// The kernel of this machine writes what the readers expect.
func TestReadsThisMachine(t *testing.T) {
	c, err := read([]int{os.Getpid()}, tree(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.cores) == 0 || c.cores[0].busy <= 0 {
		t.Errorf("the cores did nothing since the machine started: %+v", c.cores)
	}
	if rssOf([]int{os.Getpid()}) < 1 {
		t.Error("this process has less than 1 MB")
	}
	if _, err := read([]int{1 << 30}, nil); err == nil {
		t.Error("a process that is not there has a time")
	}
}
