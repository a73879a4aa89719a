package compile

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/parrel-mesh/parrel/sidecar/certs"
	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/sidecar/warm"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// certificate compiles a certificate of static configuration. One that cannot be
// used leaves the version before in force.
func (b *build) certificate(name string, s *resource.Secret) {
	old, had := b.old.certs[name]
	if had && old.secret == s {
		b.s.certs[name] = old
		return
	}
	c, err := tls.X509KeyPair(s.ChainPEM, s.KeyPEM)
	if err == nil {
		b.s.certs[name] = compiledCert{s, &c}
		return
	}
	if had {
		b.s.certs[name] = old
	}
	b.refuse(resource.TypeSecret, name, had, fmt.Errorf("certificate and key cannot be used together: %w", err))
}

func pool(set *x509bundle.Set) *x509.CertPool {
	out := x509.NewCertPool()
	for _, b := range set.Bundles() {
		for _, c := range b.X509Authorities() {
			out.AddCert(c)
		}
	}
	return out
}

// Certificate gives a certificate of static configuration; nil where there is
// none. Safe on nil.
func (s *Snapshot) Certificate(name string) *tls.Certificate {
	if s == nil {
		return nil
	}
	return s.certs[name].cert
}

// roots gives the roots of a secret; nil where there are none. Safe on nil.
func (s *Snapshot) roots(name string) *x509.CertPool {
	if s == nil {
		return nil
	}
	return s.trust[name].pool
}

// params are the parts that both sides of static TLS have. What they name is
// looked up in the snapshot in force at each handshake.
func (b *build) params(t *resource.TLSParams) (certs.Params, error) {
	p := certs.Params{ALPN: t.ALPN, MinVersion: tlsVersion(t.MinVersion), MaxVersion: tlsVersion(t.MaxVersion), Now: b.deps.Now}
	current := b.deps.Current
	if name := t.Certificate.Secret(); name != "" {
		p.Certificate = func() *tls.Certificate { return current().Certificate(name) }
	}
	if name := t.Trust.Secret(); name != "" {
		p.Roots = func() *x509.CertPool { return current().roots(name) }
	}
	for _, c := range t.Curves {
		id := certs.CurveID(c)
		if id == 0 {
			return p, fmt.Errorf("tls_params.ecdh_curves: %q is not known", c)
		}
		p.Curves = append(p.Curves, id)
	}
	var err error
	p.Peer, err = wanted(t)
	return p, err
}

// wanted compiles the names of peers that are accepted; nil: any.
func wanted(t *resource.TLSParams) (func(*x509.Certificate) error, error) {
	compiled := func(in []resource.StringMatch) ([]func(string) bool, error) {
		var out []func(string) bool
		for i, m := range in {
			f, err := matcher(m)
			if err != nil {
				return nil, fmt.Errorf("match_typed_subject_alt_names[%d]: %w", i, err)
			}
			out = append(out, f)
		}
		return out, nil
	}
	uris, err := compiled(t.PeerSANs)
	if err != nil {
		return nil, err
	}
	var exact []string
	var names []resource.StringMatch
	for _, m := range t.PeerDNS {
		if m.Kind == resource.StringExact {
			exact = append(exact, m.Value) // a certificate's wildcard covers it
			continue
		}
		m.IgnoreCase = m.Kind != resource.StringRegex // names have no case (RFC 4343)
		names = append(names, m)
	}
	dns, err := compiled(names)
	if err != nil {
		return nil, err
	}
	return certs.Match(uris, dns, exact), nil
}

func tlsVersion(v string) uint16 {
	switch v {
	case "1.2":
		return tls.VersionTLS12
	case "1.3":
		return tls.VersionTLS13
	}
	return 0
}

// serverTLS is TLS of a static listener's chain.
func (b *build) serverTLS(t *resource.DownstreamTLS, ch *listener.Chain) error {
	p, err := b.params(&t.TLSParams)
	if err != nil {
		return fmt.Errorf("transport_socket: %w", err)
	}
	if p.Certificate == nil {
		return errors.New("transport_socket: a server needs a certificate")
	}
	own := &listener.OwnTLS{Config: certs.Server(p, t.RequireClientCert)}
	if p.Roots != nil {
		own.Verify = func(chain []*x509.Certificate, at time.Time) error {
			return p.Verify(chain, x509.ExtKeyUsageClientAuth, at)
		}
	}
	ch.Own = own
	return nil
}

// clientTLS is TLS to a static cluster. It is made once for as long as the
// cluster stays the same: sessions live in it.
func (b *build) clientTLS(u *Upstream) {
	t := u.Cluster.TLS
	if t == nil {
		return
	}
	for i := range b.old.Upstreams {
		if old := &b.old.Upstreams[i]; old.Cluster == u.Cluster && old.TLS != nil {
			u.TLS = old.TLS
			return
		}
	}
	p, err := b.params(&t.TLSParams)
	if err != nil {
		b.refuse(resource.TypeCluster, u.Cluster.Name, false, fmt.Errorf("transport_socket: %w", err))
		p.Roots = func() *x509.CertPool { return nil } // nobody is trusted
	}
	u.TLS = certs.Client(p, t.SNI)
}

// CheckAll compiles a whole static configuration and drops it. Each error is an
// [*Error] about one resource.
func CheckAll(rs []resource.Resource, d Deps) []error {
	set := &warm.Set{Listeners: map[string]*resource.Listener{}, Clusters: map[string]*resource.Cluster{},
		Secrets: map[string]*resource.Secret{}}
	for _, r := range rs {
		switch r := r.(type) {
		case *resource.Listener:
			set.Listeners[r.Name] = r
		case *resource.Cluster:
			set.Clusters[r.Name] = r
		case *resource.Secret:
			set.Secrets[r.Name] = r
		}
	}
	_, errs := Compile(set, nil, d)
	return errs
}
