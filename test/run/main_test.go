package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
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
		{"a test that hangs", []event{pass, {Action: "run", Package: "p", Test: "TestB"}, {Action: "output", Package: "p", Test: "TestB", Output: "panic: test timed out after 10m0s\n"},
			{Action: "fail", Package: "p"}}, errors.New("exit 1"), false, "1 passed, 1 failed, 0 skipped"},
		{"a package that does not build", []event{pass, {Action: "fail", Package: "q"}}, errors.New("exit 1"), false, "1 passed, 1 failed, 0 skipped"},
		{"nothing ran", nil, nil, false, "0 passed, 1 failed, 0 skipped"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			r := newReport(&out)
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

// TestMiddle: of very many stacks those that say something come first.
func TestMiddle(t *testing.T) {
	long := "panic: test timed out\n\n" + strings.Repeat("goroutine 7 [select (durable), synctest bubble 1]:\nwaits()\n\n", 10_000) + "goroutine 8 [running]:\nspins()\n\n"
	got := middle(long)
	if len(got) > mostStacks+100 || !strings.HasPrefix(got, "panic: test timed out\n\ngoroutine 8 [running]:\nspins()\n\ngoroutine 7") || !strings.Contains(got, "bytes are left out") {
		t.Errorf("%d bytes: %.300s", len(got), got)
	}
	if short := long[:1000]; middle(short) != short {
		t.Error("a short text is not left as it is")
	}
}

// module writes a module of these files, and makes it the working directory.
func module(t *testing.T, files map[string]string) {
	t.Helper()
	dir := t.TempDir()
	files["go.mod"] = "module m\n\ngo 1.24\n"
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	t.Setenv("GOFLAGS", "")
	t.Setenv("GOWORK", "off")
}

const (
	// Passes when it is run for the second time.
	flaky = `
func TestNAME(t *testing.T) {
	t.Run("part", func(t *testing.T) {
		if _, err := os.Stat("NAME"); err != nil {
			os.WriteFile("NAME", nil, 0o600)
			t.Error("for the first time")
		}
	})
}
`
	realHead   = "package p\n\nimport (\n\t\"os\"\n\t_ \"os/exec\"\n\t\"testing\"\n\t\"time\"\n)\n\nvar _ = time.Now\nvar _ = os.Stat\n"
	steadyTest = "\nfunc TestSteady(t *testing.T) {}\n"
)

// TestRun runs whole runs of small modules by the go command.
func TestRun(t *testing.T) {
	flakies := func(names ...string) string {
		s := realHead + steadyTest
		for _, n := range names {
			s += strings.ReplaceAll(flaky, "NAME", n)
		}
		return s
	}
	for _, c := range []struct {
		name  string
		files map[string]string
		args  []string
		ok    bool
		want  []string // in the output, in this order
		not   []string
	}{
		{"all pass", map[string]string{"a/a_test.go": "package a\n\nimport \"testing\"\n\nfunc TestA(t *testing.T) {}\n", "p/p_test.go": realHead + steadyTest}, nil, true,
			[]string{"ok   m/a ", "ok   m/p ", "2 passed, 0 failed, 0 skipped"}, []string{"second try"}},
		{"one passes only at the second try", map[string]string{"p/p_test.go": flakies("One")}, nil, true,
			[]string{"…    m/p ", "once more, alone: m/p TestOne", "first try | FAIL m/p TestOne/part", "for the first time", "passed only at the second try: m/p TestOne", "3 passed, 0 failed, 0 skipped"}, []string{"\n--- FAIL", "\nFAIL"}},
		{"one fails twice", map[string]string{"p/p_test.go": flakies("One") + "\nfunc TestNever(t *testing.T) { t.Error(\"never\") }\n"}, nil, false,
			[]string{"the second try of m/p TestNever failed, too", "failed package: m/p", "passed only at the second try: m/p TestOne", "3 passed, 1 failed, 0 skipped"}, nil},
		{"too many fail", map[string]string{"p/p_test.go": flakies("One", "Two", "Three", "Four")}, nil, false,
			[]string{"4 tests failed, more than 3: none is tried again", "FAIL m/p TestFour", "failed package: m/p", "1 passed, 8 failed, 0 skipped"}, []string{"once more", "second try"}},
		{"a test without processes has no second try", map[string]string{"a/a_test.go": "package a\n\nimport (\n\t\"os\"\n\t\"testing\"\n)\n" + strings.ReplaceAll(flaky, "NAME", "One")}, nil, false,
			[]string{"FAIL m/a TestOne", "failed package: m/a", "0 passed, 2 failed, 0 skipped"}, []string{"once more", "second try"}},
		{"a hang shows its stack and has no second try", map[string]string{"p/p_test.go": flakies("One") + "\nfunc TestZHang(t *testing.T) { stuck() }\n\nfunc stuck() { time.Sleep(time.Hour) }\n"}, []string{"-timeout=2s"}, false,
			[]string{"FAIL m/p TestOne", "FAIL m/p TestZHang: it did not come to its end", "panic: test timed out after 2s", "m/p.stuck(", "failed package: m/p"}, []string{"once more", "second try"}},
		{"a panic has no second try", map[string]string{"p/p_test.go": flakies("One") + "\nfunc TestPanic(t *testing.T) { panic(\"boom\") }\n"}, nil, false,
			[]string{"boom", "failed package: m/p"}, []string{"once more", "second try"}},
		{"what does not build", map[string]string{"p/p_test.go": "package p\n\nimport _ \"os/exec\"\n\nfunc TestX(", "a/a_test.go": "package a\n\nimport \"testing\"\n\nfunc TestA(t *testing.T) {}\n"}, nil, false,
			[]string{"failed package: m/p"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			module(t, c.files)
			var out strings.Builder
			ok, err := run(t.Context(), &out, append(c.args, "./..."))
			text := out.String()
			if ok != c.ok || err != nil {
				t.Errorf("ok = %v, %v; want %v", ok, err, c.ok)
			}
			rest := text
			for _, w := range c.want {
				_, after, found := strings.Cut(rest, w)
				if !found {
					t.Errorf("no %q, or not in its place", w)
					continue
				}
				rest = after
			}
			for _, n := range c.not {
				if strings.Contains(text, n) {
					t.Errorf("%q", n)
				}
			}
			if t.Failed() {
				t.Log(text)
			}
		})
	}
}

// TestTooLong: a run that is ended says so, and shows what was under way.
func TestTooLong(t *testing.T) {
	module(t, map[string]string{"p/p_test.go": realHead + "\nfunc TestHang(t *testing.T) { os.WriteFile(\"began\", nil, 0o600); stuck() }\n\nfunc stuck() { time.Sleep(time.Hour) }\n"})
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		for { // until the test is under way
			if _, err := os.Stat("p/began"); err == nil || ctx.Err() != nil {
				cancel(errTooLong)
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	var out strings.Builder
	ok, err := run(ctx, &out, []string{"./..."})
	if text := out.String(); ok || err != nil || !strings.Contains(text, errTooLong.Error()) || !strings.Contains(text, "TestHang: it did not come to its end") || !strings.Contains(text, "m/p.stuck(") {
		t.Errorf("ok = %v, %v:\n%s", ok, err, text)
	}
}
