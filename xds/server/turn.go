package server

import (
	"context"
	"slices"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// turn is a stream's turn to send. It is put into go-control-plane's channel
// empty: what is sent, and of which type, is decided when the stream's
// goroutine takes it out, from what is wanted by then. So a slow stream holds
// one turn and no responses, and types leave in make-before-break order.
type turn struct {
	st     *stream
	chosen bool
	sub    *sub // nil: nothing to say
	down   bool
	delta  *discovery.DeltaDiscoveryResponse
	sotw   *discovery.DiscoveryResponse
}

var (
	_ cache.Response      = (*turn)(nil)
	_ cache.DeltaResponse = (*turn)(nil)
)

// Additions go in resource.Types' order, removals after them in this one: who
// refers goes before what it refers to.
var removals = []resource.Type{
	resource.TypeListener, resource.TypeRoute, resource.TypeCluster, resource.TypeEndpoints, resource.TypeSecret,
}

// ordered: is the type part of make-before-break? Secrets and types that
// parrel does not know wait for nothing and hold nothing up.
func ordered(t resource.Type) bool {
	return slices.Contains(removals[:4], t)
}

// schedule gives the stream a turn if it has none and there is something to do.
// Server.mu is held.
func (st *stream) schedule() {
	if st.turn || st.live == 0 || st.ended {
		return
	}
	if b, _ := st.next(); b == nil && !st.stale && len(st.pending) == 0 {
		return
	}
	st.turn = st.push(&turn{st: st})
}

// next is what is to be sent next: an addition or change, and down for a
// removal. A type with a response in flight waits for its answer, and the
// ordered types after it wait with it; removals wait for all of them.
func (st *stream) next() (b *sub, down bool) {
	busy := false
	for _, t := range resource.Types() {
		b := st.subs[t]
		if b == nil {
			continue
		}
		if busy && ordered(t) {
			continue
		}
		if due := len(b.up) > 0 || b.must; due && b.inflight == nil {
			return b, false
		} else if due && ordered(t) {
			busy = true
		}
	}
	for _, t := range removals {
		b := st.subs[t]
		if b == nil || len(b.down) == 0 || b.inflight != nil {
			continue
		}
		if !ordered(t) || !busy && st.quiet() {
			return b, true
		}
	}
	for t, b := range st.subs {
		if b.inflight == nil && !ordered(t) && (len(b.up) > 0 || len(b.down) > 0 || b.must) {
			return b, len(b.up) == 0 && !b.must
		}
	}
	return nil, false
}

// quiet: no response of an ordered type is unanswered.
func (st *stream) quiet() bool {
	for t, b := range st.subs {
		if b.inflight != nil && ordered(t) {
			return false
		}
	}
	return true
}

// choose decides what this turn is for. On the stream's goroutine.
func (t *turn) choose() {
	if t.chosen {
		return
	}
	t.chosen = true
	st := t.st
	const attempts = 3 // under a storm of changes send what there is, the rest has another turn
	for i := 1; ; i++ {
		st.refresh()
		st.srv.mu.Lock()
		if i < attempts && (st.stale || len(st.pending) > 0) {
			st.srv.mu.Unlock()
			continue
		}
		st.turn = false
		t.sub, t.down = st.next()
		st.srv.mu.Unlock()
		return
	}
}

func sortedNames(m map[string]*hold) []string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func (st *stream) controlPlane() *core.ControlPlane {
	o := st.srv.cfg.Origin
	if o == "" || st.named {
		return nil
	}
	st.named = true
	return &core.ControlPlane{Identifier: o}
}

// buildDelta fills the turn; an empty type URL means that nothing is to be sent.
func (t *turn) buildDelta() *discovery.DeltaDiscoveryResponse {
	out := &discovery.DeltaDiscoveryResponse{}
	if t.sub == nil {
		return out
	}
	s, b := t.st.srv, t.sub
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &response{}
	if t.down {
		for _, name := range sortedNames(b.down) {
			out.RemovedResources = append(out.RemovedResources, name)
			b.deliver(r, b.down[name], nil)
		}
	} else {
		size := 0
		for _, name := range sortedNames(b.up) {
			h := b.up[name]
			c := h.want()
			if n := len(c.any.GetValue()); size > 0 && size+n > s.cfg.Limits.ResponseBytes {
				break
			}
			size += len(c.any.GetValue()) + len(name)
			out.Resources = append(out.Resources, &discovery.Resource{Name: name, Version: c.version, Resource: c.any})
			b.deliver(r, h, c)
		}
	}
	if len(r.items) == 0 && !b.must {
		return out
	}
	b.must = false
	b.inflight, t.st.sending = r, b
	out.TypeUrl = string(b.typ)
	out.SystemVersionInfo = hex16(b.sum)
	out.ControlPlane = t.st.controlPlane()
	return out
}

// buildSotW is buildDelta for state of the world. Listeners and clusters carry
// all that there is, and on an addition also what will be removed after it. A
// version that the client said it refused gives way to the one that it kept.
func (t *turn) buildSotW() *discovery.DiscoveryResponse {
	out := &discovery.DiscoveryResponse{}
	if t.sub == nil {
		return out
	}
	s, b := t.st.srv, t.sub
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &response{}
	var anys []*anypb.Any
	if b.full() {
		anys = b.everything(r, t.down)
	} else {
		for _, name := range sortedNames(b.up) {
			h := b.up[name]
			c := h.want()
			anys = append(anys, c.any)
			b.deliver(r, h, c)
		}
	}
	if len(r.items) == 0 && !b.must {
		t.sub = nil
		return out
	}
	b.must = false
	b.inflight, t.st.sending = r, b
	out.TypeUrl = string(b.typ)
	out.VersionInfo = hex16(b.sum)
	out.Resources = anys
	out.ControlPlane = t.st.controlPlane()
	return out
}

func (b *sub) everything(r *response, down bool) (anys []*anypb.Any) {
	for _, name := range sortedNames(b.holds) {
		h := b.holds[name]
		c := h.want()
		switch {
		case c != nil && b.up[name] == nil && h.refused == c.version && h.good != nil && h.good.any != nil:
			anys = append(anys, h.good.any)
		case c != nil:
			anys = append(anys, c.any)
			if b.up[name] != nil {
				b.deliver(r, h, c)
			}
		case h.sent == nil:
		case down:
			b.deliver(r, h, nil)
		case h.sent.any != nil:
			anys = append(anys, h.sent.any)
		}
	}
	return anys
}

// typeURL is the type that the turn is accounted to.
func (t *turn) typeURL() string {
	t.choose()
	if t.sub == nil {
		return idleType
	}
	return string(t.sub.typ)
}

func (t *turn) GetDeltaRequest() *discovery.DeltaDiscoveryRequest {
	return &discovery.DeltaDiscoveryRequest{TypeUrl: t.typeURL()}
}

func (t *turn) GetDeltaDiscoveryResponse() (*discovery.DeltaDiscoveryResponse, error) {
	t.choose()
	if t.delta == nil {
		t.delta = t.buildDelta()
	}
	return t.delta, nil
}

func (t *turn) GetRequest() *discovery.DiscoveryRequest {
	return &discovery.DiscoveryRequest{TypeUrl: t.typeURL()}
}

func (t *turn) GetDiscoveryResponse() (*discovery.DiscoveryResponse, error) {
	t.choose()
	if t.sotw == nil {
		t.sotw = t.buildSotW()
	}
	return t.sotw, nil
}

// What was returned is in the holds; go-control-plane gets an empty map, since
// it writes into it when a name is unsubscribed.
func (t *turn) GetReturnedResources() map[string]string { return map[string]string{} }
func (t *turn) GetNextVersionMap() map[string]string    { return map[string]string{} }
func (t *turn) GetContext() context.Context             { return t.st.ctx }
func (t *turn) GetVersion() (string, error)             { return t.GetResponseVersion(), nil }
func (t *turn) GetSystemVersion() (string, error)       { return t.GetResponseVersion(), nil }

func (t *turn) GetResponseVersion() string {
	if t.delta != nil {
		return t.delta.GetSystemVersionInfo()
	}
	return t.sotw.GetVersionInfo()
}
