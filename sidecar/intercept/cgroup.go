package intercept

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// cgroup is a control group of the v2 hierarchy as the kernel's rules name it.
type cgroup struct {
	path  string // below the hierarchy's root, without a leading slash
	level uint32 // number of its path's elements
	id    uint64 // its inode's number
}

// cleanCgroup is the path below the root, of a path that may begin with a slash
// or with the folder under which the hierarchy is mounted.
func cleanCgroup(s string) string { return strings.Trim(path.Clean("/"+s), "/") }

// errNoCgroup2 says that the host has no v2 hierarchy.
var errNoCgroup2 = errors.New("intercept: no cgroup v2 hierarchy is mounted here, so that workloads cannot be told by cgroup: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified), or tell them by uid")

// cgroupRoot is where the v2 hierarchy is mounted, by mountinfo(5): on a hybrid
// host it lies beside those of v1.
func cgroupRoot(mountinfo io.Reader) (string, error) {
	sc := bufio.NewScanner(mountinfo)
	found := ""
	for sc.Scan() {
		// 30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw
		before, after, ok := strings.Cut(sc.Text(), " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 5 || !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		if fields[3] == "/" { // the whole hierarchy and not a part bound elsewhere
			return unescape(fields[4]), nil
		}
		if found == "" {
			found = unescape(fields[4])
		}
	}
	if err := sc.Err(); err != nil {
		return "", fmt.Errorf("intercept: reading mountinfo: %w", err)
	}
	if found == "" {
		return "", errNoCgroup2
	}
	return found, nil
}

// unescape reads mountinfo's octal escapes of blanks.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// findCgroup looks a group up below root; id tells a folder's inode.
func findCgroup(root, name string, id func(path string) (uint64, error)) (cgroup, error) {
	p := cleanCgroup(name)
	if below, ok := strings.CutPrefix("/"+p, strings.TrimSuffix(root, "/")+"/"); ok {
		p = below
	}
	full := path.Join(root, p)
	n, err := id(full)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return cgroup{}, fmt.Errorf("intercept: cgroup %s does not exist (%s): it is made when its unit or container starts; start that first, or tell the workload by uid: %w", p, full, fs.ErrNotExist)
	case err != nil:
		return cgroup{}, fmt.Errorf("intercept: cgroup %s: %w", p, err)
	}
	return cgroup{path: p, level: uint32(strings.Count(p, "/") + 1), id: n}, nil
}
