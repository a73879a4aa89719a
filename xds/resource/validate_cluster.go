package resource

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

var (
	_ Resource = (*Cluster)(nil)
	_ Resource = (*Endpoints)(nil)
)

// Validate says whether parrel can execute the cluster.
func (cl *Cluster) Validate() error {
	c := &check{}
	c.name("name", cl.Name)
	c.text("eds_cluster_config.service_name", cl.EDSName)
	c.metadata("metadata", cl.Metadata)
	c.duration("connect_timeout", cl.ConnectTimeout)
	c.duration("common_http_protocol_options.idle_timeout", cl.IdleTimeout)
	if cl.Protocol > ProtocolDownstream {
		c.failf("typed_extension_protocol_options", "unknown protocol %d", cl.Protocol)
	}
	if !(cl.PanicThreshold >= 0 && cl.PanicThreshold <= 100) {
		c.failf("common_lb_config.healthy_panic_threshold", "%v is no percentage", cl.PanicThreshold)
	}
	c.discovery(cl)
	if cl.TLS != nil {
		t := "transport_socket.typed_config"
		c.tls(t, &cl.TLS.TLSParams)
		c.text(t+".sni", cl.TLS.SNI)
		if len(cl.TLS.SNI) > 255 {
			c.failf(t+".sni", "is longer than 255 bytes")
		}
		switch trusted := set(cl.TLS.Trust); {
		case !trusted && !cl.TLS.AcceptUntrusted:
			c.failf(t+".common_tls_context.validation_context", "there is nothing to check the server by; give a trust source")
		case trusted && cl.TLS.AcceptUntrusted:
			c.failf(t+".common_tls_context.validation_context.trust_chain_verification", "ACCEPT_UNTRUSTED stands beside roots that would not be used; choose one")
		}
	}
	return c.err()
}

func (c *check) discovery(cl *Cluster) {
	n := 0
	for _, is := range []bool{cl.LB.RoundRobin != nil, cl.LB.LeastRequest != nil, cl.LB.Random != nil} {
		if is {
			n++
		}
	}
	if n > 1 {
		c.failf("load_balancing_policy", "%d policies are set; choose one", n)
	}
	if lr := cl.LB.LeastRequest; lr != nil && lr.ChoiceCount == 1 {
		c.failf("load_balancing_policy.least_request.choice_count", "1 is no choice; give 2 or more")
	}
	switch cl.Discovery {
	case DiscoveryEDS:
		if cl.Endpoints != nil {
			c.failf("load_assignment", "an EDS cluster has no endpoints of its own")
		}
	case DiscoveryStatic, DiscoveryStrictDNS, DiscoveryLogicalDNS:
		if cl.Endpoints == nil {
			c.failf("load_assignment", "there is none; a cluster of this type needs its endpoints here")
			break
		}
		c.endpoints("load_assignment.", cl.Endpoints, cl.Discovery != DiscoveryStatic)
	case DiscoveryOriginalDst:
		if cl.Endpoints != nil {
			c.failf("load_assignment", "an original-destination cluster has no endpoints of its own")
		}
		if n > 0 {
			c.failf("load_balancing_policy", "an original-destination cluster chooses nothing")
		}
	default:
		c.failf("type", "unknown value %d", cl.Discovery)
	}
	if cl.Discovery != DiscoveryEDS && cl.EDSName != "" {
		c.failf("eds_cluster_config.service_name", "only an EDS cluster has one")
	}
}

// Validate says whether parrel can execute the endpoints.
func (e *Endpoints) Validate() error {
	c := &check{}
	c.name("cluster_name", e.Cluster)
	c.endpoints("", e, false)
	return c.err()
}

func (c *check) endpoints(at string, e *Endpoints, dns bool) {
	c.text(at+"cluster_name", e.Cluster)
	type place struct {
		region, zone, sub string
		priority          uint32
	}
	seen := map[place]bool{}
	sums := map[uint32]uint64{}
	for i := range e.Localities {
		l := &e.Localities[i]
		field := fmt.Sprintf("%sendpoints[%d]", at, i)
		c.text(field+".locality", l.Region+l.Zone+l.SubZone)
		if l.Priority > 128 {
			c.failf(field+".priority", "%d is more than 128", l.Priority)
		}
		p := place{l.Region, l.Zone, l.SubZone, l.Priority}
		if seen[p] {
			c.failf(field+".locality", "stands there twice with priority %d", l.Priority)
		}
		seen[p] = true
		if sums[l.Priority] += uint64(l.Weight); sums[l.Priority] > math.MaxUint32 {
			c.failf(field+".load_balancing_weight", "the weights of priority %d sum to more than %d", l.Priority, uint32(math.MaxUint32))
		}
		var sum uint64
		for j := range l.Endpoints {
			ep := &l.Endpoints[j]
			at := fmt.Sprintf("%s.lb_endpoints[%d]", field, j)
			c.address(at+".endpoint.address", ep.Address, dns)
			if ep.Address.Path == "" && ep.Address.Port == 0 {
				c.failf(at+".endpoint.address.socket_address.port_value", "is zero; nothing can be dialled there")
			}
			if ep.Health > Degraded {
				c.failf(at+".health_status", "unknown value %d", ep.Health)
			}
			c.metadata(at+".metadata", ep.Metadata)
			if sum += uint64(ep.Weight); sum > math.MaxUint32 {
				c.failf(at+".load_balancing_weight", "the weights of the locality sum to more than %d", uint32(math.MaxUint32))
			}
		}
	}
}

func set(s CertSource) bool { return s != CertSource{} }

func (c *check) tls(at string, t *TLSParams) {
	common := at + ".common_tls_context"
	c.source(common+".tls_certificate", t.Certificate, true)
	c.source(common+".validation_context", t.Trust, false)
	for i := range t.PeerSANs {
		field := fmt.Sprintf("%s.validation_context.match_typed_subject_alt_names[%d].matcher", common, i)
		c.stringMatch(field, &t.PeerSANs[i])
	}
	for i := range t.PeerDNS {
		field := fmt.Sprintf("%s.validation_context.match_typed_subject_alt_names[%d].matcher", common, i)
		c.stringMatch(field, &t.PeerDNS[i])
	}
	for i, k := range t.Curves {
		if !slices.Contains(Curves(), k) {
			c.failf(fmt.Sprintf("%s.tls_params.ecdh_curves[%d]", common, i), "%q is not known; choose among %s", k, strings.Join(Curves(), ", "))
		}
	}
	if len(t.PeerSANs)+len(t.PeerDNS) > 0 && !set(t.Trust) {
		c.failf(common+".validation_context.match_typed_subject_alt_names", "names are checked only of peers that a trust source vouches for; give one")
	}
	for i, p := range t.ALPN {
		field := fmt.Sprintf("%s.alpn_protocols[%d]", common, i)
		c.name(field, p)
		if len(p) > 255 {
			c.failf(field, "is longer than 255 bytes")
		}
	}
	for _, v := range [2][2]string{{"tls_minimum_protocol_version", t.MinVersion}, {"tls_maximum_protocol_version", t.MaxVersion}} {
		switch v[1] {
		case "", "1.2", "1.3":
		default:
			c.failf(common+".tls_params."+v[0], "%q is neither 1.2 nor 1.3", v[1])
		}
	}
	if t.MaxVersion == "1.2" && t.MinVersion != "1.2" {
		c.failf(common+".tls_params.tls_maximum_protocol_version", "1.2 is below the minimum, 1.3")
	}
}

func (c *check) source(at string, s CertSource, cert bool) {
	if !set(s) {
		return
	}
	c.one(at, map[string]bool{"sds": s.SDS != "", "provider_instance": s.Provider != "", "files": s.Files != nil})
	c.text(at, s.SDS)
	c.text(at, s.Provider)
	if f := s.Files; f != nil {
		c.text(at, f.Cert+f.Key+f.CA)
		switch {
		case cert && (f.Cert == "" || f.Key == "" || f.CA != ""):
			c.failf(at, "certificate and key files are needed, and no CA")
		case !cert && (f.CA == "" || f.Cert != "" || f.Key != ""):
			c.failf(at, "a CA file is needed, and neither certificate nor key")
		}
	}
}

var _ Resource = (*Secret)(nil)

// Validate says whether parrel can execute the secret. PEM is not parsed here:
// what it holds is mtls's to judge.
func (s *Secret) Validate() error {
	c := &check{}
	c.name("name", s.Name)
	if f := s.Files; f != nil && len(s.TrustPEM)+len(s.ChainPEM)+len(s.KeyPEM) == 0 {
		c.source("files", CertSource{Files: f}, f.CA == "")
		return c.err()
	}
	isCert := len(s.ChainPEM) > 0 || len(s.KeyPEM) > 0
	c.one("", map[string]bool{"validation_context": len(s.TrustPEM) > 0, "tls_certificate": isCert})
	if isCert && len(s.ChainPEM) == 0 {
		c.failf("tls_certificate.certificate_chain", "must not be empty")
	}
	if isCert && len(s.KeyPEM) == 0 {
		c.failf("tls_certificate.private_key", "must not be empty")
	}
	names := map[string]bool{}
	for i, b := range s.TrustPEM {
		at := fmt.Sprintf("validation_context.custom_validator_config.typed_config.trust_domains[%d]", i)
		if len(b.RootsPEM) == 0 {
			c.failf(at+".trust_bundle", "must not be empty")
		}
		if b.TrustDomain == "" && len(s.TrustPEM) > 1 {
			c.failf(at+".name", "an unnamed bundle vouches for every trust domain and must stand alone")
		}
		if strings.Contains(b.TrustDomain, "/") || b.TrustDomain != strings.ToLower(b.TrustDomain) {
			c.failf(at+".name", "%q is no trust domain name", b.TrustDomain)
		}
		c.text(at+".name", b.TrustDomain)
		if names[b.TrustDomain] {
			c.failf(at+".name", "%q stands there twice", b.TrustDomain)
		}
		names[b.TrustDomain] = true
	}
	return c.err()
}
