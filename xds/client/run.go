package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// firstAnswer is how long a server that took the stream may stay silent.
const firstAnswer = 30 * time.Second

// Run loads what is on disk, then keeps a stream open until ctx ends. What is
// held is kept through every failure. It returns ctx's error, after the set was
// written a last time.
func (c *Client) Run(ctx context.Context) error {
	if c.cfg.Store != nil {
		c.fromDisk()
		var wg sync.WaitGroup
		done := make(chan struct{})
		wg.Go(func() { c.saver(done) })
		defer wg.Wait()
		defer close(done)
	}
	for failures := 0; ctx.Err() == nil; {
		begun := time.Now()
		answered, err := c.session(ctx)
		if ctx.Err() != nil {
			break
		}
		if answered && time.Since(begun) >= c.cfg.Backoff.Reset {
			failures = 0
		}
		pause := c.cfg.Backoff.pause(failures, c.cfg.Rand())
		failures++
		c.lost(err)
		c.cfg.Log.Warn("client: no stream to the control plane; the last good configuration stays in use",
			"error", err, "retry_in", pause)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	c.lost(nil)
	return ctx.Err()
}

func (c *Client) lost(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.status.Connected {
		c.status.Connected, c.status.Since = false, time.Now()
	}
	if err == nil { // Run is ending
		return
	}
	c.status.Attempts++
	c.status.LastError = err.Error()
}

// alive notes that the server answered.
func (c *Client) alive(server string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.status.Connected {
		c.status.Connected, c.status.Since = true, time.Now()
	}
	c.status.Attempts = 0
	if server != "" {
		c.status.Server = server
	}
}

// session is one connection with one stream.
func (c *Client) session(ctx context.Context) (answered bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := c.cfg.Dial(ctx)
	if err != nil {
		return false, fmt.Errorf("client: dial: %w", err)
	}
	defer conn.Close()
	ads := discovery.NewAggregatedDiscoveryServiceClient(conn)
	if c.cfg.SotW {
		g, err := ads.StreamAggregatedResources(ctx)
		if err != nil {
			return false, fmt.Errorf("client: stream: %w", err)
		}
		return serve(ctx, cancel, c, g.Recv, &sotwSession{c: c, send: g.Send, asked: map[resource.Type][]string{}, nonce: map[resource.Type]string{}})
	}
	g, err := ads.DeltaAggregatedResources(ctx)
	if err != nil {
		return false, fmt.Errorf("client: stream: %w", err)
	}
	return serve(ctx, cancel, c, g.Recv, &deltaSession{c: c, send: g.Send, asked: map[resource.Type]map[string]struct{}{}})
}

// protocol is delta or state of the world on one stream.
type protocol[R any] interface {
	ask() error        // sends what changed of the subscriptions
	take(resp R) error // applies a response and answers it
}

// serve runs a stream: one goroutine reads, this one does all else.
func serve[R any](ctx context.Context, cancel func(), c *Client, recv func() (R, error), p protocol[R]) (answered bool, err error) {
	responses, failed := make(chan R), make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			r, err := recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case responses <- r:
			case <-ctx.Done():
				return
			}
		}
	})
	defer wg.Wait()
	defer cancel()

	// A send error only says that the stream is over; the reason is what the
	// reader gets.
	why := func(err error) error {
		if err == nil {
			return nil
		}
		select {
		case e := <-failed:
			return fmt.Errorf("client: stream: %w", e)
		case <-time.After(time.Second):
			return fmt.Errorf("client: stream: %w", err)
		}
	}
	if err := p.ask(); err != nil {
		return false, why(err)
	}
	first := time.NewTimer(firstAnswer)
	defer first.Stop()
	for {
		select {
		case <-ctx.Done():
			return answered, ctx.Err()
		case err := <-failed:
			return answered, fmt.Errorf("client: stream: %w", err)
		case <-first.C:
			return answered, errors.New("client: the control plane took the stream but did not answer")
		case <-c.changed:
			if err := p.ask(); err != nil {
				return answered, why(err)
			}
		case r := <-responses:
			answered = true
			first.Stop()
			if err := p.take(r); err != nil {
				return answered, why(err)
			}
		}
	}
}

// node is what the first request of a stream carries.
func (c *Client) node() *core.Node {
	n := &core.Node{Id: c.cfg.Node.ID, Cluster: c.cfg.Node.Cluster, UserAgentName: "parrel"}
	if len(c.cfg.Node.Metadata) > 0 {
		n.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{}}
		for k, v := range c.cfg.Node.Metadata {
			n.Metadata.Fields[k] = structpb.NewStringValue(v)
		}
	}
	return n
}

// subscription is a copy of what is wanted of a type, and held of that.
func (c *Client) subscription(ts *typeState) (want map[string]struct{}, versions map[string]string, version string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	versions = map[string]string{}
	for n, h := range ts.held {
		if h.res != nil && (ts.wildcard || has(ts.want, n)) {
			versions[n] = h.version
		}
	}
	return maps.Clone(ts.want), versions, ts.version
}

func has(m map[string]struct{}, n string) bool { _, ok := m[n]; return ok }

func sortGiven(list []given) {
	slices.SortFunc(list, func(a, b given) int { return cmp.Compare(a.name, b.name) })
}

// missing are the names of a that are not in b, sorted.
func missing(a, b map[string]struct{}) (out []string) {
	for n := range a {
		if !has(b, n) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}
