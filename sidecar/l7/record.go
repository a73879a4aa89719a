package l7

import (
	"strings"

	"github.com/parrel-mesh/parrel/sidecar/cluster"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

// template is the record of every request of the engine, as far as it is known
// before there is one.
func (e *Engine) template() telemetry.Record {
	src, dst := &e.c.Source, &e.c.Destination
	return telemetry.Record{
		Inbound: e.c.Inbound, Protocol: "http", GRPCStatus: -1,
		SourceService: src.Name, SourcePrincipal: src.Principal, SourceVersion: src.Version,
		SourceNamespace: src.Namespace, SourceDatacenter: src.Datacenter,
		DestinationService: dst.Name, DestinationPrincipal: dst.Principal, DestinationVersion: dst.Version,
		DestinationNamespace: dst.Namespace, DestinationDatacenter: dst.Datacenter,
	}
}

// describe adds to the template what is known of every request of the
// connection.
func (x *connection) describe(r *telemetry.Record) {
	c := x.c
	r.Listener, r.Chain, r.Version = c.Listener, c.Chain, c.Version
	r.DownstreamRemote, r.DownstreamLocal = c.Source, c.Destination
	if !r.Inbound {
		return
	}
	r.TLS = c.TLS
	if x.peer != "" {
		src := &x.src
		r.SourceService, r.SourcePrincipal = src.Name, src.Principal
		r.SourceNamespace, r.SourceDatacenter = src.Namespace, src.Datacenter
	}
}

// upstreamPeer fills the destination of an outbound request: what the peer
// proved to be, else what the cluster's name says.
func (s *exchange) upstreamPeer(at *cluster.Attempt) {
	if s.e.c.Inbound {
		return
	}
	r := &s.rec
	r.TLS = at.TLS
	if at.Peer == "" {
		if r.DestinationService == "" {
			r.DestinationService, _, _ = strings.Cut(r.Cluster, ".")
		}
		return
	}
	if at.Peer != s.peer { // most requests go where the one before went
		s.peer, s.peerDst = at.Peer, s.e.c.Destination
		fillService(&s.peerDst, at.Peer)
	}
	dst := &s.peerDst
	r.DestinationService, r.DestinationPrincipal = dst.Name, dst.Principal
	r.DestinationNamespace, r.DestinationDatacenter = dst.Namespace, dst.Datacenter
}

// fillService reads Consul's form of SPIFFE ids:
// spiffe://<trust domain>/ns/<ns>/dc/<dc>/svc/<service>.
func fillService(s *Service, id string) {
	s.Principal = id
	rest, ok := strings.CutPrefix(id, "spiffe://")
	if !ok {
		return
	}
	_, rest, _ = strings.Cut(rest, "/")
	for rest != "" {
		var k, v string
		k, rest, _ = strings.Cut(rest, "/")
		v, rest, _ = strings.Cut(rest, "/")
		switch k {
		case "ns":
			s.Namespace = v
		case "dc":
			s.Datacenter = v
		case "svc":
			s.Name = v
		}
	}
}
