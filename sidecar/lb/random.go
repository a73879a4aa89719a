package lb

// random picks at random by weight.
//
// Why: without state, many sidecars do not fall into step.
//
// Conditions: by Vose's alias method (1991), so that a pick costs O(1) whatever
// the weights. One 64-bit draw serves the column (upper half) and the coin
// (lower half).
type random struct{ rand func() uint64 }

type randomPicker struct {
	rand func() uint64
	table
}

func (r random) Build(entries []Entry, _ Picker) Picker {
	set := choose(entries)
	if len(set) == 0 {
		return empty{}
	}
	return &randomPicker{r.rand, newTable(set)}
}

func (p *randomPicker) Pick(in Info) *Endpoint {
	i := p.draw(p.rand())
	e := p.eps[i]
	if len(in.Avoid) > 0 && avoided(e, in.Avoid) {
		if o := other(p.eps, i+1, in.Avoid); o != nil {
			return o
		}
	}
	return e
}

// table draws an index by weight in O(1).
type table struct {
	eps   []*Endpoint
	keep  []uint32 // share of the column that is its own, of 2^32-1; nil: equal weights
	alias []uint32 // whose the rest is
}

func newTable(set []Entry) table {
	t := table{eps: handles(set)}
	if equalWeights(set) {
		return t
	}
	n := len(set)
	t.keep, t.alias = make([]uint32, n), make([]uint32, n)
	var sum float64
	for _, e := range set {
		sum += float64(e.Weight)
	}
	share := make([]float64, n)
	var small, large []int
	for i, e := range set {
		share[i] = float64(e.Weight) * float64(n) / sum
		if share[i] < 1 {
			small = append(small, i)
		} else {
			large = append(large, i)
		}
	}
	for len(small) > 0 && len(large) > 0 {
		s, l := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		t.keep[s], t.alias[s] = uint32(share[s]*(1<<32-1)), uint32(l)
		if share[l] -= 1 - share[s]; share[l] < 1 {
			large = large[:len(large)-1]
			small = append(small, l)
		}
	}
	for _, i := range append(small, large...) { // what rounding left over
		t.keep[i], t.alias[i] = 1<<32-1, uint32(i)
	}
	return t
}

func (t *table) draw(r uint64) int {
	column := r >> 32 * uint64(len(t.eps)) >> 32
	if t.keep != nil && uint32(r) > t.keep[column] {
		return int(t.alias[column])
	}
	return int(column)
}
