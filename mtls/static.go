package mtls

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// reloadEvery is how often [StaticFiles] looks at its files. Reading three
// small files is cheaper than being wrong about which of them changed: links
// and mounts are swapped in ways that file notification does not see.
const reloadEvery = 2 * time.Second

// StaticConfig names an identity's files.
type StaticConfig struct {
	Cert, Key, CA string // PEM; the key is PKCS#8, SEC1 (EC) or PKCS#1 (RSA)
	// TrustDomain that CA vouches for; zero: the certificate's.
	TrustDomain spiffeid.TrustDomain
	Log         *slog.Logger // nil: discard
}

// StaticFiles is a [Source] of files that somebody else keeps fresh.
type StaticFiles struct {
	Cell
	c    StaticConfig
	seen [3][]byte
}

var _ Source = (*StaticFiles)(nil)

// NewStaticFiles reads the files. Any that is missing, unreadable, empty or
// does not fit the others is an error: there is no identity without trust, and
// no trust by default.
func NewStaticFiles(c StaticConfig) (*StaticFiles, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	f := &StaticFiles{c: c}
	if _, err := f.reload(); err != nil {
		return nil, err
	}
	return f, nil
}

// Run reads the files again when they change, until ctx ends. What is not good
// is reported, and what was good stays.
func (f *StaticFiles) Run(ctx context.Context) error {
	tick := time.NewTicker(reloadEvery)
	defer tick.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		changed, err := f.reload()
		switch {
		case err != nil && err.Error() != last: // one line for each trouble, not one every two seconds
			f.c.Log.Error("certificate files are not taken over; the last good ones stay in use", "error", err)
			last = err.Error()
		case err == nil:
			last = ""
			if changed {
				f.c.Log.Info("certificate files read again", "cert", f.c.Cert, "expires", f.Current().SVID.Certificates[0].NotAfter)
			}
		}
	}
}

func (f *StaticFiles) reload() (changed bool, err error) {
	var data [3][]byte
	for i, x := range []struct{ what, path string }{{"certificate", f.c.Cert}, {"key", f.c.Key}, {"CA", f.c.CA}} {
		if x.path == "" {
			return false, fmt.Errorf("mtls: no %s file is configured: certificate, key and CA are all needed", x.what)
		}
		if data[i], err = os.ReadFile(x.path); err != nil {
			return false, fmt.Errorf("mtls: %s file: %w; without it there is no mutual TLS, so nothing is served", x.what, err)
		}
		if len(bytes.TrimSpace(data[i])) == 0 {
			return false, fmt.Errorf("mtls: %s file %s is empty; without it there is no mutual TLS, so nothing is served", x.what, x.path)
		}
	}
	if bytes.Equal(data[0], f.seen[0]) && bytes.Equal(data[1], f.seen[1]) && bytes.Equal(data[2], f.seen[2]) {
		return false, nil
	}
	snap, err := f.parse(data)
	if err != nil {
		return false, err
	}
	f.seen = data
	f.Set(snap)
	return true, nil
}

func (f *StaticFiles) parse(data [3][]byte) (*Snapshot, error) {
	chain, err := ParseCertificates(data[0])
	if err != nil {
		return nil, fmt.Errorf("mtls: certificate file %s: %w", f.c.Cert, err)
	}
	der, err := pkcs8(data[1])
	if err != nil {
		return nil, fmt.Errorf("mtls: key file %s: %w", f.c.Key, err)
	}
	var raw []byte
	for _, c := range chain {
		raw = append(raw, c.Raw...)
	}
	svid, err := x509svid.ParseRaw(raw, der)
	if err != nil {
		return nil, fmt.Errorf("mtls: %s and %s are no SPIFFE identity together: %w", f.c.Cert, f.c.Key, err)
	}
	roots, err := ParseCertificates(data[2])
	if err != nil {
		return nil, fmt.Errorf("mtls: CA file %s: %w", f.c.CA, err)
	}
	for i, r := range roots {
		if !r.IsCA {
			return nil, fmt.Errorf("mtls: CA file %s: certificate %d (%s) is not a CA's", f.c.CA, i+1, r.Subject)
		}
	}
	td := f.c.TrustDomain
	if td.IsZero() {
		td = svid.ID.TrustDomain()
	}
	return &Snapshot{SVID: svid, Bundles: x509bundle.NewSet(x509bundle.FromX509Authorities(td, roots))}, nil
}

// ParseCertificates reads the certificates of PEM text; none at all is an error.
func ParseCertificates(text []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(out)+1, err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("no PEM block CERTIFICATE in it")
	}
	return out, nil
}

// pkcs8 finds the private key in PEM text and gives it as PKCS#8. Errors hold
// nothing of the key.
func pkcs8(text []byte) ([]byte, error) {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return nil, errors.New("no PEM block with a private key in it")
		}
		text = rest
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			return block.Bytes, nil
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("the key is encrypted: give it without a passphrase, readable by this user only")
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("the block %q holds no such key", block.Type)
		}
		return x509.MarshalPKCS8PrivateKey(key)
	}
}
