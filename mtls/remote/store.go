package remote

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/mtls/internal/keep"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Names in a workload's directory.
const (
	identityFile = "identity.json" // the identity in force
	pendingFile  = "pending.key"   // the key of a request whose answer is not here yet
)

// kept is an identity with what it trusts. Read-only.
type kept struct {
	svid    *x509svid.SVID
	bundles *x509bundle.Set
	plane   string // the control plane's SPIFFE id
}

// envelope makes the file self-checking: a torn or edited body is noticed.
type envelope struct {
	Version int             `json:"version"` // 1
	SHA256  string          `json:"sha256"`  // of body's bytes
	Body    json.RawMessage `json:"body"`
}

type body struct {
	Service string              `json:"service"`
	Plane   string              `json:"control_plane"`
	Key     []byte              `json:"key"` // PKCS#8
	Chain   [][]byte            `json:"chain"`
	Bundles map[string][][]byte `json:"bundles"`
}

// store is one workload's directory.
type store struct{ dir string }

// dirName gives a workload's id a directory of its own: letters, digits and
// "_-" stay, dots do except in front, everything else is escaped.
func dirName(id string) string {
	var b strings.Builder
	for i := range len(id) {
		c := id[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.' && i > 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func (s store) path() string { return filepath.Join(s.dir, identityFile) }

// load returns nil and no error where nothing is stored.
func (s store) load(service string) (*kept, error) {
	data, err := keep.Read(s.path())
	if keep.Missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("remote: %w", err)
	}
	k, err := decodeKept(data, service)
	if err != nil {
		return nil, fmt.Errorf("remote: the stored identity %s cannot be used: %w", s.path(), err)
	}
	return k, nil
}

func decodeKept(data []byte, service string) (*kept, error) {
	var env envelope
	if err := json.Unmarshal(data, &env); err != nil {
		return nil, errors.New("it is damaged")
	}
	if env.Version != 1 {
		return nil, fmt.Errorf("it has version %d, this parrel knows 1", env.Version)
	}
	if sum := sha256.Sum256(env.Body); hex.EncodeToString(sum[:]) != env.SHA256 {
		return nil, errors.New("it is damaged: its checksum is wrong")
	}
	var b body
	if err := json.Unmarshal(env.Body, &b); err != nil {
		return nil, errors.New("it is damaged")
	}
	if b.Service != service {
		return nil, fmt.Errorf("it is of service %q, and this workload is of %q", b.Service, service)
	}
	var chain []byte
	for _, der := range b.Chain {
		chain = append(chain, der...)
	}
	svid, err := x509svid.ParseRaw(chain, b.Key)
	if err != nil {
		return nil, err
	}
	set, err := setOf(b.Bundles)
	if err != nil {
		return nil, err
	}
	return &kept{svid: svid, bundles: set, plane: b.Plane}, nil
}

func (s store) save(k *kept, service string) error {
	key, err := x509.MarshalPKCS8PrivateKey(k.svid.PrivateKey)
	if err != nil {
		return fmt.Errorf("remote: encoding the key: %w", err)
	}
	inner, err := json.Marshal(body{Service: service, Plane: k.plane, Key: key, Chain: dersOf(k.svid.Certificates), Bundles: bundlesOf(k.bundles)})
	if err != nil {
		return fmt.Errorf("remote: encoding the identity: %w", err)
	}
	sum := sha256.Sum256(inner)
	data, err := json.Marshal(envelope{Version: 1, SHA256: hex.EncodeToString(sum[:]), Body: inner})
	if err != nil {
		return fmt.Errorf("remote: encoding the identity: %w", err)
	}
	if err := keep.Write(s.path(), data); err != nil {
		return fmt.Errorf("remote: the identity cannot be stored: %w", err)
	}
	os.Remove(filepath.Join(s.dir, pendingFile)) // its certificate is here
	return nil
}

// pending returns the key of the next request. It is on disk before it is
// used: when an answer is lost, the same key asks again, which a token allows.
func (s store) pending() (crypto.Signer, error) {
	path := filepath.Join(s.dir, pendingFile)
	if der, err := keep.Read(path); err == nil {
		if key, err := x509.ParsePKCS8PrivateKey(der); err == nil {
			if signer, ok := key.(crypto.Signer); ok {
				return signer, nil
			}
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("remote: making a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("remote: encoding the key: %w", err)
	}
	if err := keep.Write(path, der); err != nil {
		return nil, fmt.Errorf("remote: the key cannot be stored: %w", err)
	}
	return key, nil
}

// snapshot is what the rest of the process sees of k.
func (k *kept) snapshot(err error) *mtls.Snapshot {
	if k == nil {
		return &mtls.Snapshot{Err: err}
	}
	return &mtls.Snapshot{SVID: k.svid, Bundles: k.bundles, Err: err}
}
