package h2

// table finds streams by id: open addressing with linear probing. Ids of one
// side grow, so neighbours rarely collide.
type table struct {
	slots []*strm
	n     int
	away  int // of them, those that are not at home: others were there
}

func (t *table) home(id uint32) int { return int(id>>1) & (len(t.slots) - 1) }

func (t *table) get(id uint32) *strm {
	if t.n == 0 {
		return nil
	}
	for i := t.home(id); ; i = (i + 1) & (len(t.slots) - 1) {
		if s := t.slots[i]; s == nil || s.id == id {
			return s
		}
	}
}

func (t *table) put(s *strm) {
	if 2*(t.n+1) > len(t.slots) {
		old := t.slots
		t.slots = make([]*strm, max(16, 2*len(old)))
		t.away = 0
		for _, o := range old {
			if o != nil {
				t.place(o)
			}
		}
	}
	t.place(s)
	t.n++
}

func (t *table) place(s *strm) {
	i := t.home(s.id)
	if t.slots[i] != nil {
		t.away++
	}
	for t.slots[i] != nil {
		i = (i + 1) & (len(t.slots) - 1)
	}
	t.slots[i] = s
}

// clear takes all out.
func (t *table) clear() {
	clear(t.slots)
	t.n, t.away = 0, 0
}

// del takes the id out and closes the gap, so that no mark of it is left.
func (t *table) del(id uint32) {
	if t.n == 0 {
		return
	}
	mask := len(t.slots) - 1
	i := t.home(id)
	for t.slots[i] != nil && t.slots[i].id != id {
		i = (i + 1) & mask
	}
	if t.slots[i] == nil {
		return
	}
	t.n--
	if t.away == 0 { // nobody stands behind a neighbour
		t.slots[i] = nil
		return
	}
	if i != t.home(id) {
		t.away--
	}
	for j := i; ; {
		j = (j + 1) & mask
		s := t.slots[j]
		if s == nil {
			break
		}
		// s may move to i unless its home lies behind i on the way to j.
		if h := t.home(s.id); (j-h)&mask >= (j-i)&mask {
			if h == i {
				t.away--
			}
			t.slots[i] = s
			i = j
		}
	}
	t.slots[i] = nil
}

// recent remembers the streams that were closed last, to tell a late frame from
// a false one.
type recent struct {
	ids  [128]uint32
	ours [128]bool // we reset it: the peer may not know yet
	next int
}

func (r *recent) add(id uint32, ours bool) {
	r.ids[r.next], r.ours[r.next] = id, ours
	r.next = (r.next + 1) % len(r.ids)
}

func (r *recent) find(id uint32) (found, ours bool) {
	for i, v := range r.ids {
		if v == id {
			return true, r.ours[i]
		}
	}
	return false, false
}
