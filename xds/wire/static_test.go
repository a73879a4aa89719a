package wire

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// gateway is a static listener's transport socket.
const gateway = `{"name":"gw","address":{"socket_address":{"address":"127.0.0.1","port_value":443}},"filter_chains":[{
"transport_socket":{"name":"envoy.transport_sockets.tls","typed_config":{
 "@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
 "require_client_certificate":true,
 "common_tls_context":{
  "alpn_protocols":["h2","http/1.1"],
  "tls_params":{"ecdh_curves":["X25519","P-256"]},
  "tls_certificates":[{"certificate_chain":{"filename":"c.pem"},"private_key":{"filename":"k.pem"}}],
  "validation_context":{"trusted_ca":{"inline_string":"ROOTS"},
   "match_typed_subject_alt_names":[{"san_type":"URI","matcher":{"prefix":"spiffe://a/"}},{"san_type":"DNS","matcher":{"exact":"b.example"}}]}}}},
"filters":[{"name":"tcp","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy","stat_prefix":"t","cluster":"app"}}]}]}`

// upstream is a static cluster that takes whoever answers.
const upstream = `{"name":"app","load_assignment":{"cluster_name":"app","endpoints":[{"lb_endpoints":[{"endpoint":{"address":{"socket_address":{"address":"127.0.0.1","port_value":1}}}}]}]},
"transport_socket":{"name":"envoy.transport_sockets.tls","typed_config":{
 "@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext","sni":"app.example",
 "common_tls_context":{"tls_certificate_sds_secret_configs":[{"name":"mine"}],"validation_context":{"trust_chain_verification":"ACCEPT_UNTRUSTED"}}}}}`

// staticDocuments have what only static configuration may say.
var staticDocuments = map[resource.Type]string{resource.TypeListener: gateway, resource.TypeCluster: upstream}

// TestStatic: certificates of a file become secrets that the resource refers to.
func TestStatic(t *testing.T) {
	s, err := DecodeStatic(resource.TypeListener, []byte(gateway))
	if err != nil {
		t.Fatal(err)
	}
	got := s.Resource.(*resource.Listener).Chains[0].TLS
	want := &resource.DownstreamTLS{RequireClientCert: true, TLSParams: resource.TLSParams{
		Certificate: resource.CertSource{Files: &resource.CertFiles{Cert: "c.pem", Key: "k.pem"}},
		Trust:       resource.CertSource{SDS: "inline:LDS/gw/filter_chains[0].transport_socket.typed_config.common_tls_context.validation_context"},
		PeerSANs:    []resource.StringMatch{{Kind: resource.StringPrefix, Value: "spiffe://a/"}},
		PeerDNS:     []resource.StringMatch{{Value: "b.example"}},
		ALPN:        []string{"h2", "http/1.1"}, MinVersion: "1.2", Curves: []string{"X25519", "P-256"},
	}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	secrets := []*resource.Secret{
		{Name: "file:c.pem,k.pem", Files: &resource.CertFiles{Cert: "c.pem", Key: "k.pem"}},
		{Name: want.Trust.SDS, TrustPEM: []resource.TrustBundle{{RootsPEM: []byte("ROOTS")}}},
	}
	if d := cmp.Diff(secrets, s.Secrets); d != "" {
		t.Error(d)
	}
	s, err = DecodeStatic(resource.TypeCluster, []byte(upstream))
	if err != nil {
		t.Fatal(err)
	}
	if p := s.Resource.(*resource.Cluster).TLS; !p.AcceptUntrusted || p.Certificate.SDS != "mine" || p.SNI != "app.example" {
		t.Errorf("the cluster's TLS is %+v", p)
	}
}

// TestStaticTravels: what static configuration says is shown as it was said.
func TestStaticTravels(t *testing.T) {
	for typ, text := range staticDocuments {
		s, err := DecodeStatic(typ, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := JSON(s.Resource)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"X25519", "b.example", "ACCEPT_UNTRUSTED"} {
			if strings.Contains(text, word) && !strings.Contains(string(raw), word) {
				t.Errorf("%s: %q is not shown: %s", typ.Short(), word, raw)
			}
		}
	}
}

// TestOnlyStatic: a control plane may say none of it.
func TestOnlyStatic(t *testing.T) {
	for typ, text := range staticDocuments {
		if _, _, err := FromJSON(typ, []byte(text)); err == nil {
			t.Errorf("%s of a control plane is taken", typ.Short())
		}
	}
}

func TestStaticRefusals(t *testing.T) {
	const tcp = `"filters":[{"name":"t","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy","stat_prefix":"t","cluster":"app"}}]`
	listener := func(common string) string {
		return `{"name":"gw","address":{"socket_address":{"address":"127.0.0.1","port_value":443}},"filter_chains":[{
"transport_socket":{"name":"tls","typed_config":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext","common_tls_context":{` + common + `}}},` + tcp + `}]}`
	}
	for name, c := range map[string]struct {
		typ        resource.Type
		text, want string
	}{
		"half a file": {resource.TypeListener, listener(`"tls_certificates":[{"certificate_chain":{"filename":"c"},"private_key":{"inline_string":"k"}}]`), "one of certificate_chain and private_key is a file"},
		"sds":         {resource.TypeListener, listener(`"tls_certificate_sds_secret_configs":[{"name":"x","sds_config":{"ads":{}}}]`), "there is nobody to ask"},
		"curve":       {resource.TypeListener, listener(`"tls_params":{"ecdh_curves":["P-224"]},"tls_certificates":[{"certificate_chain":{"filename":"c"},"private_key":{"filename":"k"}}]`), `"P-224" is not known; choose among`},
		"ciphers":     {resource.TypeListener, listener(`"tls_params":{"cipher_suites":["x"]},"tls_certificates":[{"certificate_chain":{"filename":"c"},"private_key":{"filename":"k"}}]`), "parrel does not honour this field"},
		"rds": {resource.TypeListener, `{"name":"l","address":{"socket_address":{"address":"127.0.0.1","port_value":1}},"filter_chains":[{"filters":[{"name":"h","typed_config":{
"@type":"type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager","stat_prefix":"h","rds":{"route_config_name":"r","config_source":{"ads":{}}},
"http_filters":[{"name":"r","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]}`, "there is no control plane"},
		"nothing to check by": {resource.TypeCluster, strings.Replace(upstream, `,"validation_context":{"trust_chain_verification":"ACCEPT_UNTRUSTED"}`, "", 1), "there is nothing to check the server by"},
	} {
		_, err := DecodeStatic(c.typ, []byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
}

func TestJSONErrorsHavePlaces(t *testing.T) {
	_, err := DecodeStatic(resource.TypeCluster, []byte("{\n\"name\":\n\"x\",\n\"nmae\":\n\"y\"\n}"))
	j, ok := errors.AsType[*JSONError](err)
	if !ok || j.Line != 4 || !strings.HasPrefix(j.Reason, `unknown field "nmae"`) {
		t.Errorf("the error is %#v", err)
	}
	if _, err := StaticAddress([]byte(`{"socket_address":{"address":"127.0.0.1","named_port":"x"}}`)); err == nil {
		t.Error("a named port is taken")
	}
}
