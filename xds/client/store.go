package client

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// The file: a line that names format and version, a line of JSON, records of
// four length-prefixed strings (type, name, version, serialised Any), and the
// SHA-256 of all before it.
const (
	magic  = "parrel last good configuration, format 1\n"
	maxAge = 30 * 24 * time.Hour
	// previous is the suffix of the generation before.
	previous = ".previous"
)

type fileHeader struct {
	Node    string    `json:"node"`
	Created time.Time `json:"created"`
	Records int       `json:"records"`
}

// FileOptions are of NewFileStore. Zero fields take the defaults.
type FileOptions struct {
	NodeID string           // refuse a file of another node; "": any
	MaxAge time.Duration    // refuse an older file; 0: 30 days
	Now    func() time.Time // nil: time.Now
}

// NewFileStore keeps the set in one file, checksummed, replaced by atomic
// rename, readable by its owner only, with the previous generation beside it
// (path + ".previous"). Private keys never reach a Store. Not safe for
// concurrent use; one process owns the path.
func NewFileStore(path string, o FileOptions) Store {
	if o.MaxAge <= 0 {
		o.MaxAge = maxAge
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &fileStore{path: path, o: o}
}

type fileStore struct {
	path string
	o    FileOptions
}

// Load reads the newest generation that is whole, of this node and young
// enough. With an error beside a State the newest one was not usable.
func (f *fileStore) Load() (*State, error) {
	st, err := f.read(f.path)
	if err == nil {
		return st, nil
	}
	old, oldErr := f.read(f.path + previous)
	switch {
	case oldErr == nil:
		return old, fmt.Errorf("client: %w; the previous generation, saved %s, is used instead", err, old.Created.UTC().Format(time.RFC3339))
	case errors.Is(err, fs.ErrNotExist) && errors.Is(oldErr, fs.ErrNotExist):
		return nil, nil
	case errors.Is(oldErr, fs.ErrNotExist):
		return nil, fmt.Errorf("client: %w; there is no previous generation: starting without a last good configuration", err)
	}
	return nil, fmt.Errorf("client: %w; %w: starting without a last good configuration", err, oldErr)
}

func (f *fileStore) read(path string) (*State, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("last good configuration: %w", err)
	}
	st, err := decodeState(b)
	if err != nil {
		return nil, fmt.Errorf("last good configuration %s is damaged (%w)", path, err)
	}
	if f.o.NodeID != "" && st.NodeID != f.o.NodeID {
		return nil, fmt.Errorf("last good configuration %s is of node %q, not of %q", path, st.NodeID, f.o.NodeID)
	}
	if age := f.o.Now().Sub(st.Created); age > f.o.MaxAge {
		return nil, fmt.Errorf("last good configuration %s is %s old, more than the %s allowed", path, age.Truncate(time.Second), f.o.MaxAge)
	}
	return st, nil
}

// Save writes a new generation beside the present one, then puts it in its
// place: a crash at any point leaves a whole one.
func (f *fileStore) Save(st *State) error {
	if err := f.save(st); err != nil {
		return fmt.Errorf("client: saving the last good configuration: %w; a restart would use an older one", err)
	}
	return nil
}

func (f *fileStore) save(st *State) error {
	dir := filepath.Dir(f.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	b, err := encodeState(st)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, filepath.Base(f.path)+".new-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails after the rename, as it should
	_, err = tmp.Write(b)
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := f.rotate(); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), f.path); err != nil {
		return err
	}
	return syncDir(dir)
}

// rotate makes the present generation the previous one, unless it is damaged:
// then the previous one is the better of the two.
func (f *fileStore) rotate() error {
	b, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := decodeState(b); err != nil {
		return nil
	}
	return os.Rename(f.path, f.path+previous)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func encodeState(st *State) ([]byte, error) {
	h := fileHeader{Node: st.NodeID, Created: st.Created.UTC()}
	for _, m := range st.Types {
		h.Records += len(m)
	}
	head, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString(magic)
	b.Write(head)
	b.WriteByte('\n')
	put := func(x []byte) {
		b.Write(binary.AppendUvarint(nil, uint64(len(x))))
		b.Write(x)
	}
	for _, t := range slices.Sorted(maps.Keys(st.Types)) {
		m := st.Types[t]
		for _, n := range slices.Sorted(maps.Keys(m)) {
			put([]byte(t))
			put([]byte(n))
			put([]byte(m[n].Version))
			put(m[n].Any)
		}
	}
	sum := sha256.Sum256(b.Bytes())
	b.Write(sum[:])
	return b.Bytes(), nil
}

func decodeState(b []byte) (*State, error) {
	if !bytes.HasPrefix(b, []byte(magic)) {
		return nil, errors.New("it does not begin as such a file of this format does")
	}
	if len(b) < len(magic)+sha256.Size {
		return nil, errors.New("it ends too early")
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if want := sha256.Sum256(body); !bytes.Equal(want[:], sum) {
		return nil, errors.New("its checksum is wrong")
	}
	r := bufio.NewReader(bytes.NewReader(body[len(magic):]))
	line, err := r.ReadBytes('\n')
	if err != nil {
		return nil, errors.New("its header is cut off")
	}
	var h fileHeader
	if err := json.Unmarshal(line, &h); err != nil {
		return nil, fmt.Errorf("its header is unreadable: %w", err)
	}
	rest := body[len(magic)+len(line):]
	get := func() ([]byte, error) {
		n, w := binary.Uvarint(rest)
		if w <= 0 || n > uint64(len(rest)-w) {
			return nil, errors.New("a record is cut off")
		}
		x := rest[w : w+int(n)]
		rest = rest[w+int(n):]
		return x, nil
	}
	st := &State{NodeID: h.Node, Created: h.Created, Types: map[resource.Type]map[string]Saved{}}
	for range h.Records {
		var f [4][]byte
		for i := range f {
			if f[i], err = get(); err != nil {
				return nil, err
			}
		}
		t := resource.Type(f[0])
		if st.Types[t] == nil {
			st.Types[t] = map[string]Saved{}
		}
		st.Types[t][string(f[1])] = Saved{Version: string(f[2]), Any: bytes.Clone(f[3])}
	}
	if len(rest) > 0 {
		return nil, errors.New("there is something after its last record")
	}
	return st, nil
}
