package l7

import (
	"strings"

	"github.com/parrel-mesh/parrel/sidecar/cluster"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

// describe fills what is known of every request of the connection.
func (x *connection) describe(r *telemetry.Record) {
	c, e := x.c, x.e
	r.Inbound, r.Listener, r.Chain, r.Version = e.c.Inbound, c.Listener, c.Chain, c.Version
	r.DownstreamRemote, r.DownstreamLocal = c.Source, c.Destination
	src, dst := e.c.Source, e.c.Destination
	if e.c.Inbound {
		r.TLS = c.TLS
		if x.peer != "" {
			fillService(&src, x.peer)
		}
	}
	r.SourceService, r.SourcePrincipal, r.SourceVersion = src.Name, src.Principal, src.Version
	r.SourceNamespace, r.SourceDatacenter = src.Namespace, src.Datacenter
	r.DestinationService, r.DestinationPrincipal, r.DestinationVersion = dst.Name, dst.Principal, dst.Version
	r.DestinationNamespace, r.DestinationDatacenter = dst.Namespace, dst.Datacenter
}

// upstreamPeer fills the destination of an outbound request: what the peer
// proved to be, else what the cluster's name says.
func (s *exchange) upstreamPeer(at *cluster.Attempt) {
	if s.e.c.Inbound {
		return
	}
	s.rec.TLS = at.TLS
	dst := s.e.c.Destination
	if at.Peer != "" {
		fillService(&dst, at.Peer)
	} else if dst.Name == "" {
		dst.Name, _, _ = strings.Cut(s.rec.Cluster, ".")
	}
	s.rec.DestinationService, s.rec.DestinationPrincipal = dst.Name, dst.Principal
	s.rec.DestinationNamespace, s.rec.DestinationDatacenter = dst.Namespace, dst.Datacenter
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
