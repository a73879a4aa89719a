package mesh

import "sync"

// memo keeps what was made of one snapshot, for as long as it is the newest.
type memo struct {
	mu   sync.Mutex
	gone bool        // guarded by mu: a newer snapshot is there
	made map[any]any // guarded by mu
}

// memoSize bounds a memo. What is beyond it is made again each time.
const memoSize = 64

// Memo returns what makeIt gives, made once for a key in the newest snapshot.
// makeIt must depend on the snapshot and the key alone; what it gives is shared
// and read-only. The key must be comparable.
func (s *Snapshot) Memo(key any, makeIt func() any) any {
	m := s.memo
	if m == nil {
		return makeIt()
	}
	m.mu.Lock()
	got, ok := m.made[key]
	m.mu.Unlock()
	if ok {
		return got
	}
	made := makeIt() // outside of the lock: two may do it at once
	m.mu.Lock()
	defer m.mu.Unlock()
	if got, ok := m.made[key]; ok {
		return got
	}
	if m.gone || len(m.made) >= memoSize {
		return made
	}
	if m.made == nil {
		m.made = map[any]any{}
	}
	m.made[key] = made
	return made
}

// forget empties it for good; safe on nil.
func (m *memo) forget() {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gone, m.made = true, nil
}
