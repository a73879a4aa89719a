package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func result(series string, ratio float64) *Result {
	return &Result{
		Series: series, Title: "t", Client: "c", Unit: "u", Anchor: "haproxy", Rounds: 1, Secs: 1,
		Machine: Machine{Cores: 2, CPU: "cpu", Kernel: "Linux 6", Versions: "v"},
		Rows: []Row{
			{Name: "haproxy", Rate: 10, Others: 0.02, Ratio: map[metric]float64{mCPU: 1, mRate: 1}},
			{Name: "parrel", Rate: 12, Others: 0.3, Ratio: map[metric]float64{mCPU: ratio, mRate: 1.2}},
		},
		Targets: []Target{{mCPU, 0.9, 0.8}},
	}
}

// A second run of a series takes the place of the first, and leaves the others.
func TestSave(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results")
	for _, r := range []*Result{result("h2", 0.7), result("h1", 0.95), result("h1", 0.85)} {
		if err := save(path, r); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path + ".md")
	if err != nil {
		t.Fatal(err)
	}
	got := string(text)
	h1, h2 := strings.Index(got, "## h1: t"), strings.Index(got, "## h2: t")
	if h1 < 0 || h2 < h1 || strings.Count(got, "## ") != 2 {
		t.Errorf("sections are wrong:\n%s", got)
	}
	for _, want := range []string{
		"| h1 | CPU to haproxy | ≤ 0.9 | ≤ 0.8 | 0.85 | reached |", "| h2 | CPU to haproxy | ≤ 0.9 | ≤ 0.8 | 0.70 | goal reached |", "30 disturbed |",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in:\n%s", want, got)
		}
	}
	if strings.Contains(got, "0.95 |") {
		t.Error("the first run of h1 is still there")
	}
}

// A disturbed run is a verdict on process time only.
func TestDisturbedVerdict(t *testing.T) {
	r := result("l4-1", 0.7)
	r.Targets = append(r.Targets, Target{mRate, 0.95, 0.95})
	want := "| l4-1 | CPU to haproxy | ≤ 0.9 | ≤ 0.8 | 0.70 | goal reached |\n| l4-1 | rate to haproxy | ≥ 0.95 | ≥ 0.95 | 1.20 | goal reached, disturbed |\n"
	if got := r.summary(); got != want {
		t.Errorf("got\n%s want\n%s", got, want)
	}
	r.Rows[1].Others = 0
	if strings.Contains(r.summary(), "disturbed") {
		t.Errorf("nothing disturbed it:\n%s", r.summary())
	}
}

func TestReachedMemory(t *testing.T) {
	r := &Result{Series: memSeries, Targets: memTargets, Mem: []MemRow{{Name: "haproxy", Idle: 9, PerConn: 1}, {Name: "parrel", Idle: 12, PerConn: 4}, {Name: hundred, Idle: 15, PerConn: 5}}}
	want := "| mem | idle MB with 100 services | ≤ 20 | ≤ 16 | 15.00 | goal reached |\n| mem | KB per idle connection | ≤ 6 | ≤ 2 | 4.00 | reached |\n"
	if got := r.summary(); got != want {
		t.Errorf("got\n%s want\n%s", got, want)
	}
}

func TestReportLines(t *testing.T) {
	got := reportLines("# head\n\n  12.0%  a\n  10.0%  b  \n   1.0%  c\n", 2)
	if len(got) != 2 || got[0] != "  12.0%  a" || got[1] != "  10.0%  b" {
		t.Errorf("got %q", got)
	}
}

func TestPerUnit(t *testing.T) {
	got := perUnit("# started\n\n200,,syscalls:sys_enter_sendto,1,100.00,,\n450,,raw_syscalls:sys_enter,1,100.00,,\n<not counted>,,syscalls:sys_enter_read,0,0.00,,\n", 100)
	if len(got) != 2 || got[0] != "    4.5000  all" || got[1] != "    2.0000  sendto" {
		t.Errorf("got %q", got)
	}
}
