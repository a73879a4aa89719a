package consul

import (
	"context"
	"reflect"
	"time"
)

// localEvery is how often the agent of this host is asked what is registered: its
// list cannot be waited for by an index, and asking costs a request on loopback.
const localEvery = time.Second

// FollowLocal calls f with what [Registrar.ListLocal] gives, as soon as the agent
// answers and after each change, until ctx ends. An agent that does not answer
// changes nothing; failed is told of the first failure in a row, and answered of
// its end.
func (r *Registrar) FollowLocal(ctx context.Context, f func([]LocalService), failed func(error), answered func()) error {
	var last []LocalService
	var known, broken bool
	t := time.NewTicker(localEvery)
	defer t.Stop()
	for {
		qctx, cancel := context.WithTimeout(ctx, 10*localEvery)
		now, err := r.ListLocal(qctx)
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !broken:
			broken = true
			failed(err)
		case err == nil:
			if broken {
				answered()
			}
			broken = false
			if !known || !reflect.DeepEqual(last, now) {
				last, known = now, true
				f(now)
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
