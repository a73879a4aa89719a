package wire

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// spiffeValidator is Envoy's validator of SPIFFE ids: each trust domain is
// vouched for by its own roots only.
const spiffeValidator = "envoy.tls.cert_validator.spiffe"

func inline(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}

func file(path string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}}
}

// inline refuses what is not in the resource itself: a secret names no files.
func (d *decoder) inline(field string, s *corev3.DataSource) []byte {
	switch x := s.GetSpecifier().(type) {
	case *corev3.DataSource_InlineBytes:
		return x.InlineBytes
	case *corev3.DataSource_InlineString:
		return []byte(x.InlineString)
	}
	d.fail(field, "must be inline_bytes or inline_string")
	return nil
}

func (e *encoder) secret(s *resource.Secret) *tlsv3.Secret {
	out := &tlsv3.Secret{Name: s.Name}
	if len(s.TrustPEM) == 0 {
		out.Type = &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{CertificateChain: inline(s.ChainPEM), PrivateKey: inline(s.KeyPEM)}}
		return out
	}
	ctx := &tlsv3.CertificateValidationContext{}
	out.Type = &tlsv3.Secret_ValidationContext{ValidationContext: ctx}
	if s.TrustPEM[0].TrustDomain == "" {
		ctx.TrustedCa = inline(s.TrustPEM[0].RootsPEM)
		return out
	}
	cfg := &tlsv3.SPIFFECertValidatorConfig{}
	for _, b := range s.TrustPEM {
		cfg.TrustDomains = append(cfg.TrustDomains, &tlsv3.SPIFFECertValidatorConfig_TrustDomain{Name: b.TrustDomain, TrustBundle: inline(b.RootsPEM)})
	}
	ctx.CustomValidatorConfig = &corev3.TypedExtensionConfig{Name: spiffeValidator, TypedConfig: e.pack(cfg)}
	return out
}

func (d *decoder) secret(m *tlsv3.Secret) *resource.Secret {
	out := &resource.Secret{Name: m.GetName()}
	switch x := m.GetType().(type) {
	case *tlsv3.Secret_TlsCertificate:
		if d.static {
			d.secretFrom(out, d.staticCertificate("tls_certificate", x.TlsCertificate))
			break
		}
		out.ChainPEM = d.inline("tls_certificate.certificate_chain", x.TlsCertificate.GetCertificateChain())
		out.KeyPEM = d.inline("tls_certificate.private_key", x.TlsCertificate.GetPrivateKey())
	case *tlsv3.Secret_ValidationContext:
		d.trust("validation_context", x.ValidationContext, out)
	default:
		d.fail("type", "is neither a certificate nor a validation context")
	}
	return out
}

func (d *decoder) trust(field string, c *tlsv3.CertificateValidationContext, out *resource.Secret) {
	if len(c.GetMatchTypedSubjectAltNames())+len(c.GetMatchSubjectAltNames()) > 0 || c.GetCaCertificateProviderInstance() != nil {
		d.fail(field, "a secret holds roots; which names are accepted belongs to the transport socket")
	}
	v := c.GetCustomValidatorConfig()
	if v == nil && d.static {
		d.secretFrom(out, d.staticTrust(field, c))
		return
	}
	if v == nil {
		out.TrustPEM = []resource.TrustBundle{{RootsPEM: d.inline(field+".trusted_ca", c.GetTrustedCa())}}
		return
	}
	if c.GetTrustedCa() != nil {
		d.fail(field+".trusted_ca", "stands beside the SPIFFE validator's bundles; choose one")
	}
	cfg := &tlsv3.SPIFFECertValidatorConfig{}
	at := field + ".custom_validator_config.typed_config"
	if !d.unpack(at, v.GetTypedConfig(), cfg) {
		return
	}
	for i, td := range cfg.GetTrustDomains() {
		b := resource.TrustBundle{TrustDomain: td.GetName(), RootsPEM: d.inline(index(at+".trust_domains", i)+".trust_bundle", td.GetTrustBundle())}
		if b.TrustDomain == "" {
			d.fail(index(at+".trust_domains", i)+".name", "must not be empty")
		}
		out.TrustPEM = append(out.TrustPEM, b)
	}
}
