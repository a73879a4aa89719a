package client_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parrel-mesh/parrel/xds/client"
	"github.com/parrel-mesh/parrel/xds/resource"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func state(version string) *client.State {
	return &client.State{NodeID: "web", Created: epoch, Types: map[resource.Type]map[string]client.Saved{
		resource.TypeCluster:   {"a": {Version: version, Any: []byte("bytes of a")}, "b": {Version: version, Any: nil}},
		resource.TypeEndpoints: {"a": {Version: version, Any: bytes.Repeat([]byte{0, 1, 0xff}, 100)}},
	}}
}

func equal(t *testing.T, got, want *client.State) {
	t.Helper()
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b []byte) bool { return bytes.Equal(a, b) })); d != "" {
		t.Errorf("state differs (-want +got):\n%s", d)
	}
}

func fileStore(t *testing.T) (client.Store, string) {
	path := filepath.Join(t.TempDir(), "last-good")
	return client.NewFileStore(path, client.FileOptions{NodeID: "web", Now: func() time.Time { return epoch.Add(time.Hour) }}), path
}

func TestStoreKeepsTwoGenerations(t *testing.T) {
	s, path := fileStore(t)
	if st, err := s.Load(); st != nil || err != nil {
		t.Fatalf("nothing was ever saved, but Load gives %v, %v", st, err)
	}
	for _, v := range []string{"1", "2", "3"} {
		if err := s.Save(state(v)); err != nil {
			t.Fatal(err)
		}
		st, err := s.Load()
		if err != nil {
			t.Fatal(err)
		}
		equal(t, st, state(v))
	}
	files, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*"))
	if len(files) != 2 {
		t.Errorf("left on disk: %v", files)
	}
	for _, f := range files {
		if fi, _ := os.Stat(f); fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", f, fi.Mode())
		}
	}
	if err := os.Remove(path); err != nil { // a crash between the two renames
		t.Fatal(err)
	}
	st, err := s.Load()
	if err == nil || !strings.Contains(err.Error(), "previous generation") {
		t.Errorf("err = %v", err)
	}
	equal(t, st, state("2"))
}

// Every truncation and every flipped bit falls back to the generation before,
// and is said.
func TestStoreDamage(t *testing.T) {
	s, path := fileStore(t)
	for _, v := range []string{"1", "2"} {
		if err := s.Save(state(v)); err != nil {
			t.Fatal(err)
		}
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, at int, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		st, err := s.Load()
		if err == nil || st == nil || st.Types[resource.TypeCluster]["a"].Version != "1" {
			t.Fatalf("%s at %d: %v, %v", what, at, st, err)
		}
		if e := err.Error(); !strings.Contains(e, "damaged") || !strings.Contains(e, path) || !strings.Contains(e, "previous generation, saved 2026-01-02T03:04:05Z, is used instead") {
			t.Fatalf("%s at %d: the error says %q", what, at, e)
		}
	}
	for n := range good {
		try("truncation", n, good[:n])
	}
	for i := range good {
		for _, bit := range []byte{1, 0x80} {
			b := bytes.Clone(good)
			b[i] ^= bit
			try("flipped bit", i, b)
		}
	}
	try("addition", len(good), append(bytes.Clone(good), 'x'))

	// A damaged generation is never rotated over the good one before it.
	if err := s.Save(state("3")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	st, _ := s.Load()
	equal(t, st, state("1"))

	// Both gone: nothing, and why.
	if err := os.WriteFile(path+".previous", good[:40], 0o600); err != nil {
		t.Fatal(err)
	}
	if st, err := s.Load(); st != nil || err == nil || strings.Count(err.Error(), "damaged") != 2 || !strings.Contains(err.Error(), "starting without") {
		t.Errorf("both damaged: %v, %v", st, err)
	}
}

func TestStoreRefusesOldAndForeign(t *testing.T) {
	_, path := fileStore(t)
	at := func(now time.Time, node string) client.Store {
		return client.NewFileStore(path, client.FileOptions{NodeID: node, Now: func() time.Time { return now }})
	}
	if err := at(epoch, "web").Save(state("1")); err != nil {
		t.Fatal(err)
	}
	if st, err := at(epoch.Add(30*24*time.Hour), "web").Load(); st == nil || err != nil {
		t.Errorf("30 days old: %v", err)
	}
	if st, err := at(epoch.Add(30*24*time.Hour+time.Second), "web").Load(); st != nil || err == nil || !strings.Contains(err.Error(), "more than the 720h0m0s allowed") {
		t.Errorf("older: %v, %v", st, err)
	}
	if st, err := at(epoch, "api").Load(); st != nil || err == nil || !strings.Contains(err.Error(), `is of node "web", not of "api"`) {
		t.Errorf("foreign: %v, %v", st, err)
	}
}

func TestStoreSaveFailureIsSaid(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := client.NewFileStore(filepath.Join(file, "below", "a-file"), client.FileOptions{})
	if err := s.Save(state("1")); err == nil || !strings.Contains(err.Error(), "a restart would use an older one") {
		t.Errorf("err = %v", err)
	}
}

// The header is readable by people, and says what the file is.
func TestStoreHeader(t *testing.T) {
	s, path := fileStore(t)
	if err := s.Save(state("1")); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(path)
	lines := bytes.SplitN(b, []byte("\n"), 3)
	var h struct {
		Node    string
		Created time.Time
		Records int
	}
	if err := json.Unmarshal(lines[1], &h); err != nil || h.Node != "web" || !h.Created.Equal(epoch) || h.Records != 3 {
		t.Errorf("header %q: %+v, %v", lines[:2], h, err)
	}
}
