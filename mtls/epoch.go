package mtls

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Session tickets are encrypted with a key that is used for keyFor and accepted
// for as long again: who steals one reads little.
const keyFor = 12 * time.Hour

// epoch is what session tickets are bound to, and what else is made once for an
// identity and its roots instead of once for each handshake. Immutable.
type epoch struct {
	svid *x509svid.SVID
	set  *x509bundle.Set
	sum  [32]byte
	cert *tls.Certificate
}

// epochs keeps the present epoch. Its zero value is ready; safe for concurrent
// use.
type epochs struct{ p atomic.Pointer[epoch] }

// of gives the epoch of an identity and roots, neither of which changes any
// more.
func (e *epochs) of(svid *x509svid.SVID, set *x509bundle.Set) *epoch {
	if old := e.p.Load(); old != nil && old.svid == svid && old.set == set {
		return old
	}
	c := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, x := range svid.Certificates {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	now := &epoch{svid: svid, set: set, sum: epochOf(svid, set), cert: c}
	e.p.Store(now)
	return now
}

// epochOf is a digest of an identity and its roots.
func epochOf(svid *x509svid.SVID, set *x509bundle.Set) [32]byte {
	h := sha256.New()
	sum := func(certs []*x509.Certificate) {
		for _, c := range certs {
			d := sha256.Sum256(c.Raw)
			h.Write(d[:])
		}
	}
	sum(svid.Certificates[:1])
	for _, b := range set.Bundles() { // sorted by trust domain
		d := sha256.Sum256([]byte(b.TrustDomain().Name()))
		h.Write(d[:])
		sum(b.X509Authorities())
	}
	return [32]byte(h.Sum(nil))
}

// ticketKeys are the keys of one epoch's tickets. Immutable.
type ticketKeys struct {
	sum    [32]byte // of the epoch
	made   time.Time
	keys   [][32]byte // newest first
	config *tls.Config
}

// fresh says whether the keys serve that epoch at that time.
func (k *ticketKeys) fresh(e *epoch, now time.Time) bool {
	return k != nil && k.sum == e.sum && !now.Before(k.made) && now.Sub(k.made) < keyFor
}

// next makes the keys that follow on k, which may be nil. What k encrypted last
// is still read, unless the epoch is another.
func (k *ticketKeys) next(e *epoch, now time.Time) (*ticketKeys, error) {
	n := &ticketKeys{sum: e.sum, made: now, keys: make([][32]byte, 1, 2)}
	if _, err := rand.Read(n.keys[0][:]); err != nil {
		return nil, fmt.Errorf("mtls: session ticket key: %w", err)
	}
	if k != nil && k.sum == e.sum && now.Sub(k.made) < 2*keyFor {
		n.keys = append(n.keys, k.keys[0])
	}
	return n, nil
}
