package run

import (
	"net"
	"os"
	"path/filepath"
	"strings"
)

func joined(host, port string) string { return net.JoinHostPort(host, port) }

func netListen(network, address string) (net.Listener, error) { return net.Listen(network, address) }

// ownGroup is this process's control group, "" where the host's hierarchies are
// not to be seen.
func ownGroup() string {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || f[1] != "" && f[1] != "name=systemd" {
			continue
		}
		for _, h := range []string{"", "unified", "systemd"} {
			if b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", h, f[2], "cgroup.procs")); err == nil && len(b) > 0 {
				return f[2]
			}
		}
	}
	return ""
}
