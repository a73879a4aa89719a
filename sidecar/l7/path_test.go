package l7

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestAuthority(t *testing.T) {
	for a, want := range map[string]bool{"": true, "a": true, "A.b.:80": true, "[::1]:80": true, "[::1]": true, "a:": true,
		"a@b": false, "a/b": false, "a b": false, "[::1": false, "a:8x": false, "[::1]x": false, "a,b": false, "a\\b": false, "::1]": false} {
		if err := checkAuthority(a); (err == nil) != want {
			t.Errorf("%q: %v", a, err)
		}
	}
}

func TestSanitise(t *testing.T) {
	const web = "spiffe://td/ns/default/dc/dc1/svc/web"
	sent := stream.Header{
		{Name: "x-forwarded-client-cert", Value: "URI=spiffe://forged"}, {Name: "x_forwarded_client_cert", Value: "URI=spiffe://forged"},
		{Name: "x-forwarded-for", Value: "1.2.3.4"}, {Name: "x_forwarded-for", Value: "6.6.6.6"}, {Name: "forwarded", Value: "for=x"},
		{Name: "x-envoy-internal", Value: "true"}, {Name: "x-parrel-peer", Value: "root"}, {Name: "accept", Value: "*/*"}, {Name: "my_own", Value: "kept"},
	}
	for name, tt := range map[string]struct {
		inbound bool
		peer    string
		xfcc    resource.ForwardClientCert
		want    []string
	}{
		"stranger":         {inbound: true, xfcc: resource.SanitizeSetXFCC, want: []string{"accept", "my_own"}},
		"peer":             {inbound: true, peer: web, xfcc: resource.SanitizeSetXFCC, want: []string{"x-forwarded-for", "forwarded", "x-envoy-internal", "x-parrel-peer", "accept", "my_own", "x-forwarded-client-cert=By=spiffe://td/api;URI=" + web}},
		"peer, sanitise":   {inbound: true, peer: web, want: []string{"x-forwarded-for", "forwarded", "x-envoy-internal", "x-parrel-peer", "accept", "my_own"}},
		"peer, append":     {inbound: true, peer: web, xfcc: resource.AppendForwardXFCC, want: []string{"x-forwarded-for", "forwarded", "x-envoy-internal", "x-parrel-peer", "accept", "my_own", "x-forwarded-client-cert=URI=spiffe://forged,By=spiffe://td/api;URI=" + web}},
		"stranger, append": {inbound: true, xfcc: resource.AppendForwardXFCC, want: []string{"accept", "my_own"}},
		"own application":  {want: []string{"x-forwarded-for", "forwarded", "x-envoy-internal", "x-parrel-peer", "accept", "my_own"}},
	} {
		c := &listener.Conn{}
		if tt.peer != "" {
			c.Peer = spiffeid.RequireFromString(tt.peer)
		}
		x := newConnection(&Engine{c: Config{Manager: &resource.HTTPManager{XFCC: tt.xfcc}, Inbound: tt.inbound, Destination: Service{Principal: "spiffe://td/api"}}}, c)
		h := sent.Clone()
		x.sanitise(&h)
		var got []string
		for _, f := range h {
			if f.Name == hXFCC {
				f.Name += "=" + f.Value
			}
			got = append(got, f.Name)
		}
		if strings.Join(got, "\n") != strings.Join(tt.want, "\n") {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}
