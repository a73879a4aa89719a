package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/log"
	"github.com/envoyproxy/go-control-plane/pkg/server/config"
	"github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// stream is one ADS stream. go-control-plane's loop (one goroutine, "the
// stream's") reads requests and sends responses; the stream is its cache.
type stream struct {
	srv   *Server
	id    int64
	sotw  bool
	since time.Time
	ctx   context.Context

	once   sync.Once
	failed chan struct{} // closed by fail
	reason string        // read after failed was closed
	err    error

	first *time.Timer // ends a stream that says nothing

	// guarded by Server.mu
	admitted  bool // set once, before the stream's goroutine sees a request
	w         Workload
	remote    string
	userAgent string
	subs      map[resource.Type]*sub
	push      func(*turn) bool
	live      int  // armed watches; at 0 go-control-plane may have closed its channel
	turn      bool // a turn is waiting
	stale     bool // names and private resources may have changed
	pending   map[*hold]struct{}
	sending   *sub // whose response is built and about to be sent
	blocked   bool // inside Send
	ended     bool
	named     bool // a response has said who we are
}

// fail ends the stream with an error, from any goroutine.
func (st *stream) fail(reason string, err error) {
	st.once.Do(func() {
		st.reason, st.err = reason, err
		close(st.failed)
	})
}

// DeltaAggregatedResources serves one delta stream.
func (s *Server) DeltaAggregatedResources(g discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.serve(g.Context(), false, func(ctx context.Context, st *stream) error {
		return delta.NewServer(ctx, st, nil, options()...).DeltaStreamHandler(&deltaStream{g, st}, "")
	})
}

// StreamAggregatedResources serves one state-of-the-world stream.
func (s *Server) StreamAggregatedResources(g discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.serve(g.Context(), true, func(ctx context.Context, st *stream) error {
		opts := append(options(), sotw.WithOrderedADS())
		return sotw.NewServer(ctx, st, nil, opts...).StreamHandler(&sotwStream{AggregatedDiscoveryService_StreamAggregatedResourcesServer: g, st: st}, "")
	})
}

// options: only listeners and clusters have a wildcard that is not spelled out.
// https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#how-the-client-specifies-what-resources-to-return
func options() []config.XDSOption {
	return []config.XDSOption{
		sotw.WithLogger(log.NewDefaultLogger()),
		config.DeactivateLegacyWildcardForTypes([]string{
			string(resource.TypeRoute), string(resource.TypeEndpoints), string(resource.TypeSecret),
		}),
	}
}

// serve runs one stream until the client, a limit or Close ends it.
func (s *Server) serve(ctx context.Context, isSotW bool, run func(context.Context, *stream) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st := &stream{srv: s, sotw: isSotW, since: s.cfg.Now(), ctx: ctx, failed: make(chan struct{}), subs: map[resource.Type]*sub{}}
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		st.remote = p.Addr.String()
	}
	if err := s.add(st); err != nil {
		return err
	}
	st.first = time.AfterFunc(s.cfg.Limits.FirstRequest, func() {
		st.fail("silent", status.Errorf(codes.DeadlineExceeded, "xds/server: no request within %s of opening the stream", s.cfg.Limits.FirstRequest))
	})
	if end, ok := notAfter(ctx); ok { // who still has an identity comes back with a new certificate
		t := time.AfterFunc(time.Until(end), func() {
			st.fail("expired", status.Error(codes.Unauthenticated, "xds/server: the certificate of this connection has expired; connect again with a current one"))
		})
		defer t.Stop()
	}
	done := make(chan error, 1)
	go func() {
		defer s.wg.Done()
		done <- run(ctx, st)
	}()
	var err error
	select {
	case err = <-done:
	case <-st.failed:
		cancel()
		// A send that hangs ends only when this handler returns and the
		// transport gives the stream up; Close waits for that goroutine.
		const grace = time.Second
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-done:
		case <-t.C:
		}
	}
	st.first.Stop()
	st.fail("client", err)
	s.remove(st)
	return st.err
}

func (s *Server) add(st *stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return status.Error(codes.Unavailable, "xds/server: the control plane is going down; connect to another, or again")
	}
	s.lastID++
	st.id = s.lastID
	s.streams[st.id] = st
	s.m.StreamsOpened++
	s.wg.Add(1)
	return nil
}

func (s *Server) remove(st *stream) {
	s.mu.Lock()
	st.ended = true
	delete(s.streams, st.id)
	s.m.StreamsClosed[st.reason]++
	for _, b := range st.subs {
		if b.inflight != nil && b.inflight.timer != nil {
			b.inflight.timer.Stop()
		}
		for _, h := range b.holds {
			s.detach(h)
			h.dropped = true
		}
	}
	gone := false
	if n := s.nodes[st.w.NodeID]; st.admitted && n != nil {
		delete(n, st.id)
		if gone = len(n) == 0; gone {
			delete(s.nodes, st.w.NodeID)
		}
	}
	f := s.onConnect
	s.mu.Unlock()
	if gone && f != nil {
		f(st.w, false)
	}
	s.cfg.Log.Debug("xds/server: stream ended", "node", st.w.NodeID, "remote", st.remote, "reason", st.reason, "error", st.err)
}

// admit authenticates the stream by its first request, and holds all later ones
// to it.
func (st *stream) admit(n *core.Node) error {
	if st.admitted {
		if id := n.GetId(); id != "" && id != st.w.NodeID {
			return status.Errorf(codes.PermissionDenied, "xds/server: the stream of node %q now says that it is %q; open a stream of its own for each node", st.w.NodeID, id)
		}
		return nil
	}
	st.first.Stop()
	s := st.srv
	if n.GetId() == "" {
		return status.Error(codes.InvalidArgument, "xds/server: the first request of a stream must carry node.id; set it to the proxy's service id")
	}
	id, err := s.cfg.Peer(st.ctx)
	if err != nil {
		return status.Errorf(codes.PermissionDenied, "xds/server: node %q: %v", n.GetId(), err)
	}
	d := dialectOf(n.GetUserAgentName())
	w, err := s.cfg.Authoriser.Authorise(st.ctx, id, n.GetId(), d)
	if err != nil {
		return status.Errorf(codes.PermissionDenied, "xds/server: %s may not speak as node %q: %v", id, n.GetId(), err)
	}
	w.NodeID, w.ID, w.Dialect = n.GetId(), id, d
	if w.Metadata == nil {
		w.Metadata = flat(n)
	}
	s.mu.Lock()
	byID := s.nodes[w.NodeID]
	if max := s.cfg.Limits.StreamsPerNode; len(byID) >= max {
		s.mu.Unlock()
		return status.Errorf(codes.ResourceExhausted, "xds/server: node %q has %d streams open already; one is enough", w.NodeID, max)
	}
	if byID == nil {
		byID = map[int64]*stream{}
		s.nodes[w.NodeID] = byID
	}
	byID[st.id] = st
	st.w, st.admitted = w, true
	st.userAgent = n.GetUserAgentName()
	came := len(byID) == 1
	f := s.onConnect
	s.mu.Unlock()
	if came && f != nil {
		f(w, true)
	}
	return nil
}

// flat takes the strings of the node's metadata.
func flat(n *core.Node) map[string]string {
	m := map[string]string{}
	for k, v := range n.GetMetadata().GetFields() {
		if v.GetStringValue() != "" {
			m[k] = v.GetStringValue()
		}
	}
	return m
}

// received is called with each request; its error ends the stream.
func (st *stream) received(n *core.Node) error {
	err := st.admit(n)
	if err == nil {
		return nil
	}
	reason := "denied"
	if status.Code(err) == codes.ResourceExhausted {
		reason = "limit"
	}
	st.fail(reason, err)
	st.srv.mu.Lock()
	st.srv.m.StreamsDenied++
	st.srv.mu.Unlock()
	st.srv.cfg.Log.Warn("xds/server: stream refused", "node", n.GetId(), "remote", st.remote, "error", err)
	return err
}

// send puts one built response on the wire and watches for its answer.
func (st *stream) send(nonce string, size int, put func() error) error {
	s := st.srv
	s.mu.Lock()
	b := st.sending
	st.sending = nil
	if b == nil || b.inflight == nil || st.ended {
		s.mu.Unlock()
		return errors.New("xds/server: the stream has ended")
	}
	b.inflight.nonce = nonce
	b.bytes += uint64(size)
	s.m.Bytes[b.typ.Short()] += uint64(size)
	s.m.Responses[b.typ.Short()]++
	st.blocked = true
	wait := s.cfg.Limits.AckTimeout
	typ := b.typ.Short()
	b.inflight.timer = time.AfterFunc(wait, func() { st.unanswered(typ, wait) })
	s.mu.Unlock()

	err := put()

	s.mu.Lock()
	defer s.mu.Unlock()
	st.blocked = false
	st.schedule()
	return err
}

// swallow ends a turn in which there was nothing to say.
func (st *stream) swallow() {
	st.srv.mu.Lock()
	defer st.srv.mu.Unlock()
	st.schedule()
}

// unanswered ends a stream whose client does not read, or does not answer.
func (st *stream) unanswered(typ string, wait time.Duration) {
	st.srv.mu.Lock()
	slow, node := st.blocked, st.w.NodeID
	st.srv.mu.Unlock()
	reason, did := "silent", "did not acknowledge or refuse"
	if slow {
		reason, did = "slow", "did not read"
	}
	err := fmt.Sprintf("xds/server: node %q %s a response (%s) within %s; the stream is closed, connect again", node, did, typ, wait)
	st.srv.cfg.Log.Warn("xds/server: a client fell behind and is disconnected", "node", node, "remote", st.remote, "type", typ, "reason", reason)
	st.fail(reason, status.Error(codes.DeadlineExceeded, err))
}

// notAfter is when the certificate of the stream's peer ends.
func notAfter(ctx context.Context) (time.Time, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return time.Time{}, false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return time.Time{}, false
	}
	return info.State.PeerCertificates[0].NotAfter, true
}

type deltaStream struct {
	discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	st *stream
}

func (d *deltaStream) Recv() (*discovery.DeltaDiscoveryRequest, error) {
	req, err := d.AggregatedDiscoveryService_DeltaAggregatedResourcesServer.Recv()
	if err != nil {
		return nil, err
	}
	return req, d.st.received(req.GetNode())
}

func (d *deltaStream) Send(r *discovery.DeltaDiscoveryResponse) error {
	if r.GetTypeUrl() == "" {
		d.st.swallow()
		return nil
	}
	return d.st.send(r.GetNonce(), proto.Size(r), func() error {
		return d.AggregatedDiscoveryService_DeltaAggregatedResourcesServer.Send(r)
	})
}

type sotwStream struct {
	discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer
	st    *stream
	held  *discovery.DiscoveryRequest
	begun bool
}

// Recv puts a request for the idle type before the client's first one: turns
// with nothing to say are accounted to it, so that they disturb no real type's
// nonce.
func (d *sotwStream) Recv() (*discovery.DiscoveryRequest, error) {
	if req := d.held; req != nil {
		d.held = nil
		return req, nil
	}
	req, err := d.AggregatedDiscoveryService_StreamAggregatedResourcesServer.Recv()
	if err != nil {
		return nil, err
	}
	if err := d.st.received(req.GetNode()); err != nil {
		return nil, err
	}
	if !d.begun {
		d.begun, d.held = true, req
		return &discovery.DiscoveryRequest{TypeUrl: idleType, Node: req.GetNode()}, nil
	}
	return req, nil
}

func (d *sotwStream) Send(r *discovery.DiscoveryResponse) error {
	if r.GetTypeUrl() == "" {
		d.st.swallow()
		return nil
	}
	return d.st.send(r.GetNonce(), proto.Size(r), func() error {
		return d.AggregatedDiscoveryService_StreamAggregatedResourcesServer.Send(r)
	})
}

// PeerFromTLS reads the SPIFFE id of the certificate that the peer presented.
// The listener's tls.Config has verified it against the trust bundles: it must
// verify every certificate that a client gives.
func PeerFromTLS(ctx context.Context) (spiffeid.ID, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return spiffeid.ID{}, errors.New("the connection has no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return spiffeid.ID{}, errors.New("the connection is not TLS; configuration is served over mutual TLS only")
	}
	if len(info.State.PeerCertificates) == 0 {
		return spiffeid.ID{}, errors.New("the client presented no certificate; obtain one with a token (parrel token create) first")
	}
	id, err := x509svid.IDFromCert(info.State.PeerCertificates[0])
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("the client's certificate carries no SPIFFE id: %w", err)
	}
	return id, nil
}
