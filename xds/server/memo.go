package server

import (
	"sync"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// memo remembers what the last listeners of single workloads serialised to.
//
// Why: the Provider gives one value to all workloads whose listener is the same.
// With a thousand of them, each of a megabyte, that is serialised once and kept
// once.
//
// Conditions: it goes by the pointer. Resources never change, so that one pointer
// has one content for as long as the memo holds it.
//
// First start, and after each change: empty.
type memo struct {
	mu   sync.Mutex
	last [memoSize]alike // guarded by mu
	next int             // guarded by mu
}

const memoSize = 32

type alike struct {
	r resource.Resource
	c *content
}

func (m *memo) get(r resource.Resource) *content {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.last {
		if m.last[i].r == r {
			return m.last[i].c
		}
	}
	return nil
}

func (m *memo) put(r resource.Resource, c *content) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last[m.next] = alike{r, c}
	m.next = (m.next + 1) % memoSize
}

func (m *memo) clear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.last[:])
}
