package generate

import (
	"net/netip"
	"strings"

	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// providerInstance is the certificate provider in the bootstrap of a gRPC
// client or server: files that "parrel svid" keeps fresh.
const providerInstance = "default"

// grpcServerPrefix is what grpc-go's bootstrap says in
// server_listener_resource_name_template before the listening address.
const grpcServerPrefix = "grpc/server?xds.resource.listening_address="

// grpcResource makes the resources of a proxyless gRPC application: for
// xds:///NAME a listener NAME, from which route, cluster and endpoints follow;
// for a server one listener for each address on which it listens.
func grpcResource(m *mesh.Snapshot, w *mesh.Workload, t resource.Type, name string) (resource.Resource, bool, bool) {
	if t == resource.TypeListener {
		if addr, ok := strings.CutPrefix(name, grpcServerPrefix); ok {
			l, ok := grpcServer(m, w, name, addr)
			return l, true, ok
		}
		svc := m.Local(name)
		if !grpcServes(m, svc) {
			return nil, false, false
		}
		return grpcListener(m, svc, name), false, true
	}
	svc, ok := parseClusterName(m, name)
	if !ok || !grpcServes(m, svc) {
		return nil, false, false
	}
	switch t {
	case resource.TypeRoute:
		return upstreamRoute(m, svc, name), false, true
	case resource.TypeCluster:
		return upstreamCluster(m, svc, options{}, true), false, true
	case resource.TypeEndpoints:
		return endpoints(m, svc), false, true
	}
	return nil, false, false
}

// grpcServes says whether gRPC can call the service: it is in the catalogue,
// and its proxies speak HTTP.
func grpcServes(m *mesh.Snapshot, svc discovery.ServiceName) bool {
	_, ok := m.Service(svc)
	return ok && m.Protocol(svc).HTTP()
}

func grpcListener(m *mesh.Snapshot, svc discovery.ServiceName, name string) *resource.Listener {
	p := m.Protocol(svc)
	return &resource.Listener{
		Name: name,
		API: &resource.HTTPManager{
			StatPrefix: "upstream." + svc.Name,
			RouteName:  ClusterName(m, svc),
			Filters:    []resource.HTTPFilter{{Name: httpRouter, Router: &resource.Router{}}},
		},
		Metadata: metadata(svc, p, entryName(p.Entry)),
	}
}

// grpcServer is the listener of a gRPC server. grpc-go has no network RBAC
// filter, so that intentions are an HTTP filter here.
func grpcServer(m *mesh.Snapshot, w *mesh.Workload, name, addr string) (*resource.Listener, bool) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, false
	}
	return &resource.Listener{
		Name: name, Direction: resource.Inbound,
		Address: resource.Address{Host: ap.Addr().String(), Port: ap.Port()},
		Chains: []resource.FilterChain{{
			Name: PublicListener,
			TLS: &resource.DownstreamTLS{
				RequireClientCert: true,
				TLSParams: resource.TLSParams{
					Certificate: resource.CertSource{Provider: providerInstance},
					Trust:       resource.CertSource{Provider: providerInstance},
				},
			},
			HTTP: &resource.HTTPManager{
				StatPrefix: PublicListener,
				Route: &resource.RouteConfig{
					Name: PublicListener,
					VirtualHosts: []resource.VirtualHost{{
						Name: PublicListener, Domains: []string{"*"},
						Routes: []resource.Route{{
							Name: "default", Match: resource.RouteMatch{Path: "/"}, NonForwarding: true,
						}},
					}},
				},
				Filters: []resource.HTTPFilter{
					{Name: httpRBAC, RBAC: intentions(m, w.Service)},
					{Name: httpRouter, Router: &resource.Router{}},
				},
			},
		}},
		Metadata: metadata(w.Service, m.Protocol(w.Service), registration(w)),
	}, true
}
