package controlplane

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/parrel-mesh/parrel/discovery"
)

// rootsRetry is how soon an issuer that did not answer is asked again.
const rootsRetry = time.Second

// watchRoots keeps the trust bundle that sidecars get, and that we ourselves
// accept clients by, at what the issuer says.
func (p *ControlPlane) watchRoots(ctx context.Context) error {
	var failing bool
	for {
		wait := p.cfg.RootsEvery
		roots, err := p.deps.Issuer.Roots(ctx)
		switch {
		case err == nil && len(roots) > 0:
			p.setRoots(roots)
			failing = false
		case ctx.Err() != nil:
			return ctx.Err()
		default:
			wait = rootsRetry
			if !failing {
				p.deps.Log.Error("the issuer's roots cannot be read; the last ones stay in force", "error", err)
			}
			failing = true
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-p.kick:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (p *ControlPlane) setRoots(roots []*x509.Certificate) {
	td := p.deps.Issuer.TrustDomain()
	p.roots.Store(x509bundle.NewSet(x509bundle.FromX509Authorities(td, roots)))
	r := &discovery.TrustRoots{TrustDomain: td.Name()}
	for _, c := range roots {
		r.RootsPEM = append(r.RootsPEM, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})))
	}
	p.inbox.put(discovery.Delta{Roots: r})
}

// trust is whose certificates we accept: the issuer's and those of our own
// identity's bundles.
func (p *ControlPlane) trust() *x509bundle.Set {
	set := x509bundle.NewSet()
	sets := []*x509bundle.Set{p.roots.Load(), p.deps.Identity.Current().Bundles}
	for _, s := range sets {
		if s == nil {
			continue
		}
		for _, b := range s.Bundles() {
			have, ok := set.Get(b.TrustDomain())
			if !ok {
				set.Add(b.Clone())
				continue
			}
			for _, c := range b.X509Authorities() {
				have.AddX509Authority(c)
			}
		}
	}
	return set
}
