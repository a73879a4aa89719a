package server

import (
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// A stream is go-control-plane's cache for itself alone.
var _ cache.ConfigWatcher = (*stream)(nil)

const (
	wildcardName = "*"
	// idleType is a type that nobody asks for: a turn that found nothing to say
	// is accounted to it, and never sent.
	idleType = "parrel/idle"
	maxTypes = 16
)

// offer gives a response to go-control-plane's loop where it has room for one.
func offer[R any](ch chan R, r R) bool {
	select {
	case ch <- r:
		return true
	default:
		return false
	}
}

// CreateDeltaWatch is called on the stream's goroutine for each request.
func (st *stream) CreateDeltaWatch(req *cache.DeltaRequest, gs cache.Subscription, ch chan cache.DeltaResponse) (func(), error) {
	b, first, err := st.open(req.GetTypeUrl(), func(t *turn) bool { return offer[cache.DeltaResponse](ch, t) })
	if err != nil {
		return nil, err
	}
	b.answered(req.GetResponseNonce(), req.GetErrorDetail())
	fresh := b.setWildcard(gs.IsWildcard())

	s := st.srv
	s.mu.Lock()
	for _, name := range req.GetResourceNamesSubscribe() {
		if name == wildcardName {
			continue
		}
		// All that is named here has to be answered, even if it was sent before:
		// the client may have dropped it. Only what it says it holds on a new
		// stream is not repeated.
		// https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/discovery/v3/discovery.proto#service-discovery-v3-deltadiscoveryrequest
		h := b.hold(name)
		h.named, h.force = true, true
		if _, ok := req.GetInitialResourceVersions()[name]; ok && first {
			h.force = false
		}
		fresh = append(fresh, h)
	}
	b.unsubscribe(req.GetResourceNamesUnsubscribe())
	if first {
		b.resume(req.GetInitialResourceVersions())
		b.must = b.wildcard
	}
	over := st.overLimit()
	s.mu.Unlock()
	if over != nil {
		return nil, over
	}
	return st.watch(b, fresh), nil
}

// unsubscribe takes names off a delta subscription. Under a wildcard the client
// has to be told whether the resource is still there for it.
// https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#unsubscribing-from-resources
func (b *sub) unsubscribe(names []string) {
	for _, name := range names {
		h := b.holds[name]
		switch {
		case h == nil || name == wildcardName || !h.named:
		case !b.wildcard:
			b.drop(h)
		case h.wild:
			h.named, h.force = false, true
			h.touch()
		default:
			h.named, h.force = false, true
			b.st.srv.attach(h, nil)
			h.touch()
		}
	}
}

// resume takes over what the client says it holds.
func (b *sub) resume(versions map[string]string) {
	for name, v := range versions {
		h := b.holds[name]
		if h == nil {
			if !b.wildcard {
				continue
			}
			h = b.hold(name)
		}
		c := &content{version: v, digest: digest(name, v)}
		b.setSent(h, c)
		b.acked += c.digest - h.acked
		h.acked = c.digest
		h.touch()
	}
}

// CreateWatch is CreateDeltaWatch for state of the world.
func (st *stream) CreateWatch(req *cache.Request, gs cache.Subscription, ch chan cache.Response) (func(), error) {
	if req.GetTypeUrl() == idleType {
		return nil, nil
	}
	b, first, err := st.open(req.GetTypeUrl(), func(t *turn) bool { return offer[cache.Response](ch, t) })
	if err != nil {
		return nil, err
	}
	b.answered(req.GetResponseNonce(), req.GetErrorDetail())
	fresh := b.setWildcard(gs.IsWildcard())

	s := st.srv
	s.mu.Lock()
	names := gs.SubscribedResources()
	added := false
	for name := range names {
		if h := b.hold(name); !h.named {
			h.named, added = true, true
			fresh = append(fresh, h)
		}
	}
	for name, h := range b.holds {
		if _, ok := names[name]; ok || !h.named {
			continue
		}
		if h.named = false; !h.wild {
			b.drop(h)
		}
	}
	if b.full() && (first || added) || first && b.wildcard {
		b.must = true
	}
	over := st.overLimit()
	s.mu.Unlock()
	if over != nil {
		return nil, over
	}
	return st.watch(b, fresh), nil
}

// open finds or makes the subscription of a type.
func (st *stream) open(typeURL string, push func(*turn) bool) (b *sub, first bool, err error) {
	st.srv.mu.Lock()
	defer st.srv.mu.Unlock()
	if st.ended {
		return nil, false, status.Error(codes.Canceled, "xds/server: the stream has ended")
	}
	st.push = push
	t := resource.Type(typeURL)
	if b = st.subs[t]; b != nil {
		return b, false, nil
	}
	if len(st.subs) >= maxTypes {
		return nil, false, status.Errorf(codes.ResourceExhausted, "xds/server: a stream may ask for %d types of resource at most", maxTypes)
	}
	b = &sub{
		st: st, typ: t,
		holds: map[string]*hold{}, up: map[string]*hold{}, down: map[string]*hold{}, refusedNow: map[string]*hold{},
	}
	st.subs[t] = b
	return b, true, nil
}

// watch resolves what is new and arms the type; the result disarms it.
func (st *stream) watch(b *sub, fresh []*hold) func() {
	s := st.srv
	for _, h := range fresh {
		s.resolve(h)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.live++
	st.schedule()
	armed := true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if armed {
			armed = false
			st.live--
		}
	}
}

func (st *stream) overLimit() error {
	n := 0
	for _, b := range st.subs {
		n += len(b.holds)
	}
	if limit := st.srv.cfg.Limits.Names; n > limit {
		return status.Errorf(codes.ResourceExhausted, "xds/server: a stream may subscribe to %d resources at most, this one wants %d: subscribe to what is used only", limit, n)
	}
	return nil
}

// setWildcard follows the subscription's wildcard and returns what it added.
func (b *sub) setWildcard(on bool) (fresh []*hold) {
	s := b.st.srv
	s.mu.Lock()
	was := b.wildcard
	b.wildcard = on
	if was && !on {
		for _, h := range b.holds {
			if h.wild = false; !h.named {
				b.drop(h)
			}
		}
	}
	s.mu.Unlock()
	if on && !was {
		return b.expand()
	}
	return nil
}

// expand asks for the names of the wildcard, and returns those that are new.
func (b *sub) expand() (fresh []*hold) {
	s := b.st.srv
	names := s.cfg.Provider.Names(b.st.w, b.typ)
	set := make(map[string]struct{}, len(names))
	for _, n := range names {
		set[n] = struct{}{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		if h := b.hold(name); !h.wild {
			h.wild = true
			fresh = append(fresh, h)
		}
	}
	for name, h := range b.holds {
		if _, ok := set[name]; ok || !h.wild {
			continue
		}
		if h.wild = false; !h.named {
			s.attach(h, nil)
		}
		h.touch()
	}
	return fresh
}

// recheck marks a hold to be resolved anew on the stream's goroutine.
func (st *stream) recheck(h *hold) {
	if st.pending == nil {
		st.pending = map[*hold]struct{}{}
	}
	st.pending[h] = struct{}{}
}

// refresh looks for itself at what a change left to the stream: names, private
// resources, and what is or was not there for this workload.
func (st *stream) refresh() {
	s := st.srv
	s.mu.Lock()
	stale, pending := st.stale, st.pending
	st.stale, st.pending = false, nil
	subs := make([]*sub, 0, len(st.subs))
	for _, b := range st.subs {
		subs = append(subs, b)
	}
	s.mu.Unlock()
	if pending == nil {
		pending = map[*hold]struct{}{}
	}
	if stale {
		for _, b := range subs {
			if b.wildcard {
				for _, h := range b.expand() {
					pending[h] = struct{}{}
				}
			}
			s.mu.Lock()
			for _, h := range b.holds {
				if h.e == nil || h.e.key.node != "" || !h.wild {
					pending[h] = struct{}{}
				}
			}
			s.mu.Unlock()
		}
	}
	for h := range pending {
		if h.subscribed() {
			s.resolve(h)
		}
	}
}
