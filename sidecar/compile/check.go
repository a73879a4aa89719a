package compile

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/parrel-mesh/parrel/sidecar/warm"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Check says whether this sidecar can execute a resource, beyond what its
// Validate says: it compiles it and drops the result. For the xDS client, so
// that what cannot be executed is refused on the wire with its reason.
func Check(r resource.Resource, d Deps) error {
	switch r := r.(type) {
	case *resource.Listener:
		b := &build{deps: d, old: &Snapshot{}, s: &Snapshot{
			Set: &warm.Set{}, routes: map[string]compiledRoutes{}, engines: map[engineID]engine{}}}
		_, err := b.listener(r)
		return err
	case *resource.RouteConfig:
		_, err := decide.CompileRoutes(r)
		return err
	case *resource.Cluster:
		if r.TLS == nil || d.Static {
			return nil
		}
		if err := identityOnly("transport_socket", &r.TLS.TLSParams); err != nil {
			return err
		}
		if _, err := peers(r.TLS.PeerSANs); err != nil {
			return fmt.Errorf("transport_socket.match_typed_subject_alt_names%w", err)
		}
	case *resource.Secret:
		_, err := trustSet(r)
		return err
	}
	return nil
}

// trustSet reads the roots of a secret. An unnamed bundle becomes the one of
// the zero trust domain, which vouches for every trust domain.
func trustSet(s *resource.Secret) (*x509bundle.Set, error) {
	if len(s.TrustPEM) == 0 {
		return nil, errors.New("validation_context: no trusted_ca")
	}
	set := x509bundle.NewSet()
	for i, t := range s.TrustPEM {
		var td spiffeid.TrustDomain
		if t.TrustDomain != "" {
			var err error
			if td, err = spiffeid.TrustDomainFromString(t.TrustDomain); err != nil {
				return nil, fmt.Errorf("trust_domains[%d]: %w", i, err)
			}
		}
		roots, err := certificates(t.RootsPEM)
		if err != nil {
			return nil, fmt.Errorf("trust_domains[%d].trust_bundle: %w", i, err)
		}
		set.Add(x509bundle.FromX509Authorities(td, roots))
	}
	return set, nil
}

func certificates(data []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		block, data = pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a PEM block is a %q, where certificates are expected", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("no certificate in it")
	}
	return out, nil
}
