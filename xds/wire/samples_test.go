package wire

import (
	"net/netip"
	"time"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// samples are resources as parrel's control plane makes them: for its own
// sidecars, and for proxyless gRPC.
func samples() []resource.Resource {
	router := resource.HTTPFilter{Name: "envoy.filters.http.router", Router: &resource.Router{}}
	mesh := resource.TLSParams{
		Certificate: resource.CertSource{SDS: resource.SecretIdentity}, Trust: resource.CertSource{SDS: resource.SecretTrust},
		PeerSANs: []resource.StringMatch{{Value: "spiffe://td.consul/ns/default/dc/dc1/svc/api"}}, ALPN: []string{"h2", "http/1.1"},
	}
	grpc := resource.TLSParams{
		Certificate: resource.CertSource{Provider: "default"}, Trust: resource.CertSource{Provider: "default"},
		PeerSANs: []resource.StringMatch{{Value: "spiffe://td.consul/ns/default/dc/dc1/svc/api"}},
	}
	web := resource.Principal{Authenticated: &resource.AuthenticatedPrincipal{Name: &resource.StringMatch{Value: "spiffe://td.consul/ns/default/dc/dc1/svc/web"}}}
	rules := &resource.RBAC{Rules: &resource.RBACRules{Policies: []resource.RBACPolicy{
		{Name: "web", Permissions: []resource.Permission{{Any: true}}, Principals: []resource.Principal{web}}}}}
	timeout := 5 * time.Second
	vips := []netip.Addr{netip.MustParseAddr("240.0.0.1"), netip.MustParseAddr("fd70:6172:7265:6c::f000:1")}
	server := mesh
	server.PeerSANs = nil
	return []resource.Resource{
		&resource.Listener{Name: "inbound", Address: resource.Address{Host: "0.0.0.0", Port: 21000}, Direction: resource.Inbound, Chains: []resource.FilterChain{{
			Name: "public", TLS: &resource.DownstreamTLS{TLSParams: server, RequireClientCert: true},
			Network: []resource.NetworkFilter{{Name: "envoy.filters.network.rbac", RBAC: rules}},
			HTTP:    &resource.HTTPManager{RouteName: "inbound", XFCC: resource.SanitizeSetXFCC, Upgrades: []string{"websocket"}, Filters: []resource.HTTPFilter{{Name: "envoy.filters.http.rbac", RBAC: rules}, router}},
		}}},
		&resource.Listener{Name: "dns:127.0.0.1:15053", Direction: resource.Outbound, Address: resource.Address{Host: "127.0.0.1", Port: 15053},
			Additional: []resource.Address{{Host: "::1", Port: 15053}},
			DNS: &resource.DNSFilter{KnownSuffixes: []string{"mesh", "virtual.consul"}, Domains: []resource.DNSDomain{
				{Name: "api", Addrs: vips}, {Name: "api.mesh", Addrs: vips}, {Name: "api.service.consul", Addrs: vips}, {Name: "api.virtual.consul", Addrs: vips}}}},
		&resource.Listener{Name: "api.grpc", API: &resource.HTTPManager{RouteName: "api", Filters: []resource.HTTPFilter{router}}},
		&resource.RouteConfig{Name: "api", VirtualHosts: []resource.VirtualHost{{Name: "api", Domains: []string{"*"}, Routes: []resource.Route{
			{Match: resource.RouteMatch{Path: "/v2"}, Forward: &resource.Forward{Timeout: &timeout, PrefixRewrite: "/", Weighted: []resource.WeightedCluster{{Name: "api-v1", Weight: 90}, {Name: "api-v2", Weight: 10}}}},
			{Match: resource.RouteMatch{Path: "/"}, Forward: &resource.Forward{Cluster: "api-v1"}},
		}}}},
		&resource.Cluster{Name: "api", Protocol: resource.ProtocolAuto, TLS: &resource.UpstreamTLS{TLSParams: mesh, SNI: "api.default.dc1.internal"}},
		&resource.Cluster{Name: "api.grpc", EDSName: "api", LB: resource.LBPolicy{Random: &resource.Random{}}, TLS: &resource.UpstreamTLS{TLSParams: grpc}},
		&resource.Endpoints{Cluster: "api", Localities: []resource.Locality{{Zone: "dc1", Weight: 1, Endpoints: []resource.Endpoint{
			{Address: resource.Address{Host: "10.0.0.1", Port: 21000}, Health: resource.Healthy, Weight: 1, Metadata: resource.Metadata{resource.MetaWorkload: "api-1"}}}}}},
		&resource.Secret{Name: resource.SecretTrust, TrustPEM: []resource.TrustBundle{{TrustDomain: "td.consul", RootsPEM: []byte("PEM")}}},
		&resource.Secret{Name: "foreign", ChainPEM: []byte("CHAIN"), KeyPEM: []byte("KEY")},
	}
}
