package intercept

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
)

// TestCgroupRoot: the v2 hierarchy is found where it is mounted.
func TestCgroupRoot(t *testing.T) {
	const v1 = "31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime shared:5 - cgroup cgroup rw,cpu\n"
	for _, tt := range []struct{ name, mounts, want string }{
		{"unified", "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n", "/sys/fs/cgroup"},
		{"hybrid", v1 + "32 30 0:28 / /sys/fs/cgroup/unified rw,relatime shared:6 - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup/unified"},
		{"a part of it first", v1 + "33 30 0:28 /docker/abc /mnt/part rw - cgroup2 cgroup2 rw\n32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup/unified"},
		{"only a part", "33 30 0:28 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup"},
		{"a blank", "33 30 0:28 / /mnt/my\\040groups rw - cgroup2 cgroup2 rw\n", "/mnt/my groups"},
		{"none", v1, ""},
		{"cut short", "30 23 0:26\n - cgroup2\n", ""},
	} {
		got, err := cgroupRoot(strings.NewReader(tt.mounts))
		if got != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("%s: %q, %v, want %q", tt.name, got, err, tt.want)
		}
		if tt.want == "" && !errors.Is(err, errNoCgroup2) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// TestFindCgroup: a group is named by its path below the root or by its folder.
func TestFindCgroup(t *testing.T) {
	ids := func(p string) (uint64, error) {
		if p == "/cg/system.slice/web.service" {
			return 4711, nil
		}
		return 0, fs.ErrNotExist
	}
	for _, name := range []string{"system.slice/web.service", "/system.slice/web.service/", "/cg/system.slice/web.service", "system.slice/x/../web.service"} {
		g, err := findCgroup("/cg", name, ids)
		if err != nil || g != (cgroup{"system.slice/web.service", 2, 4711}) {
			t.Errorf("%s: %+v, %v", name, g, err)
		}
	}
	if _, err := findCgroup("/cg", "no.service", ids); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "start that first") {
		t.Errorf("a group that is not there: %v", err)
	}
}
