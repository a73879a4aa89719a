// Package keep writes and reads files that hold keys: directories 0700, files
// 0600, each file replaced as a whole or not at all.
package keep

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// MaxFile bounds what Read takes in: keys, chains and bundles are small.
const MaxFile = 4 << 20

// Dir makes dir (mode 0700) where it does not exist, and refuses one that
// others can write to: they could replace the keys.
func Dir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	if m := info.Mode().Perm(); m&0o022 != 0 {
		return fmt.Errorf("directory %s has mode %04o, so that others could replace the keys in it: run chmod 0700 %s", dir, m, dir)
	}
	return nil
}

// Write replaces the file at path atomically: after a crash at any moment it
// has either the old content or the new one, and is readable by its owner only.
func Write(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix(path)+"*") // created 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

func tempPrefix(path string) string { return "." + filepath.Base(path) + ".tmp-" }

// Sweep removes what a killed Write left behind. Only whoever writes path may
// call it.
func Sweep(path string) {
	dir := filepath.Dir(path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix(path)) {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

// SyncDir makes renames in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Read reads a file with keys. It refuses one that everybody can read or
// change, since its keys are to be thought of as known. Group access is left to
// the operator: mounted secrets have it.
func Read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if m := info.Mode().Perm(); m&0o007 != 0 {
		return nil, fmt.Errorf("%s holds keys and has mode %04o, so that everybody can read or change it: run chmod 0600 %s, and think of its keys as known", path, m, path)
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err == nil && len(data) > MaxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes, so it is not a file of keys", path, MaxFile)
	}
	return data, err
}

// Missing says whether an error means that the file does not exist.
func Missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
