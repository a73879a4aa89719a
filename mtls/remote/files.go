package remote

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/mtls/internal/keep"
)

// Names of the files that [Files] keeps.
const (
	CertFile = "cert.pem"
	KeyFile  = "key.pem" // PKCS#8
	CAFile   = "ca.pem"
)

// current is the symbolic link that a change swaps, as Kubernetes does for
// mounted secrets.
const (
	currentLink = "..data"
	nextLink    = "..data_tmp"
	versionDir  = "..v_"
)

// keepOld is how long a version stays after the next one took its place, for
// readers that opened one file and not yet the other.
const keepOld = time.Minute

// Files keeps a source's identity in PEM files for foreign clients.
//
// cert.pem, key.pem and ca.pem are links through one link to a directory that
// never changes once it is made; a renewal makes a new directory and swaps that
// one link, so that the three always belong together.
type Files struct {
	dir string
	src mtls.Source
	log *slog.Logger
}

// NewFiles makes dir (0700) where there is none. log may be nil.
func NewFiles(dir string, src mtls.Source, log *slog.Logger) (*Files, error) {
	if dir == "" {
		return nil, errors.New("remote: no directory for the files given: set --out")
	}
	if err := keep.Dir(dir); err != nil {
		return nil, fmt.Errorf("remote: directory for the files: %w", err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Files{dir: dir, src: src, log: log}, nil
}

// Run writes the files at once, where there is an identity, and after each
// change, until ctx ends. An expired identity is not removed: readers see by
// themselves that it is.
func (f *Files) Run(ctx context.Context) error {
	for {
		changed := f.src.Changed() // before Write, so that no change is missed
		if snap := f.src.Current(); snap.SVID != nil {
			if err := f.Write(snap); err != nil {
				f.log.Error("the certificate files cannot be written", "dir", f.dir, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// Write makes the files those of snap.
func (f *Files) Write(snap *mtls.Snapshot) error {
	if snap == nil || snap.SVID == nil || snap.Bundles == nil {
		return errors.New("remote: there is no identity to write")
	}
	bundle, ok := snap.Bundles.Get(snap.SVID.ID.TrustDomain())
	if !ok {
		return fmt.Errorf("remote: there is no trust bundle of %s", snap.SVID.ID.TrustDomain())
	}
	der, err := x509.MarshalPKCS8PrivateKey(snap.SVID.PrivateKey)
	if err != nil {
		return fmt.Errorf("remote: encoding the key: %w", err)
	}
	dir, err := os.MkdirTemp(f.dir, versionDir) // made 0700
	if err != nil {
		return fmt.Errorf("remote: %w", err)
	}
	for name, data := range map[string][]byte{
		CertFile: pemChain(snap.SVID.Certificates), CAFile: pemChain(bundle.X509Authorities()),
		KeyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	} {
		if err := keep.Write(filepath.Join(dir, name), data); err != nil {
			os.RemoveAll(dir)
			return fmt.Errorf("remote: %w", err)
		}
	}
	if err := f.swap(filepath.Base(dir)); err != nil {
		os.RemoveAll(dir)
		return fmt.Errorf("remote: %w", err)
	}
	f.prune(filepath.Base(dir))
	return nil
}

func pemChain(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// swap lets the fixed names show version.
func (f *Files) swap(version string) error {
	tmp := filepath.Join(f.dir, nextLink)
	os.Remove(tmp) // of a killed process
	if err := os.Symlink(version, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(f.dir, currentLink)); err != nil {
		return err
	}
	for _, name := range []string{CertFile, KeyFile, CAFile} {
		path, target := filepath.Join(f.dir, name), filepath.Join(currentLink, name)
		if have, err := os.Readlink(path); err == nil && have == target {
			continue
		}
		link := filepath.Join(f.dir, ".."+name+"_tmp")
		os.Remove(link)
		if err := os.Symlink(target, link); err != nil {
			return err
		}
		if err := os.Rename(link, path); err != nil { // replaces a plain file, too
			return err
		}
	}
	return keep.SyncDir(f.dir)
}

// prune removes older versions that nobody can be reading any more.
func (f *Files) prune(current string) {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), versionDir) || e.Name() == current {
			continue
		}
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > keepOld {
			os.RemoveAll(filepath.Join(f.dir, e.Name()))
		}
	}
}
