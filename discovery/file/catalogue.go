package file

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/parrel-mesh/parrel/discovery"
)

// catalogue is what a directory says, file by file. Its owner calls it from one
// goroutine.
type catalogue struct {
	dir   string
	node  discovery.Node
	files map[string]*fileState
	ports map[string]int // sidecar instance id → assigned port, while it exists
}

type fileState struct {
	src    string
	loaded bool               // src is the file's present text
	read   *definitions       // of the text that parsed last
	bad    *discovery.Problem // why the present text is not read
	clash  *discovery.Problem // why read is not in force
	good   *definitions       // in force
}

func newCatalogue(dir string, node discovery.Node) *catalogue {
	return &catalogue{dir: dir, node: node, files: map[string]*fileState{}, ports: map[string]int{}}
}

// scan reads the directory and says whether anything is different from before.
// An error is one of the directory itself; nothing changes then.
func (c *catalogue) scan() (changed bool, err error) {
	names, err := os.ReadDir(c.dir)
	if err != nil {
		return false, fmt.Errorf("file: %w", err)
	}
	seen := map[string]bool{}
	for _, n := range names {
		if !wanted(n.Name()) {
			continue
		}
		path := filepath.Join(c.dir, n.Name())
		info, err := os.Stat(path) // follows links
		if err == nil && info.IsDir() || err != nil && os.IsNotExist(err) {
			continue // removed meanwhile, or a link to nothing
		}
		seen[path] = true
		changed = c.read(path, info, err) || changed
	}
	for path := range c.files {
		if !seen[path] {
			delete(c.files, path)
			changed = true
		}
	}
	if changed {
		c.resolve()
	}
	return changed, nil
}

func wanted(name string) bool {
	return !strings.HasPrefix(name, ".") && (strings.HasSuffix(name, ".hcl") || strings.HasSuffix(name, ".json"))
}

// read takes in one file and says whether it is different from before.
func (c *catalogue) read(path string, info fs.FileInfo, err error) bool {
	st := c.files[path]
	if st == nil {
		st = &fileState{}
		c.files[path] = st
	}
	var src []byte
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = errors.New("it is no regular file")
	case info.Size() > maxFile:
		err = fmt.Errorf("it has %d bytes, more than the %d that a definition may have", info.Size(), maxFile)
	default:
		src, err = os.ReadFile(path)
	}
	if err != nil {
		bad := discovery.Problem{Origin: discovery.Origin{Place: "file " + path}, Reason: "cannot be read: " + err.Error(), Remedy: "make it a file that parrel may read"}
		same := st.bad != nil && *st.bad == bad
		st.loaded, st.bad = false, &bad
		return !same
	}
	if st.loaded && st.src == string(src) {
		return false
	}
	st.src, st.loaded = string(src), true
	defs, bad := load(path, src, c.node)
	if st.bad = bad; bad == nil {
		st.read = defs
	}
	return true
}

// resolve decides which version of each file is in force: what parsed last,
// unless it takes an id that another has: what is in force already comes first,
// then the files in the order of their names.
func (c *catalogue) resolve() {
	owner := map[string]string{}
	take := func(path string, d *definitions) *discovery.Problem {
		claims := claimsOf(d)
		for _, cl := range claims {
			if o, taken := owner[cl.key]; taken {
				return &discovery.Problem{Origin: cl.origin, Reason: cl.what + " is already in file " + o, Remedy: "write it in one place"}
			}
		}
		for _, cl := range claims {
			owner[cl.key] = path
		}
		return nil
	}
	order := c.paths()
	slices.SortStableFunc(order, func(a, b string) int {
		rank := func(st *fileState) int {
			if st.good != nil && st.good == st.read {
				return 0
			}
			return 1
		}
		return cmp.Compare(rank(c.files[a]), rank(c.files[b]))
	})
	for _, path := range order {
		st := c.files[path]
		last := st.good
		st.good, st.clash = st.read, nil
		if st.read == nil {
			continue
		}
		if st.clash = take(path, st.read); st.clash == nil {
			continue
		}
		st.good = nil
		if last != nil && last != st.read && take(path, last) == nil {
			st.good = last
		}
	}
	c.assignPorts()
}

type claim struct {
	key, what string
	origin    discovery.Origin
}

func claimsOf(d *definitions) []claim {
	var out []claim
	for _, r := range d.registrations {
		for _, id := range ids(r) {
			out = append(out, claim{"id " + id, fmt.Sprintf("the service id %q", id), r.Instance.Origin})
		}
	}
	for _, e := range d.entries {
		k := e.Key
		out = append(out, claim{strings.Join([]string{"entry", k.Kind, k.Partition, k.Namespace, k.Name}, " "), fmt.Sprintf("the entry %s %q", k.Kind, k.Name), e.Origin})
	}
	return out
}

func (c *catalogue) paths() []string {
	out := make([]string, 0, len(c.files))
	for p := range c.files {
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}

// registrations are all that is in force, sidecars too, sorted by id.
func (c *catalogue) registrations() []*discovery.Registration {
	var out []*discovery.Registration
	for _, path := range c.paths() {
		if d := c.files[path].good; d != nil {
			for _, r := range d.registrations {
				out = append(out, r)
				if r.Sidecar != nil {
					out = append(out, r.Sidecar)
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b *discovery.Registration) int { return cmp.Compare(a.Instance.ID, b.Instance.ID) })
	return out
}

func (c *catalogue) entries() map[discovery.EntryKey]*discovery.ConfigEntry {
	out := map[discovery.EntryKey]*discovery.ConfigEntry{}
	for _, st := range c.files {
		if st.good != nil {
			for _, e := range st.good.entries {
				out[e.Key] = e
			}
		}
	}
	return out
}

func (c *catalogue) problems() []discovery.Problem {
	var out []discovery.Problem
	for _, path := range c.paths() {
		for _, p := range []*discovery.Problem{c.files[path].bad, c.files[path].clash} {
			if p != nil {
				out = append(out, *p)
			}
		}
	}
	for _, r := range c.registrations() {
		if needsPort(r) && c.ports[r.Instance.ID] == 0 {
			out = append(out, discovery.Problem{Origin: r.Instance.Origin, Reason: fmt.Sprintf("the sidecar %q got no port: all from %d to %d are taken", r.Instance.ID, discovery.SidecarMinPort, discovery.SidecarMaxPort), Remedy: "write a port into its sidecar_service"})
		}
	}
	return out
}

func needsPort(r *discovery.Registration) bool {
	return r.Instance.Kind == discovery.KindConnectProxy && r.Instance.Port == 0 && r.Instance.SocketPath == ""
}

// assignPorts gives each sidecar without a port the lowest free one of Consul's
// range, as the agent does; it keeps it while it exists.
func (c *catalogue) assignPorts() {
	used := map[int]bool{}
	var open []string
	for _, r := range c.registrations() {
		if needsPort(r) {
			open = append(open, r.Instance.ID)
		} else {
			used[r.Instance.Port] = true
		}
	}
	for id, port := range c.ports {
		if !slices.Contains(open, id) || used[port] {
			delete(c.ports, id)
		} else {
			used[port] = true
		}
	}
	for _, id := range open {
		for p := discovery.SidecarMinPort; c.ports[id] == 0 && p <= discovery.SidecarMaxPort; p++ {
			if !used[p] {
				used[p], c.ports[id] = true, p
			}
		}
	}
}
