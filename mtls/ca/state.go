package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/parrel-mesh/parrel/mtls/internal/keep"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// stateFile holds the whole CA: one file, so that one rename makes or changes
// it, and no crash leaves a key without its certificate.
const stateFile = "ca.json"

// tokenKeySize is the length of the HMAC-SHA256 key of tokens.
const tokenKeySize = 32

// stored is the form of stateFile.
type stored struct {
	Version     int          `json:"version"` // 1
	TrustDomain string       `json:"trust_domain"`
	TokenKey    []byte       `json:"token_key"`
	Roots       []storedRoot `json:"roots"` // oldest first
}

type storedRoot struct {
	Certificate string     `json:"certificate"`         // PEM
	Cross       string     `json:"cross,omitempty"`     // PEM: the same key, signed by the root before
	Key         string     `json:"key"`                 // PEM, PKCS#8
	ActiveFrom  time.Time  `json:"active_from"`         // signs from then on
	RetireAt    *time.Time `json:"retire_at,omitempty"` // leaves the bundle then
}

// state is stored, read. Read-only.
type state struct {
	td       spiffeid.TrustDomain
	tokenKey []byte
	roots    []root
}

type root struct {
	cert, cross *x509.Certificate
	key         *ecdsa.PrivateKey
	activeFrom  time.Time
	retireAt    time.Time // zero: not known yet
}

// active is the newest root whose time to sign has come.
func (s *state) active(now time.Time) (root, error) {
	for i := len(s.roots) - 1; i >= 0; i-- {
		r := s.roots[i]
		if now.Before(r.activeFrom) {
			continue
		}
		if now.After(r.cert.NotAfter) {
			return root{}, fmt.Errorf("ca: the root certificate expired at %s: run `parrel ca rotate`", r.cert.NotAfter.UTC().Format(time.RFC3339))
		}
		return r, nil
	}
	return root{}, fmt.Errorf("ca: no root is active yet at %s: check this host's clock", now.UTC().Format(time.RFC3339))
}

// published are the roots of the bundle, the active one first, then newest first.
func (s *state) published(now time.Time) []root {
	var out []root
	act, err := s.active(now)
	if err == nil {
		out = append(out, act)
	}
	for i := len(s.roots) - 1; i >= 0; i-- {
		r := s.roots[i]
		gone := !r.retireAt.IsZero() && !now.Before(r.retireAt)
		if gone || err == nil && r.cert == act.cert {
			continue
		}
		out = append(out, r)
	}
	return out
}

// fileStamp tells one version of a file from another: a rename changes the
// inode, so that equal times do no harm.
type fileStamp struct {
	ino  uint64
	mod  time.Time
	size int64
}

func stampOf(path string) (fileStamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return fileStamp{}, err
	}
	s := fileStamp{mod: info.ModTime(), size: info.Size()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.ino = sys.Ino
	}
	return s, nil
}

// current returns the state, read again where another process rotated. While
// the directory cannot be read the CA goes on with what it has.
func (a *CA) current() (*state, error) {
	stamp, err := stampOf(a.path())
	a.mu.Lock()
	st, same := a.state, stamp == a.stamp
	a.mu.Unlock()
	if same {
		return st, nil
	}
	if err == nil {
		var next *state
		if next, err = load(a.path()); err == nil && next.td != st.td {
			err = fmt.Errorf("ca: %s is now of trust domain %q, it was %q: restart the control plane if that is wanted", a.path(), next.td, st.td)
		}
		if err == nil {
			a.mu.Lock()
			a.state, a.stamp = next, stamp
			a.mu.Unlock()
			return next, nil
		}
	}
	a.log.Warn("the CA's file cannot be read again; going on with the roots in memory", "error", err)
	return st, nil
}

func (a *CA) path() string { return filepath.Join(a.dir, stateFile) }

// open loads the state or makes it. A directory that already has one may be
// read-only.
func (a *CA) open(td spiffeid.TrustDomain) error {
	err := a.loadState()
	if !keep.Missing(err) {
		return err
	}
	if td.IsZero() {
		return fmt.Errorf("ca: there is no CA in %s, and no trust domain is configured to make one", a.dir)
	}
	return a.locked(func() error {
		if err := a.loadState(); !keep.Missing(err) {
			return err // another process was first
		}
		keep.Sweep(a.path())
		now := a.now()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return fmt.Errorf("ca: making the root key: %w", err)
		}
		cert, err := newRoot(td, key, now, a.rootTTL)
		if err != nil {
			return err
		}
		st := &state{td: td, tokenKey: make([]byte, tokenKeySize), roots: []root{{cert: cert, key: key, activeFrom: cert.NotBefore}}}
		_, _ = rand.Read(st.tokenKey) // never fails (crypto/rand)
		if err := a.save(st); err != nil {
			return err
		}
		a.log.Info("made a new CA", "dir", a.dir, "trust_domain", td.Name())
		return a.loadState()
	})
}

func (a *CA) loadState() error {
	stamp, err := stampOf(a.path())
	if err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	st, err := load(a.path())
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.state, a.stamp = st, stamp
	return nil
}

// locked runs f while no other process changes the directory. The lock ends
// with the process, however that ends.
func (a *CA) locked(f func() error) error {
	if err := keep.Dir(a.dir); err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(a.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("ca: the CA's directory must be writable to make or rotate a root: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("ca: locking %s: %w", lock.Name(), err)
	}
	return f()
}

// Rotate makes a new root. It is published in the bundle at once and signs
// after overlap (0: the lifetime of a leaf), when every peer has heard of it;
// the root before leaves the bundle when its last leaf has expired. Several
// control planes on one directory follow by themselves.
func (a *CA) Rotate(_ context.Context, overlap time.Duration) error {
	if overlap < 0 {
		return fmt.Errorf("ca: an overlap of %s cannot be: give 0 for the lifetime of a leaf", overlap)
	}
	if overlap == 0 {
		overlap = a.leafTTL
	}
	return a.locked(func() error {
		if err := a.loadState(); err != nil {
			return err
		}
		a.mu.Lock()
		st := a.state
		a.mu.Unlock()
		next, err := a.rotated(st, overlap)
		if err != nil {
			return err
		}
		if err := a.save(next); err != nil {
			return err
		}
		return a.loadState()
	})
}

func (a *CA) rotated(st *state, overlap time.Duration) (*state, error) {
	now := a.now()
	last := st.roots[len(st.roots)-1]
	if now.Before(last.activeFrom) {
		return nil, fmt.Errorf("ca: a rotation is under way: the next root signs from %s on; rotate again after that", last.activeFrom.UTC().Format(time.RFC3339))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("ca: making the root key: %w", err)
	}
	cert, err := newRoot(st.td, key, now, a.rootTTL)
	if err != nil {
		return nil, err
	}
	fresh := root{cert: cert, key: key, activeFrom: now.Add(overlap)}
	if now.After(last.cert.NotAfter) { // nothing that it signed is valid any more
		fresh.activeFrom = cert.NotBefore
	} else if fresh.cross, err = cross(cert, last, now); err != nil {
		return nil, err
	}
	next := &state{td: st.td, tokenKey: st.tokenKey}
	for _, r := range st.roots {
		if !r.retireAt.IsZero() && !now.Before(r.retireAt) {
			continue // its key is forgotten with it
		}
		if r.cert == last.cert {
			r.retireAt = fresh.activeFrom.Add(a.leafTTL + time.Hour)
		}
		next.roots = append(next.roots, r)
	}
	next.roots = append(next.roots, fresh)
	return next, nil
}

// save writes the state. The caller holds the lock.
func (a *CA) save(st *state) error {
	out := stored{Version: 1, TrustDomain: st.td.Name(), TokenKey: st.tokenKey}
	for _, r := range st.roots {
		der, err := x509.MarshalPKCS8PrivateKey(r.key)
		if err != nil {
			return fmt.Errorf("ca: encoding the root key: %w", err)
		}
		sr := storedRoot{Certificate: pemOf("CERTIFICATE", r.cert.Raw), Key: pemOf("PRIVATE KEY", der), ActiveFrom: r.activeFrom}
		if r.cross != nil {
			sr.Cross = pemOf("CERTIFICATE", r.cross.Raw)
		}
		if !r.retireAt.IsZero() {
			sr.RetireAt = &r.retireAt
		}
		out.Roots = append(out.Roots, sr)
	}
	data, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return fmt.Errorf("ca: encoding %s: %w", stateFile, err)
	}
	if err := keep.Write(a.path(), append(data, '\n')); err != nil {
		return fmt.Errorf("ca: writing %s: %w", a.path(), err)
	}
	return nil
}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// load reads a state and checks that it is whole. Its errors never hold what
// is in the file.
func load(path string) (*state, error) {
	data, err := keep.Read(path)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	bad := func(what string, err error) (*state, error) {
		return nil, fmt.Errorf("ca: %s: %s: %w; restore the file from a backup, or remove it to make a new CA, which no sidecar trusts yet", path, what, err)
	}
	var in stored
	if err := json.Unmarshal(data, &in); err != nil {
		return bad("not a CA's file", errors.New("it is not the JSON that parrel writes"))
	}
	if in.Version != 1 {
		return bad("unknown version", fmt.Errorf("%d, this parrel knows 1", in.Version))
	}
	st := &state{tokenKey: in.TokenKey}
	if st.td, err = spiffeid.TrustDomainFromString(in.TrustDomain); err != nil {
		return bad("trust_domain", err)
	}
	if len(in.TokenKey) != tokenKeySize {
		return bad("token_key", fmt.Errorf("it has %d bytes, %d are needed", len(in.TokenKey), tokenKeySize))
	}
	if len(in.Roots) == 0 {
		return bad("roots", errors.New("there are none"))
	}
	for i, sr := range in.Roots {
		r, err := readRoot(sr)
		if err != nil {
			return bad(fmt.Sprintf("roots[%d]", i), err)
		}
		st.roots = append(st.roots, r)
	}
	return st, nil
}

func readRoot(sr storedRoot) (r root, err error) {
	if r.cert, err = certOf(sr.Certificate); err != nil {
		return r, fmt.Errorf("certificate: %w", err)
	}
	if len(r.cert.URIs) != 1 || !r.cert.IsCA {
		return r, errors.New("certificate: it is not a root that parrel made")
	}
	if sr.Cross != "" {
		if r.cross, err = certOf(sr.Cross); err != nil {
			return r, fmt.Errorf("cross: %w", err)
		}
	}
	block, _ := pem.Decode([]byte(sr.Key))
	if block == nil {
		return r, errors.New("key: not PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return r, errors.New("key: not PKCS#8")
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok || !ec.PublicKey.Equal(r.cert.PublicKey) {
		return r, errors.New("key: it is not the certificate's")
	}
	r.key, r.activeFrom = ec, sr.ActiveFrom
	if sr.RetireAt != nil {
		r.retireAt = *sr.RetireAt
	}
	return r, nil
}

func certOf(text string) (*x509.Certificate, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" || len(rest) > 0 {
		return nil, errors.New("not one PEM certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}
