package wire

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/parrel-mesh/parrel/xds/resource"
)

const (
	tlsSocket = "envoy.transport_sockets.tls" // grpc-go insists on the name
	rawSocket = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
)

func index(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }

func (e *encoder) socket(m proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{Name: tlsSocket, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: e.pack(m)}}
}

func (e *encoder) downstreamTLS(t *resource.DownstreamTLS) *corev3.TransportSocket {
	if t == nil {
		return nil
	}
	return e.socket(&tlsv3.DownstreamTlsContext{CommonTlsContext: e.commonTLS(&t.TLSParams), RequireClientCertificate: boolean(t.RequireClientCert)})
}

func (e *encoder) upstreamTLS(t *resource.UpstreamTLS) *corev3.TransportSocket {
	if t == nil {
		return nil
	}
	return e.socket(&tlsv3.UpstreamTlsContext{CommonTlsContext: e.commonTLS(&t.TLSParams), Sni: t.SNI})
}

func sds(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: ads()}
}

func (e *encoder) commonTLS(t *resource.TLSParams) *tlsv3.CommonTlsContext {
	out := &tlsv3.CommonTlsContext{AlpnProtocols: t.ALPN}
	// grpc-go refuses tls_params; what is said by provider instances is for it.
	// Everyone else is told 1.3, which is no default of Envoy's.
	provider := t.Certificate.Provider != "" || t.Trust.Provider != ""
	if !provider || t.MinVersion != "" || t.MaxVersion != "" || len(t.Curves) > 0 {
		out.TlsParams = &tlsv3.TlsParameters{TlsMinimumProtocolVersion: version(t.MinVersion), TlsMaximumProtocolVersion: version(t.MaxVersion),
			EcdhCurves: t.Curves}
	}
	switch c := t.Certificate; {
	case c.SDS != "":
		out.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{sds(c.SDS)}
	case c.Provider != "":
		out.TlsCertificateProviderInstance = &tlsv3.CertificateProviderPluginInstance{InstanceName: c.Provider}
	case c.Files != nil:
		out.TlsCertificates = []*tlsv3.TlsCertificate{{CertificateChain: file(c.Files.Cert), PrivateKey: file(c.Files.Key)}}
	}
	e.trust(t, out)
	return out
}

// trust writes what the peer is checked by. Envoy refuses a context with both
// forms of SAN matchers and wants the typed one; grpc-go reads only the
// deprecated one, and only beside a provider instance. So both stand there for
// grpc-go, and the typed one alone for everyone else.
func (e *encoder) trust(t *resource.TLSParams, out *tlsv3.CommonTlsContext) {
	ctx := &tlsv3.CertificateValidationContext{}
	for i := range t.PeerSANs {
		ctx.MatchTypedSubjectAltNames = append(ctx.MatchTypedSubjectAltNames, &tlsv3.SubjectAltNameMatcher{
			SanType: tlsv3.SubjectAltNameMatcher_URI, Matcher: e.text(&t.PeerSANs[i])})
	}
	for i := range t.PeerDNS {
		ctx.MatchTypedSubjectAltNames = append(ctx.MatchTypedSubjectAltNames, &tlsv3.SubjectAltNameMatcher{
			SanType: tlsv3.SubjectAltNameMatcher_DNS, Matcher: e.text(&t.PeerDNS[i])})
	}
	if t.AcceptUntrusted {
		ctx.TrustChainVerification = tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED
	}
	switch s := t.Trust; {
	case s.SDS != "":
		out.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext: ctx, ValidationContextSdsSecretConfig: sds(s.SDS)}}
		return
	case s.Provider != "":
		for i := range t.PeerSANs {
			//nolint:staticcheck // deprecated, and the only form that grpc-go reads
			ctx.MatchSubjectAltNames = append(ctx.MatchSubjectAltNames, e.text(&t.PeerSANs[i]))
		}
		ctx.CaCertificateProviderInstance = &tlsv3.CertificateProviderPluginInstance{InstanceName: s.Provider}
	case s.Files != nil:
		ctx.TrustedCa = file(s.Files.CA)
	case t.AcceptUntrusted:
	default:
		return
	}
	out.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: ctx}
}

func version(v string) tlsv3.TlsParameters_TlsProtocol {
	if v == "1.2" {
		return tlsv3.TlsParameters_TLSv1_2
	}
	return tlsv3.TlsParameters_TLSv1_3
}

func (d *decoder) version(field string, v tlsv3.TlsParameters_TlsProtocol) string {
	switch v {
	case tlsv3.TlsParameters_TLS_AUTO, tlsv3.TlsParameters_TLSv1_3:
		return ""
	case tlsv3.TlsParameters_TLSv1_2:
		return "1.2"
	}
	d.failf(field, "%s is not spoken; 1.2 and 1.3 are", v)
	return ""
}

// tlsSocket says what a transport socket is: TLS into m, plaintext (false), or
// something that must not be taken for plaintext.
func (d *decoder) tlsSocket(field string, s *corev3.TransportSocket, m proto.Message) bool {
	if s == nil {
		return false
	}
	a := s.GetTypedConfig()
	switch {
	case a.MessageIs(m):
		return d.unpack(field+".typed_config", a, m)
	case a.MessageName() == rawSocket:
		return false
	}
	d.failf(field, "%q is not known; only TLS and plaintext are", a.GetTypeUrl())
	return false
}

func (d *decoder) downstreamTLS(field string, s *corev3.TransportSocket) *resource.DownstreamTLS {
	m := &tlsv3.DownstreamTlsContext{}
	if !d.tlsSocket(field, s, m) {
		return nil
	}
	return &resource.DownstreamTLS{
		TLSParams:         d.commonTLS(field+".typed_config.common_tls_context", m.GetCommonTlsContext()),
		RequireClientCert: m.GetRequireClientCertificate().GetValue(),
	}
}

func (d *decoder) upstreamTLS(field string, s *corev3.TransportSocket) *resource.UpstreamTLS {
	m := &tlsv3.UpstreamTlsContext{}
	if !d.tlsSocket(field, s, m) {
		return nil
	}
	return &resource.UpstreamTLS{TLSParams: d.commonTLS(field+".typed_config.common_tls_context", m.GetCommonTlsContext()), SNI: m.GetSni()}
}

func (d *decoder) commonTLS(field string, c *tlsv3.CommonTlsContext) resource.TLSParams {
	p := c.GetTlsParams()
	out := resource.TLSParams{
		ALPN:       c.GetAlpnProtocols(),
		MinVersion: d.version(field+".tls_params.tls_minimum_protocol_version", p.GetTlsMinimumProtocolVersion()),
		MaxVersion: d.version(field+".tls_params.tls_maximum_protocol_version", p.GetTlsMaximumProtocolVersion()),
		Curves:     p.GetEcdhCurves(),
	}
	switch {
	case d.static && p.GetTlsMinimumProtocolVersion() == tlsv3.TlsParameters_TLS_AUTO:
		out.MinVersion = "1.2" // peers of the mesh speak 1.3; a gateway's clients may not
	case !d.static && len(out.Curves) > 0:
		d.fail(field+".tls_params.ecdh_curves", onlyStatic)
	}
	d.certificate(field, c, &out)
	switch x := c.GetValidationContextType().(type) {
	case nil:
	case *tlsv3.CommonTlsContext_ValidationContext:
		d.validation(field+".validation_context", x.ValidationContext, &out)
	case *tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig:
		out.Trust.SDS = d.sds(field+".validation_context_sds_secret_config", x.ValidationContextSdsSecretConfig)
	case *tlsv3.CommonTlsContext_CombinedValidationContext:
		at := field + ".combined_validation_context"
		d.validation(at+".default_validation_context", x.CombinedValidationContext.GetDefaultValidationContext(), &out)
		if s := x.CombinedValidationContext.GetValidationContextSdsSecretConfig(); s != nil {
			out.Trust.SDS = d.sds(at+".validation_context_sds_secret_config", s)
		}
	default:
		d.fail(field+".validation_context_type", "is of a form that parrel does not know")
	}
	return out
}

func (d *decoder) certificate(field string, c *tlsv3.CommonTlsContext, out *resource.TLSParams) {
	if n := len(c.GetTlsCertificates()) + len(c.GetTlsCertificateSdsSecretConfigs()); n > 1 {
		d.failf(field, "%d certificates are given; parrel presents one", n)
		return
	}
	for _, s := range c.GetTlsCertificateSdsSecretConfigs() {
		out.Certificate.SDS = d.sds(field+".tls_certificate_sds_secret_configs[0]", s)
	}
	for _, t := range c.GetTlsCertificates() {
		at := field + ".tls_certificates[0]"
		if d.static {
			out.Certificate = d.staticCertificate(at, t)
			continue
		}
		out.Certificate.Files = &resource.CertFiles{
			Cert: d.filename(at+".certificate_chain", t.GetCertificateChain()),
			Key:  d.filename(at+".private_key", t.GetPrivateKey()),
		}
	}
	if p := c.GetTlsCertificateProviderInstance(); p != nil {
		out.Certificate.Provider = d.provider(field+".tls_certificate_provider_instance", p)
	}
}

func (d *decoder) validation(field string, c *tlsv3.CertificateValidationContext, out *resource.TLSParams) {
	if c == nil {
		return
	}
	if c.GetCustomValidatorConfig() != nil {
		d.fail(field+".custom_validator_config", "is read in secrets only; give the bundles by SDS")
	}
	switch v := c.GetTrustChainVerification(); {
	case v == tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED && !d.static:
		d.fail(field+".trust_chain_verification", onlyStatic)
	case v == tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED:
		out.AcceptUntrusted = true
	}
	switch {
	case c.GetTrustedCa() == nil:
	case d.static:
		out.Trust = d.staticTrust(field, c)
	default:
		out.Trust.Files = &resource.CertFiles{CA: d.filename(field+".trusted_ca", c.GetTrustedCa())}
	}
	if p := c.GetCaCertificateProviderInstance(); p != nil {
		out.Trust.Provider = d.provider(field+".ca_certificate_provider_instance", p)
	}
	d.names(field, c, out)
}

// names takes the SAN matchers of either form; where both stand they must agree.
func (d *decoder) names(field string, c *tlsv3.CertificateValidationContext, out *resource.TLSParams) {
	for i, m := range c.GetMatchTypedSubjectAltNames() {
		at := index(field+".match_typed_subject_alt_names", i)
		if m.GetSanType() == tlsv3.SubjectAltNameMatcher_DNS && d.static {
			if t := d.text(at+".matcher", m.GetMatcher()); t != nil {
				out.PeerDNS = append(out.PeerDNS, *t)
			}
			continue
		}
		if m.GetSanType() != tlsv3.SubjectAltNameMatcher_URI && d.static {
			d.failf(at+".san_type", "%s is not checked; give a DNS name or a URI", m.GetSanType())
			continue
		}
		if m.GetSanType() != tlsv3.SubjectAltNameMatcher_URI {
			d.failf(at+".san_type", "%s is not checked; peers are known by their SPIFFE id, a URI", m.GetSanType())
		}
		if t := d.text(at+".matcher", m.GetMatcher()); t != nil {
			out.PeerSANs = append(out.PeerSANs, *t)
		}
	}
	old := c.GetMatchSubjectAltNames() //nolint:staticcheck // deprecated, and the only form that some control planes send
	if len(old) == 0 {
		return
	}
	var sans []resource.StringMatch
	for i, m := range old {
		if t := d.text(index(field+".match_subject_alt_names", i), m); t != nil {
			sans = append(sans, *t)
		}
	}
	if len(out.PeerSANs) == 0 {
		out.PeerSANs = sans
		return
	}
	same := len(sans) == len(out.PeerSANs)
	for i := range sans {
		same = same && sans[i] == out.PeerSANs[i]
	}
	if !same {
		d.fail(field+".match_subject_alt_names", "says something else than match_typed_subject_alt_names")
	}
}

func (d *decoder) sds(field string, s *tlsv3.SdsSecretConfig) string {
	if d.static {
		return d.staticSecret(field, s)
	}
	d.fromADS(field+".sds_config", s.GetSdsConfig())
	if s.GetName() == "" {
		d.fail(field+".name", "must not be empty")
	}
	return s.GetName()
}

func (d *decoder) provider(field string, p *tlsv3.CertificateProviderPluginInstance) string {
	if p.GetInstanceName() == "" {
		d.fail(field+".instance_name", "must not be empty")
	}
	return p.GetInstanceName()
}

// filename refuses certificates and keys that stand in the configuration
// itself: they would be written wherever configuration is.
func (d *decoder) filename(field string, s *corev3.DataSource) string {
	if f, ok := s.GetSpecifier().(*corev3.DataSource_Filename); ok {
		return f.Filename
	}
	d.fail(field, "must be a filename; inline certificates are read in secrets only")
	return ""
}
