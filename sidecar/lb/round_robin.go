package lb

import (
	"container/heap"
	"sync/atomic"
)

// roundRobin is smooth weighted round robin.
//
// Why: an endpoint of weight w gets exactly w of every sum(w) picks, spread
// evenly (a a b a c a a for 5:1:1), so that a small service is not hit in bursts.
//
// Conditions: the order is worked out at Build, by earliest deadline first
// (Liu and Layland 1973: endpoint i is due at (k+1/2)/w for its k-th turn), and
// walked with one atomic counter: a pick costs O(1) and takes no lock. Weights
// are divided by their greatest common divisor; a schedule that would be longer
// than maxSchedule + 4n is scaled down to it, each weight staying at least 1.
//
// First start: the walk begins at the first turn.
//
// Recovery: a rebuild goes on at the counter of its predecessor, so that many
// rebuilds in a row do not favour the first endpoints.
type roundRobin struct{}

const maxSchedule = 1 << 16

type rrPicker struct {
	next  *atomic.Uint64 // shared with the successors
	eps   []*Endpoint
	turns []uint32 // indexes of eps; nil: equal weights, in order
}

func (roundRobin) Build(entries []Entry, previous Picker) Picker {
	set := choose(entries)
	p := &rrPicker{next: new(atomic.Uint64), eps: handles(set)}
	if prev, ok := previous.(*rrPicker); ok {
		p.next = prev.next
	}
	if len(set) > 0 && !equalWeights(set) {
		p.turns = schedule(weightsOf(set))
	}
	return p // also when empty, so that the counter survives
}

func (p *rrPicker) Pick(in Info) *Endpoint {
	n := uint64(len(p.eps))
	if n == 0 {
		return nil
	}
	i := p.next.Add(1) - 1
	at := i % n
	if p.turns != nil {
		at = uint64(p.turns[i%uint64(len(p.turns))])
	}
	e := p.eps[at]
	if len(in.Avoid) > 0 && avoided(e, in.Avoid) {
		if o := other(p.eps, int(at)+1, in.Avoid); o != nil {
			return o
		}
	}
	return e
}

// weightsOf returns the weights, reduced.
func weightsOf(set []Entry) []uint64 {
	w := make([]uint64, len(set))
	var sum, div uint64
	for i, e := range set {
		w[i] = uint64(e.Weight)
		sum += w[i]
		div = gcd(div, w[i])
	}
	limit := uint64(maxSchedule + 4*len(set))
	if sum/div <= limit {
		for i := range w {
			w[i] /= div
		}
		return w
	}
	for i := range w {
		w[i] = max(1, (w[i]*limit+sum/2)/sum)
	}
	return w
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// turn is an endpoint's next turn: due at num/weight, where num counts halves.
type turn struct {
	index  uint32
	weight uint64
	num    uint64 // 2k+1
}

type turns []turn

func (t turns) Len() int      { return len(t) }
func (t turns) Swap(i, j int) { t[i], t[j] = t[j], t[i] }
func (t turns) Less(i, j int) bool {
	a, b := t[i].num*t[j].weight, t[j].num*t[i].weight
	if a != b {
		return a < b
	}
	return t[i].index < t[j].index
}
func (t *turns) Push(any) {}
func (t *turns) Pop() any { return nil }

// schedule spreads sum(w) turns so that each endpoint has its weight's number.
func schedule(w []uint64) []uint32 {
	h := make(turns, len(w))
	var sum uint64
	for i, x := range w {
		h[i] = turn{uint32(i), x, 1}
		sum += x
	}
	heap.Init(&h)
	out := make([]uint32, sum)
	for i := range out {
		out[i] = h[0].index
		h[0].num += 2
		heap.Fix(&h, 0)
	}
	return out
}
