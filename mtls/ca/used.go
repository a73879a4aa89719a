package ca

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/mtls/internal/keep"
)

// pruneEvery is how often the directory of used tokens is cleaned, at the use
// of a token.
const pruneEvery = 10 * time.Minute

// pruneGrace keeps a record beyond its token's expiry, for control planes whose
// clocks differ.
const pruneGrace = time.Hour

// UsedDir is [UsedTokens] in a directory, which several processes may share.
// A record is a file named after the token and its expiry.
type UsedDir struct {
	dir string
	now func() time.Time

	mu     sync.Mutex // guards what follows
	pruned time.Time
}

var _ UsedTokens = (*UsedDir)(nil)

// NewUsedDir makes nothing yet: the directory appears with its first record.
func NewUsedDir(dir string, now func() time.Time) *UsedDir { return &UsedDir{dir: dir, now: now} }

// Use implements [UsedTokens].
func (u *UsedDir) Use(_ context.Context, id, by string, expiry time.Time) (bool, error) {
	if err := keep.Dir(u.dir); err != nil {
		return false, fmt.Errorf("ca: used tokens: %w", err)
	}
	u.prune()
	sum := sha256.Sum256([]byte(id))
	path := filepath.Join(u.dir, hex.EncodeToString(sum[:])+"-"+strconv.FormatInt(expiry.Unix(), 10))
	// Written first and linked then: the link is exclusive, and a record never
	// exists without its content.
	tmp, err := os.CreateTemp(u.dir, ".new-*")
	if err != nil {
		return false, fmt.Errorf("ca: used tokens: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(by)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return false, fmt.Errorf("ca: used tokens: %w", err)
	}
	switch err := os.Link(tmp.Name(), path); {
	case err == nil:
		return true, keep.SyncDir(u.dir)
	case !errors.Is(err, fs.ErrExist):
		return false, fmt.Errorf("ca: used tokens: %w", err)
	}
	was, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("ca: used tokens: %w", err)
	}
	return bytes.Equal(was, []byte(by)), nil
}

// prune forgets records of expired tokens and what killed processes left.
func (u *UsedDir) prune() {
	now := u.now()
	u.mu.Lock()
	due := now.Sub(u.pruned) >= pruneEvery
	if due {
		u.pruned = now
	}
	u.mu.Unlock()
	if !due {
		return
	}
	entries, err := os.ReadDir(u.dir)
	if err != nil {
		return // the next use says what is wrong
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".new-") {
			if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > pruneGrace {
				os.Remove(filepath.Join(u.dir, e.Name()))
			}
			continue
		}
		_, exp, ok := strings.Cut(e.Name(), "-")
		if sec, err := strconv.ParseInt(exp, 10, 64); ok && err == nil && now.After(time.Unix(sec, 0).Add(pruneGrace)) {
			os.Remove(filepath.Join(u.dir, e.Name()))
		}
	}
}
