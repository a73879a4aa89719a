package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// checkEvery is how often a [ControlPlane] looks whether its certificate is
// due or the roots have changed.
const checkEvery = 10 * time.Second

// ControlPlane is the control plane's own identity, a [mtls.Source] whose
// bundles are the CA's roots. Its chain holds the roots as well, and the
// cross-signed forms of newer roots: a client that knows no more than the hash
// of a root's key finds in it all that it needs.
type ControlPlane struct {
	mtls.Cell
	ca   *CA
	dns  []string
	ips  []netip.Addr
	made time.Time
	by   *x509.Certificate // the root that signed
	pub  []*x509.Certificate
}

var _ mtls.Source = (*ControlPlane)(nil)

// ControlPlaneCert makes the control plane's certificate, with its SPIFFE id
// and these names. Run keeps it fresh.
func (a *CA) ControlPlaneCert(_ context.Context, dns []string, ips []netip.Addr) (*ControlPlane, error) {
	c := &ControlPlane{ca: a, dns: dns, ips: ips}
	if err := c.renew(); err != nil {
		return nil, err
	}
	return c, nil
}

// Run renews the certificate at half of its life and when the roots change,
// until ctx ends.
func (c *ControlPlane) Run(ctx context.Context) error {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		due, err := c.due()
		if err == nil && due {
			err = c.renew()
		}
		if err != nil {
			c.ca.log.Error("the control plane's certificate cannot be renewed", "error", err)
		}
	}
}

// due is called by Run's goroutine only, as renew is after the first time.
func (c *ControlPlane) due() (bool, error) {
	st, err := c.ca.current()
	if err != nil {
		return false, err
	}
	now := c.ca.now()
	act, err := st.active(now)
	if err != nil {
		return false, err
	}
	leaf := c.Current().SVID.Certificates[0]
	half := c.made.Add(leaf.NotAfter.Sub(c.made) / 2)
	same := slices.EqualFunc(c.pub, st.published(now), func(x *x509.Certificate, r root) bool { return x.Equal(r.cert) })
	return !now.Before(half) || !act.cert.Equal(c.by) || !same, nil
}

func (c *ControlPlane) renew() error {
	a := c.ca
	st, err := a.current()
	if err != nil {
		return err
	}
	now := a.now()
	act, err := st.active(now)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("ca: making the control plane's key: %w", err)
	}
	id := mtls.ControlPlaneID(st.td)
	got, err := a.sign(id, key.Public(), a.leafTTL, c.dns, c.ips)
	if err != nil {
		return err
	}
	chain := got.Chain
	for _, r := range st.published(now) {
		if r.cross != nil {
			chain = append(chain, r.cross)
		}
		chain = append(chain, r.cert)
	}
	c.made, c.by, c.pub = now, act.cert, got.Roots
	c.Set(&mtls.Snapshot{
		SVID:    &x509svid.SVID{ID: id, Certificates: chain, PrivateKey: key},
		Bundles: x509bundle.NewSet(x509bundle.FromX509Authorities(st.td, got.Roots)),
	})
	return nil
}
