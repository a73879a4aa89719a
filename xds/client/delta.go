package client

import (
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"

	"github.com/parrel-mesh/parrel/xds/internal/refusal"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// deltaSession is the incremental protocol on one stream.
// https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds
type deltaSession struct {
	c     *Client
	send  func(*discovery.DeltaDiscoveryRequest) error
	begun bool
	asked map[resource.Type]map[string]struct{} // present: a first request was sent
}

func (s *deltaSession) put(r *discovery.DeltaDiscoveryRequest) error {
	if !s.begun {
		s.begun, r.Node = true, s.c.node()
	}
	return s.send(r)
}

// ask sends subscriptions; the first of each type tells what is held, so that
// nothing of it comes again.
func (s *deltaSession) ask() error {
	for _, t := range resource.Types() {
		ts := s.c.types[t]
		want, versions, _ := s.c.subscription(ts)
		asked, old := s.asked[t]
		req := &discovery.DeltaDiscoveryRequest{TypeUrl: string(t)}
		switch {
		case ts.wildcard && old:
			continue
		case !old:
			if !ts.wildcard && len(want) == 0 {
				continue
			}
			req.ResourceNamesSubscribe = missing(want, nil)
			req.InitialResourceVersions = versions
		default:
			req.ResourceNamesSubscribe = missing(want, asked)
			req.ResourceNamesUnsubscribe = missing(asked, want)
			if len(req.ResourceNamesSubscribe)+len(req.ResourceNamesUnsubscribe) == 0 {
				continue
			}
		}
		s.asked[t] = want
		if err := s.put(req); err != nil {
			return err
		}
	}
	return nil
}

func (s *deltaSession) take(r *discovery.DeltaDiscoveryResponse) error {
	c := s.c
	c.alive(r.GetControlPlane().GetIdentifier())
	t := resource.Type(r.GetTypeUrl())
	ts := c.types[t]
	if ts == nil {
		return s.put(&discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(), ErrorDetail: unasked(t)})
	}
	var list []given
	for _, x := range r.GetResources() {
		if x.GetResource() == nil && x.GetTtl() != nil { // a heartbeat: nothing changed
			continue
		}
		list = append(list, given{name: x.GetName(), version: x.GetVersion(), any: x.GetResource()})
	}
	b := c.take(ts, list)
	b.update.Removed = c.remove(ts, r.GetRemovedResources())
	c.hand(b.update)
	c.settle(ts, b.refused)
	ack := &discovery.DeltaDiscoveryRequest{TypeUrl: string(t), ResponseNonce: r.GetNonce()}
	if len(b.refused) > 0 {
		ack.ErrorDetail = refusal.Status(b.refused)
	}
	return s.put(ack)
}

func unasked(t resource.Type) *status.Status {
	return refusal.Status([]Refused{{Type: t, Reason: "this type was not asked for"}})
}
