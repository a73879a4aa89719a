package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func events(t *testing.T, es ...event) string {
	t.Helper()
	var b strings.Builder
	for _, e := range es {
		j, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(j)
		b.WriteByte('\n')
	}
	return b.String()
}

func TestVerdict(t *testing.T) {
	pass := event{Action: "pass", Package: "p", Test: "TestA"}
	for _, c := range []struct {
		name   string
		events []event
		err    error
		ok     bool
		last   string
	}{
		{"all pass", []event{pass}, nil, true, "1 passed, 0 failed, 0 skipped"},
		{"a skip with its reason", []event{pass, {Action: "output", Package: "p", Test: "TestB", Output: "    b_test.go:7: no engine runs here\n"},
			{Action: "skip", Package: "p", Test: "TestB"}}, nil, true, "1 passed, 0 failed, 1 skipped"},
		{"a skip without one", []event{pass, {Action: "output", Package: "p", Test: "TestB", Output: "--- SKIP: TestB (0.00s)\n"},
			{Action: "skip", Package: "p", Test: "TestB"}}, nil, false, "1 passed, 1 failed, 1 skipped"},
		{"an empty reason", []event{pass, {Action: "output", Package: "p", Test: "TestB", Output: "    b_test.go:7: \n"},
			{Action: "skip", Package: "p", Test: "TestB"}}, nil, false, "1 passed, 1 failed, 1 skipped"},
		{"a failure", []event{{Action: "fail", Package: "p", Test: "TestA"}, {Action: "fail", Package: "p"}}, errors.New("exit 1"), false, "0 passed, 1 failed, 0 skipped"},
		{"a package that does not build", []event{pass, {Action: "fail", Package: "q"}}, errors.New("exit 1"), false, "1 passed, 1 failed, 0 skipped"},
		{"nothing ran", nil, nil, false, "0 passed, 1 failed, 0 skipped"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			r := &report{out: &out, lines: map[key][]string{}}
			if err := r.read(strings.NewReader(events(t, c.events...))); err != nil {
				t.Fatal(err)
			}
			if ok := r.finish(c.err, time.Second); ok != c.ok {
				t.Errorf("ok = %v, want %v; output:\n%s", ok, c.ok, out.String())
			}
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			if got := lines[len(lines)-1]; got != c.last {
				t.Errorf("last line %q, want %q", got, c.last)
			}
		})
	}
}
