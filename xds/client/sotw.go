package client

import (
	"slices"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/parrel-mesh/parrel/xds/internal/refusal"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// sotwSession is the state-of-the-world protocol on one stream: listeners and
// clusters come whole, and what is absent is gone; routes, endpoints and
// secrets end when nothing refers to them any more.
// https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#deleting-resources
type sotwSession struct {
	c     *Client
	send  func(*discovery.DiscoveryRequest) error
	begun bool
	asked map[resource.Type][]string // present: a first request was sent
	nonce map[resource.Type]string   // present: a response was taken
	// gone are clusters absent from the stream's first response. A new stream's
	// server does not know what this client's listeners still refer to, so they
	// go once the listeners, and the routes, have been answered for.
	gone []string
}

func (s *sotwSession) put(r *discovery.DiscoveryRequest) error {
	if !s.begun {
		s.begun, r.Node = true, s.c.node()
	}
	return s.send(r)
}

func (s *sotwSession) ask() error {
	for _, t := range resource.Types() {
		ts := s.c.types[t]
		want, _, version := s.c.subscription(ts)
		names := missing(want, nil)
		asked, old := s.asked[t]
		if old && (ts.wildcard || slices.Equal(asked, names)) || !old && !ts.wildcard && len(names) == 0 {
			continue
		}
		s.asked[t] = names
		if err := s.put(&discovery.DiscoveryRequest{TypeUrl: string(t), ResourceNames: names, VersionInfo: version, ResponseNonce: s.nonce[t]}); err != nil {
			return err
		}
	}
	return nil
}

func (s *sotwSession) take(r *discovery.DiscoveryResponse) error {
	c := s.c
	c.alive(r.GetControlPlane().GetIdentifier())
	t := resource.Type(r.GetTypeUrl())
	ts := c.types[t]
	if ts == nil {
		return s.put(&discovery.DiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(), ErrorDetail: unasked(t)})
	}
	var list []given
	for _, a := range r.GetResources() {
		list = append(list, unwrap(a))
	}
	b := c.take(ts, list)
	if ts.wildcard && !b.blind { // with an unnamed one among them nobody knows what is absent
		gone := c.absent(ts, b.seen)
		if _, later := s.nonce[t]; t == resource.TypeCluster && !later {
			s.gone = gone
		} else {
			b.update.Removed = c.remove(ts, gone)
			if t == resource.TypeCluster {
				s.gone = nil
			}
		}
	}
	c.hand(b.update)
	c.settle(ts, b.refused)

	s.nonce[t] = r.GetNonce()
	s.letGo()
	c.mu.Lock()
	if len(b.refused) == 0 {
		ts.version = r.GetVersionInfo()
	}
	version := ts.version
	c.mu.Unlock()
	// The answer says what is wanted by now: Apply may have subscribed.
	want, _, _ := c.subscription(ts)
	s.asked[t] = missing(want, nil)
	ack := &discovery.DiscoveryRequest{TypeUrl: string(t), ResourceNames: s.asked[t], VersionInfo: version, ResponseNonce: r.GetNonce()}
	if len(b.refused) > 0 {
		ack.ErrorDetail = refusal.Status(b.refused)
	}
	return s.put(ack)
}

// letGo removes the clusters held back, as soon as nothing can refer to them.
func (s *sotwSession) letGo() {
	c, routes := s.c, s.c.types[resource.TypeRoute]
	want, _, _ := c.subscription(routes)
	_, listeners := s.nonce[resource.TypeListener]
	if _, ok := s.nonce[resource.TypeRoute]; len(s.gone) == 0 || !listeners || !ok && len(want) > 0 {
		return
	}
	clusters := c.types[resource.TypeCluster]
	removed := c.remove(clusters, s.gone)
	s.gone = nil
	c.hand(Update{Type: clusters.typ, Removed: removed})
}

// absent are the names held that a whole response did not carry.
func (c *Client) absent(ts *typeState, seen map[string]struct{}) (out []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := range ts.held {
		if !has(seen, n) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// unwrap reads a resource that a server wrapped with its name.
func unwrap(a *anypb.Any) given {
	var x discovery.Resource
	if a.MessageIs(&x) && a.UnmarshalTo(&x) == nil && x.GetResource() != nil {
		return given{name: x.GetName(), any: x.GetResource()}
	}
	return given{any: a}
}
