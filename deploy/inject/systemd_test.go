package inject

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/parrel-mesh/parrel/test/golden"
)

func units(t *testing.T, unit string, o SystemdOptions) string {
	t.Helper()
	files, err := Systemd(unit, o)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range files {
		if !MadeByInject(f.Text) {
			t.Errorf("%s does not say who made it", f.Path)
		}
		b.WriteString("-- " + f.Path + " --\n" + f.Text)
	}
	return b.String()
}

func TestSystemd(t *testing.T) {
	golden.Check(t, "testdata/systemd/transparent.txt", units(t, "web.service", SystemdOptions{Port: 8080, ControlPlane: "cp1:15012,cp2:15012"}))
	golden.Check(t, "testdata/systemd/explicit.txt", units(t, "shop@eu-1", SystemdOptions{Mode: Explicit, ServiceID: "web-1", User: "mesh"}))
	for _, c := range []struct {
		unit string
		o    SystemdOptions
		want string
	}{
		{"/etc/systemd/system/web.service", SystemdOptions{}, "give the unit's name, such as web.service"},
		{"we b", SystemdOptions{}, "is no name of a service unit"},
		{"web@.service", SystemdOptions{}, "is a template"},
		{"parrel-sidecar@web.service", SystemdOptions{}, "is a sidecar itself"},
		{"web", SystemdOptions{Mode: "half"}, "there are transparent and explicit"},
		{"web", SystemdOptions{Port: 70000}, "is no port"},
		{"web", SystemdOptions{Binary: "parrel"}, "is no absolute path"},
		{"web", SystemdOptions{User: "a b"}, "leave out blanks"},
		{"web", SystemdOptions{ControlPlane: "$HOST:1"}, "leave out blanks"},
	} {
		if _, err := Systemd(c.unit, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.unit, err, c.want)
		}
	}
}

func TestEscapeUnit(t *testing.T) {
	for id, want := range map[string]string{"web": "web", "web-1": `web\x2d1`, "a.b": "a.b", ".a": `\x2ea`, "a/b": "a-b", "ü": `\xc3\xbc`} {
		if got := escapeUnit(id); got != want {
			t.Errorf("%s: %s, want %s", id, got, want)
		}
	}
}

// TestSystemdVerify has systemd itself read the units, and say how exposed the
// sidecar is.
func TestSystemdVerify(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("LOUD: there is no systemd-analyze on this machine: the units were not read by systemd; apt-get install systemd")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files, err := Systemd("web.service", SystemdOptions{Port: 8080, Binary: self, User: "root"})
	if err != nil {
		t.Fatal(err)
	}
	place := func(path, text string) string {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, f := range files {
		if rest, ok := strings.CutPrefix(f.Path, "/etc/systemd/system/"); ok {
			place(rest, f.Text)
		}
	}
	web := place("web.service", "[Unit]\nDescription=web\n[Service]\nExecStart="+self+"\n")
	verify := func(unit string) string {
		c := exec.Command(analyze, "verify", "--man=no", unit)
		c.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
		out, err := c.CombinedOutput()
		var mine []string // what it says of this machine's own units is not ours
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, dir) || strings.Contains(line, "parrel") || strings.HasPrefix(line, "web.service") {
				mine = append(mine, line)
			}
		}
		if err != nil && len(mine) == 0 {
			t.Logf("systemd-analyze verify %s: %v\n%s", unit, err, out)
		}
		return strings.Join(mine, "")
	}
	if said := verify(web); said != "" {
		t.Errorf("systemd says of the units:\n%s", said)
	}
	// The check itself works: it finds what is wrong.
	bad := place("parrel-bad.service", "[Service]\nExecStart="+self+"\nWatchdogSecs=3\n")
	if said := verify(bad); !strings.Contains(said, "WatchdogSecs") {
		t.Errorf("systemd-analyze verify does not find a wrong key: %q", said)
	}

	inst := place("parrel-sidecar@web.service", files[1].Text)
	out, err := exec.Command(analyze, "security", "--offline=true", "--no-pager", inst).CombinedOutput()
	m := regexp.MustCompile(`Overall exposure level for .*: ([0-9.]+)`).FindStringSubmatch(string(out))
	if err != nil || m == nil {
		t.Fatalf("systemd-analyze security: %v\n%s", err, out)
	}
	if level, err := strconv.ParseFloat(m[1], 64); err != nil || level > 2.5 {
		t.Errorf("the sidecar's unit is exposed at %s of 10, want 2.5 at most:\n%s", m[1], out)
	}
	t.Logf("exposure of the sidecar's unit: %s of 10", m[1])
}
