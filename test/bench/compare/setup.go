package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/parrel-mesh/parrel/test/bench/internal/run"
)

// bench is this benchmark's folder, from the root of the module.
var bench = filepath.Join("test", "bench")

// tools is the folder of what prepare builds.
func tools() string { return absolute(filepath.Join("bin", "bench")) }

// certs is the folder of the committed certificates.
func certs() string { return absolute(filepath.Join(bench, "conf", "certs")) }

func absolute(path string) string {
	a, err := filepath.Abs(path)
	if err != nil {
		return path // the working directory is gone; what uses the path says so
	}
	return a
}

// needed are files that have to exist, and the Debian packages that bring them.
var needed = []struct{ file, pkg string }{
	{"haproxy", "haproxy"}, {"nginx", "nginx"}, {"/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream"},
	{"wrk", "wrk"}, {"h2load", "nghttp2-client"}, {"nghttpd", "nghttp2-server"}, {"gcc", "gcc"}, {"taskset", "util-linux"}, {"ip", "iproute2"},
}

// prepare installs what is missing, builds the tools and renders the
// configurations of the others.
func prepare(b *run.Bench) error {
	if n := runtime.NumCPU(); n < 2 {
		return fmt.Errorf("two cores are needed, one for the load and one for the proxies; there is %d", n)
	}
	if err := install(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(tools(), "www"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tools(), "www", "1k.txt"), []byte(strings.Repeat("x", 1024)), 0o644); err != nil {
		return err
	}
	for _, t := range []string{"back", "tcp", "lat"} {
		if err := do("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", filepath.Join(tools(), t), filepath.Join(bench, "tools", t+".c")); err != nil {
			return err
		}
	}
	if err := do("go", "build", "-o", filepath.Join(tools(), "handshake"), "./"+filepath.Join(bench, "tools", "handshake")); err != nil {
		return err
	}
	for _, pattern := range []string{"*.cfg", "*.conf"} {
		files, err := filepath.Glob(filepath.Join(bench, "conf", pattern))
		if err != nil {
			return err
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				return err
			}
			if err := b.Write(filepath.Base(f), place(b, string(text))); err != nil {
				return err
			}
		}
	}
	return nil
}

func install() error {
	var missing []string
	for _, n := range needed {
		if _, err := exec.LookPath(n.file); err == nil {
			continue
		} else if _, err := os.Stat(n.file); err == nil && filepath.IsAbs(n.file) {
			continue
		}
		missing = append(missing, n.pkg)
	}
	if len(missing) == 0 {
		return nil
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("missing on this machine; run `apt-get install %s` as root", strings.Join(missing, " "))
	}
	fmt.Fprintln(os.Stderr, "compare: installing", strings.Join(missing, " "))
	if err := do("apt-get", "update", "-qq"); err != nil {
		return err
	}
	return do("env", append([]string{"DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq", "--no-install-recommends"}, missing...)...)
}

func do(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// Machine is what a result was measured on.
type Machine struct {
	Cores    int    `json:"cores"`
	CPU      string `json:"cpu"`
	Kernel   string `json:"kernel"`
	Versions string `json:"versions"`
}

var version = regexp.MustCompile(`\d+(\.\d+)+`)

// machine asks what is running here.
func machine(b *run.Bench) Machine {
	m := Machine{Cores: runtime.NumCPU(), CPU: "unknown", Kernel: "unknown"}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if f := regexp.MustCompile(`(?m)^model name\s*:\s*(.*)$`).FindStringSubmatch(string(text)); f != nil {
			m.CPU = f[1]
		}
	}
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = "Linux " + version.FindString(string(text))
	}
	said := func(name string, args ...string) string {
		out, err := exec.Command(name, args...).CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) { // some print their version and fail
			return name + " unknown"
		}
		return filepath.Base(name) + " " + version.FindString(string(out))
	}
	parrel := "parrel"
	if out, err := exec.Command(b.Parrel, "version").Output(); err == nil {
		parrel = strings.TrimSpace(strings.SplitN(string(out), "\n", 2)[0])
	}
	m.Versions = strings.Join([]string{parrel, strings.Replace(runtime.Version(), "go", "Go ", 1), said("haproxy", "-v"), said("nginx", "-v"), said("wrk", "-v"), said("h2load", "--version")}, ", ")
	return m
}
