package sidecar

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// group runs goroutines that end together: when one fails, or ctx ends, all are
// told to end, and wait returns when all have.
type group struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu  sync.Mutex
	err error // guarded by mu: the first that was not ctx's
}

func newGroup(ctx context.Context) *group {
	g := &group{}
	g.ctx, g.cancel = context.WithCancel(ctx)
	return g
}

// start runs f. A nil return, or ctx's error, ends f alone; another error ends
// the group. Must not be called after wait has returned.
func (g *group) start(name string, f func(context.Context) error) {
	g.wg.Go(func() {
		err := f(g.ctx)
		if err == nil || errors.Is(err, context.Canceled) && g.ctx.Err() != nil {
			return
		}
		g.fail(name, err)
	})
}

// fail ends the group with an error; the first stays.
func (g *group) fail(name string, err error) {
	g.mu.Lock()
	if g.err == nil {
		g.err = fmt.Errorf("%s: %w", name, err)
	}
	g.mu.Unlock()
	g.cancel()
}

// wait returns when all have ended, with the first error.
func (g *group) wait() error {
	g.wg.Wait()
	g.cancel()
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}
