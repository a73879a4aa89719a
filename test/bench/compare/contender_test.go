package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Every series has its anchor, and parrel takes part in all of them.
func TestCommittedContenders(t *testing.T) {
	all, err := loadContenders(filepath.Join("..", "contenders.json"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range table {
		s := &table[i]
		names := taking(all, s.name, nil, nil)
		if !slices.Contains(names, s.anchor) || !slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "parrel") }) {
			t.Errorf("%s has the contenders %v", s.name, names)
		}
		for _, n := range names {
			if all[n].Ports[s.workload] == 0 {
				t.Errorf("%s takes part in %s without a port %q", n, s.name, s.workload)
			}
			if strings.HasPrefix(n, "parrel") && s.exact != "" && len(all[n].Admin) != len(all[n].Cmds) {
				t.Errorf("%s: %d processes, and %d are asked for their counts", n, len(all[n].Cmds), len(all[n].Admin))
			}
		}
		for _, target := range s.targets {
			if target.Metric.atLeast() && target.Required > target.Goal || !target.Metric.atLeast() && target.Required < target.Goal {
				t.Errorf("%s: the goal of %s is easier than what is required", s.name, target.Metric)
			}
		}
	}
	used := map[int]string{}
	for n, c := range all {
		for w, p := range c.Ports {
			if was, ok := used[p]; ok {
				t.Errorf("port %d is that of %s and of %s %s", p, was, n, w)
			}
			used[p] = n + " " + w
		}
	}
}

func TestLoadContendersRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		file  map[string]Contender
		error string
	}{
		{"no command", map[string]Contender{"x": {Ports: map[string]int{wH1: 1}}}, "no commands"},
		{"unknown series", map[string]Contender{"x": {Cmds: []string{"x"}, Ports: map[string]int{wH1: 1}, Series: []string{"h4"}}}, `"h4"`},
		{"no port", map[string]Contender{"x": {Cmds: []string{"x"}, Ports: map[string]int{wH1: 1}, Series: []string{"h2"}}}, "no port"},
		{"taken name", map[string]Contender{"haproxy": {Cmds: []string{"x"}, Ports: map[string]int{wH1: 1}}}, "every run has"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text, err := json.Marshal(c.file)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "contenders.json")
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := loadContenders(path); err == nil || !strings.Contains(err.Error(), c.error) {
				t.Errorf("error %v, want one that says %q", err, c.error)
			}
		})
	}
}

func TestTaking(t *testing.T) {
	all := map[string]Contender{"zz": {Series: []string{"h1"}}, "nginx": {Series: []string{"h1"}}, "haproxy": {Series: []string{"h1"}}, "aa": {Series: []string{"h2"}}, "mm": {Series: []string{"h1"}}}
	if got := taking(all, "h1", nil, nil); !slices.Equal(got, []string{"haproxy", "nginx", "mm", "zz"}) {
		t.Errorf("all: %v", got)
	}
	if got := taking(all, "h1", []string{"haproxy"}, []string{"zz"}); !slices.Equal(got, []string{"haproxy", "zz"}) {
		t.Errorf("one and its anchor: %v", got)
	}
}
