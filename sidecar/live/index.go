package live

import (
	"context"
	"sync"
)

// Index holds every open connection of one workload. Safe for concurrent use.
type Index struct {
	mu      sync.Mutex
	entries map[Entry]struct{} // guarded by mu

	turn chan struct{} // one Recheck at a time
	rec  Config
}

// Config of an Index.
type Config struct {
	// Workers bounds the goroutines of one Recheck; 0: 8.
	Workers int
}

// Counts says how a Recheck came out.
type Counts struct{ Checked, Kept, Draining, Closed int }

// New makes an empty Index.
func New(c Config) *Index {
	if c.Workers <= 0 {
		c.Workers = 8
	}
	x := &Index{entries: make(map[Entry]struct{}), turn: make(chan struct{}, 1), rec: c}
	x.turn <- struct{}{}
	return x
}

// Add puts an open connection into the index; Remove it when it is over.
func (x *Index) Add(e Entry) {
	x.mu.Lock()
	x.entries[e] = struct{}{}
	x.mu.Unlock()
}

// Remove takes it out again. It is idempotent.
func (x *Index) Remove(e Entry) {
	x.mu.Lock()
	delete(x.entries, e)
	x.mu.Unlock()
}

// Len is the number of open connections.
func (x *Index) Len() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.entries)
}

// Recheck asks every entry whether it may stay and ends those that may not. It
// returns when all were asked or ctx has ended; Rechecks run one after another.
// A connection that is added while Recheck runs was decided by the
// configuration then in force and is asked by the next one: whoever swaps the
// configuration swaps first and calls Recheck after, and whoever adds a
// connection asks it once more after Add.
func (x *Index) Recheck(ctx context.Context) Counts {
	select {
	case <-x.turn:
	case <-ctx.Done():
		return Counts{}
	}
	defer func() { x.turn <- struct{}{} }()

	entries := x.copy()
	workers := min(x.rec.Workers, (len(entries)+63)/64)
	if workers <= 1 {
		return check(ctx, entries)
	}
	parts := make([]Counts, workers)
	var wg sync.WaitGroup
	for i := range workers {
		lo, hi := i*len(entries)/workers, (i+1)*len(entries)/workers
		wg.Go(func() { parts[i] = check(ctx, entries[lo:hi]) })
	}
	wg.Wait()
	var sum Counts
	for _, p := range parts {
		sum.Checked += p.Checked
		sum.Kept += p.Kept
		sum.Draining += p.Draining
		sum.Closed += p.Closed
	}
	return sum
}

func check(ctx context.Context, entries []Entry) (c Counts) {
	for _, n := range entries {
		if ctx.Err() != nil {
			return c
		}
		c.Checked++
		switch v, reason := n.Recheck(); v {
		case Keep:
			c.Kept++
		case CloseAfterRequest:
			c.Draining++
			n.End(v, reason)
		default:
			c.Closed++
			n.End(CloseNow, reason)
		}
	}
	return c
}

func (x *Index) copy() []Entry {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := make([]Entry, 0, len(x.entries))
	for n := range x.entries {
		out = append(out, n)
	}
	return out
}
