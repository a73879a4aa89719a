package consul

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
)

// cursor keeps the index of one blocking query by Consul's rules
// (https://developer.hashicorp.com/consul/api-docs/features/blocking#implementation-details):
// an index that goes backwards means that the servers were restored, and starts
// over from 0; an index is never below 1, or the query would not block.
type cursor struct{ index uint64 }

// advance takes the index of an answer and says whether the answer is news.
func (c *cursor) advance(index uint64) bool {
	index = max(index, 1)
	before := c.index
	c.index = index
	if index < before {
		c.index = 0
	}
	return index != before
}

// backoff is the time between attempts of one query that fails: exponential,
// with jitter so that many queries do not return together.
type backoff struct {
	failures int
	most     time.Duration
	rand     func() float64
}

const firstBackoff = 100 * time.Millisecond

func (b *backoff) next() time.Duration {
	d := b.most
	if b.failures < 16 {
		d = min(firstBackoff<<b.failures, b.most)
	}
	b.failures++
	return d/2 + time.Duration(b.rand()*float64(d/2))
}

// event is something that the collector does on its own goroutine.
type event func(*collector)

// feed is what the queries of one Run share. Read-only.
type feed struct {
	cfg    *Config
	client *api.Client
	events chan<- event
}

// emit hands an event to the collector.
func (f *feed) emit(ctx context.Context, e event) {
	select {
	case f.events <- e:
	case <-ctx.Done():
	}
}

// query asks once and gives what the collector is to do with the answer.
type query func(*api.QueryOptions) (*api.QueryMeta, event, error)

// follow keeps one blocking query open until ctx ends. name is what the query is
// called in Status; wait bounds one question.
func (f *feed) follow(ctx context.Context, name string, wait time.Duration, q query) {
	var cur cursor
	back := backoff{most: f.cfg.MaxBackoff, rand: f.cfg.Rand}
	var last time.Time // of the latest news
	for ctx.Err() == nil {
		asked := time.Now()
		meta, apply, err := f.ask(ctx, wait, cur.index, q)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			// The next answer may come from another server, or from one that was
			// restored: begin anew.
			cur = cursor{}
			pause := back.next()
			if unsupported(err) {
				pause = 10 * time.Minute
			} else {
				f.emit(ctx, func(c *collector) { c.failed(name, err) })
			}
			sleep(ctx, pause)
			continue
		}
		back.failures = 0
		news := cur.advance(meta.LastIndex)
		f.emit(ctx, func(c *collector) {
			c.heard(name, meta)
			if news {
				apply(c)
			}
		})
		if news {
			// What changes all the time is asked for less often; a first change
			// never waits.
			if now := time.Now(); now.Sub(last) < f.cfg.Coalesce {
				sleep(ctx, f.cfg.Coalesce)
			}
			last = time.Now()
		} else if time.Since(asked) < f.cfg.Coalesce {
			// A server that answers at once with nothing new does not block; it
			// must not be asked in a loop.
			sleep(ctx, f.cfg.Coalesce)
		}
	}
}

// ask asks once. The first question (index 0) does not block.
func (f *feed) ask(ctx context.Context, wait time.Duration, index uint64, q query) (*api.QueryMeta, event, error) {
	// Consul adds up to a sixteenth of the wait; an agent that hangs longer is
	// taken for dead.
	ctx, cancel := context.WithTimeout(ctx, wait+wait/16+10*time.Second)
	defer cancel()
	opts := &api.QueryOptions{AllowStale: true, WaitIndex: index, WaitTime: wait, Datacenter: f.cfg.Datacenter}
	return q(opts.WithContext(ctx))
}

// unsupported is an answer that no retry changes: a kind that this version of
// Consul does not have, Connect switched off.
func unsupported(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "invalid config entry kind") || strings.Contains(err.Error(), "Connect must be enabled"))
}

// denied is an answer to a token that lacks a permission.
func denied(err error) bool {
	var status api.StatusError
	return errors.As(err, &status) && status.Code == http.StatusForbidden
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
