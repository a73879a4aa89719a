package lb

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func seeded() func() uint64 { return rand.New(rand.NewPCG(7, 11)).Uint64 }

// set makes usable endpoints a, b, c … with these weights.
func set(weights ...uint32) []Entry {
	out := make([]Entry, len(weights))
	for i, w := range weights {
		out[i] = Entry{Endpoint: &Endpoint{Address: string(rune('a' + i))}, Weight: w, Usable: true}
	}
	return out
}

func sequence(p Picker, n int) string {
	var b strings.Builder
	for range n {
		b.WriteString(p.Pick(Info{}).Address)
	}
	return b.String()
}

var policies = map[string]resource.LBPolicy{
	"round robin":   {RoundRobin: &resource.RoundRobin{}},
	"random":        {Random: &resource.Random{}},
	"least request": {},
	"least of five": {LeastRequest: &resource.LeastRequest{ChoiceCount: 5}},
}

func TestRoundRobinSequences(t *testing.T) {
	for _, c := range []struct {
		weights []uint32
		want    string
	}{
		{[]uint32{1, 1, 1}, "abcabcabc"},
		{[]uint32{0, 0}, "abab"},
		{[]uint32{5, 1, 1}, "aaabcaaaaabcaa"},
		{[]uint32{1, 3}, "bab" + "b" + "bab" + "b"},
		{[]uint32{2, 4}, "babbab"},
		{[]uint32{10, 10}, "abab"},
	} {
		p := New(policies["round robin"], nil).Build(set(c.weights...), nil)
		if got := sequence(p, len(c.want)); got != c.want {
			t.Errorf("%v: %s, want %s", c.weights, got, c.want)
		}
	}
}

// Every prefix of a smooth sequence is within one turn of the ideal share.
func TestRoundRobinIsSmooth(t *testing.T) {
	weights := []uint32{7, 1, 13, 4, 4, 29}
	var sum float64
	for _, w := range weights {
		sum += float64(w)
	}
	p := New(policies["round robin"], nil).Build(set(weights...), nil)
	got := map[string]float64{}
	for n := 1; n < 500; n++ {
		got[p.Pick(Info{}).Address]++
		for i, w := range weights {
			ideal := float64(n) * float64(w) / sum
			if d := math.Abs(got[string(rune('a'+i))] - ideal); d > 1.5 {
				t.Fatalf("after %d picks endpoint %d is %.2f turns off", n, i, d)
			}
		}
	}
}

func TestRebuildGoesOn(t *testing.T) {
	pol := New(policies["round robin"], nil)
	s := set(1, 1, 1)
	p := pol.Build(s, nil)
	got := sequence(p, 1)
	for range 5 {
		p = pol.Build(s, p)
		got += sequence(p, 1)
	}
	p = pol.Build(nil, p)
	if p.Pick(Info{}) != nil {
		t.Fatal("picked from nothing")
	}
	if got += sequence(pol.Build(s, p), 1); got != "abcabca" {
		t.Errorf("rebuilds give %s", got)
	}
}

func TestWeightsGiveShares(t *testing.T) {
	const n = 40_000
	for name, c := range policies {
		t.Run(name, func(t *testing.T) {
			p := New(c, seeded()).Build(set(1, 3), nil)
			a := strings.Count(sequence(p, n), "a")
			if share := float64(a) / n; share < 0.23 || share > 0.27 {
				t.Errorf("weight 1 of 4 got %.3f", share)
			}
		})
	}
}

func TestHugeWeightsStayBounded(t *testing.T) {
	p := New(policies["round robin"], nil).Build(set(65535, 1, 65534), nil).(*rrPicker)
	if n := len(p.turns); n > maxSchedule+100 {
		t.Fatalf("a schedule of %d turns", n)
	}
	if !strings.Contains(sequence(p, len(p.turns)), "b") {
		t.Error("the lightest endpoint never gets a turn")
	}
}

func TestPriorityAndUsability(t *testing.T) {
	for name, c := range policies {
		t.Run(name, func(t *testing.T) {
			s := set(1, 1, 1, 1)
			s[0].Priority, s[1].Priority = 0, 0
			s[2].Priority, s[3].Priority = 1, 2
			pol := New(c, seeded())
			s[0].Usable = false
			p := pol.Build(s, nil)
			if got := sequence(p, 20); strings.Trim(got, "b") != "" {
				t.Errorf("one of priority 0 is usable, yet %s", got)
			}
			s[1].Usable = false
			if got := sequence(pol.Build(s, p), 20); strings.Trim(got, "c") != "" {
				t.Errorf("priority 0 is down, yet %s", got)
			}
			s[2].Usable, s[3].Usable = false, false
			if e := pol.Build(s, p).Pick(Info{}); e != nil {
				t.Errorf("none is usable, yet %s", e.Address)
			}
		})
	}
}

func TestAvoidPrefersOthers(t *testing.T) {
	for name, c := range policies {
		t.Run(name, func(t *testing.T) {
			s := set(1, 9, 1)
			p := New(c, seeded()).Build(s, nil)
			avoid := []*Endpoint{s[1].Endpoint, s[0].Endpoint}
			for range 200 {
				if e := p.Pick(Info{Avoid: avoid}); e != s[2].Endpoint {
					t.Fatalf("picked %s, which was tried", e.Address)
				}
			}
			all := append(avoid, s[2].Endpoint)
			if p.Pick(Info{Avoid: all}) == nil {
				t.Fatal("all were tried: any is better than none")
			}
		})
	}
}

// A closed loop of 50 clients in virtual steps: one endpoint of ten takes ten
// times as long.
func TestSlowEndpointGetsLess(t *testing.T) {
	s := set(1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
	p := New(resource.LBPolicy{}, seeded()).Build(s, nil)
	type job struct {
		e    *Endpoint
		left int
	}
	jobs := make([]job, 50)
	count := map[*Endpoint]int{}
	total := 0
	for range 2000 { // milliseconds
		for i := range jobs {
			j := &jobs[i]
			if j.left--; j.left > 0 {
				continue
			}
			if j.e != nil {
				j.e.End()
			}
			j.e, j.left = p.Pick(Info{}), 5
			if j.e == s[0].Endpoint {
				j.left = 50
			}
			j.e.Begin()
			count[j.e]++
			total++
		}
	}
	if share := float64(count[s[0].Endpoint]) / float64(total); share > 0.05 {
		t.Errorf("the slow endpoint got %.3f, more than half of its 0.100", share)
	}
}

// Weighted least request keeps the shares while requests overlap.
func TestWeightedLeastRequestUnderLoad(t *testing.T) {
	for _, inHand := range []int{2, 8, 64} {
		s := set(1, 3)
		p := New(resource.LBPolicy{}, seeded()).Build(s, nil)
		r := rand.New(rand.NewPCG(1, 1))
		var open []*Endpoint
		a := 0
		for range 40_000 {
			if len(open) >= inHand {
				i := r.IntN(len(open))
				open[i].End()
				open[i] = open[len(open)-1]
				open = open[:len(open)-1]
			}
			e := p.Pick(Info{})
			e.Begin()
			open = append(open, e)
			if e == s[0].Endpoint {
				a++
			}
		}
		if share := float64(a) / 40_000; share < 0.23 || share > 0.27 {
			t.Errorf("%d in hand: weight 1 of 4 got %.3f", inHand, share)
		}
	}
}

func TestPickWhileRebuilding(t *testing.T) {
	pol := New(policies["round robin"], nil)
	s := set(1, 2, 3)
	p := pol.Build(s, nil)
	var wg sync.WaitGroup
	counts := make([]int, 4)
	for i := range counts {
		wg.Go(func() {
			for range 3000 {
				if p.Pick(Info{}) != nil {
					counts[i]++
				}
			}
		})
	}
	for range 100 {
		pol.Build(s, p)
	}
	wg.Wait()
	if counts[0]+counts[1]+counts[2]+counts[3] != 12000 {
		t.Error(counts)
	}
}

func TestPickAllocatesNothing(t *testing.T) {
	for name, c := range policies {
		p := New(c, seeded()).Build(set(1, 2, 3, 4), nil)
		in := Info{Avoid: []*Endpoint{{}}}
		if n := testing.AllocsPerRun(100, func() { p.Pick(in) }); n != 0 {
			t.Errorf("%s: %v allocations a pick", name, n)
		}
	}
}

func BenchmarkPick10k(b *testing.B) {
	for name, c := range policies {
		for _, weighted := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/weighted=%v", name, weighted), func(b *testing.B) {
				w := make([]uint32, 10_000)
				for i := range w {
					w[i] = 1
					if weighted {
						w[i] = uint32(i%7 + 1)
					}
				}
				p := New(c, seeded()).Build(set(w...), nil)
				b.ReportAllocs()
				for b.Loop() {
					p.Pick(Info{})
				}
			})
		}
	}
}
