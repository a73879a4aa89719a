package mtls

import (
	"errors"
	"sync"
)

// ErrNoIdentity is the Err of a snapshot before anything was obtained.
var ErrNoIdentity = errors.New("no identity has been obtained yet")

// Cell holds a current snapshot: the part that every [Source] has in common,
// and a Source by itself for a fixed or hand-fed identity. Safe for concurrent
// use; its zero value has no identity.
type Cell struct {
	mu      sync.Mutex
	current *Snapshot
	changed chan struct{}
}

var _ Source = (*Cell)(nil)

// NewCell returns a Cell that holds s; nil means no identity yet.
func NewCell(s *Snapshot) *Cell { return &Cell{current: s} }

// Current implements [Source].
func (c *Cell) Current() *Snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil {
		c.current = &Snapshot{Err: ErrNoIdentity}
	}
	return c.current
}

// Changed implements [Source].
func (c *Cell) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changed == nil {
		c.changed = make(chan struct{})
	}
	return c.changed
}

// Set replaces the snapshot, which must not be changed afterwards, and wakes
// whoever waits on Changed.
func (c *Cell) Set(s *Snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current = s
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}
