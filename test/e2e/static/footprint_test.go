package static

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/test/e2e/rig"
)

// TestFootprint: with 100 clusters it serves within 300 ms of its start and,
// idle, keeps 20 MB. The quickest of three starts counts: the machine is not
// this test's alone.
func TestFootprint(t *testing.T) {
	if _, err := os.Stat("/proc/self/status"); err != nil {
		t.Skip("there is no /proc to read memory from: ", err)
	}
	const most, start = 20 << 10, 300 * time.Millisecond // kB
	r := rig.New(t, parrel)
	text, err := os.ReadFile(examples + "h1.yaml")
	if err != nil {
		t.Fatal(err)
	}
	at, admin := rig.Addr(rig.Port(t)), rig.Addr(rig.Port(t))
	_, port, _ := net.SplitHostPort(at)
	_, adminPort, _ := net.SplitHostPort(admin)
	conf := strings.NewReplacer("8080", port, "9901", adminPort).Replace(string(text))
	i := strings.Index(conf, "    - name: app\n")
	if i < 0 {
		t.Fatal("the example has no cluster app")
	}
	for n := range 99 {
		conf += strings.ReplaceAll(conf[i:i+strings.Index(conf[i:], "      circuit_breakers")], "app", fmt.Sprintf("app-%d", n))
	}
	file := filepath.Join(r.Dir, "hundred.yaml")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	quickest := time.Hour
	for range 3 {
		p := r.Process("hundred", "sidecar", "-c", file)
		began := time.Now()
		p.Start()
		r.Eventually(soon, "it serves", func() error {
			c, err := net.Dial("tcp", at)
			if err == nil {
				c.Close()
			}
			return err
		})
		quickest = min(quickest, time.Since(began))
		page, err := rig.Fetch("http://" + admin + "/clusters")
		if err != nil || strings.Count(page, "::added_via_api::") != 100 {
			t.Fatalf("it has not 100 clusters: %v", err)
		}
		var kB int
		r.Eventually(soon, fmt.Sprintf("it keeps %d kB", most), func() error {
			kB = rss(t, p.Pid())
			if kB > most {
				return fmt.Errorf("it keeps %d", kB)
			}
			return nil
		})
		t.Logf("keeps %d kB; serves %s after the start at the quickest", kB, quickest)
		p.Stop(soon)
	}
	if quickest > start {
		t.Errorf("it serves %s after its start at the quickest; want %s", quickest, start)
	}
}

func rss(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			n, _ := strconv.Atoi(f[1])
			return n
		}
	}
	t.Fatal("no VmRSS")
	return 0
}
