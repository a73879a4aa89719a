// Command run runs the tests of the packages given and holds them to the
// project's rule: a test that is skipped without a stated reason fails the run.
// Its last line counts: "N passed, N failed, N skipped".
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// event is one line of `go test -json` (cmd/test2json).
type event struct {
	Action  string
	Package string
	Test    string
	Elapsed float64
	Output  string
}

type key struct{ pkg, test string }

// report collects what the events said.
type report struct {
	out                     io.Writer
	lines                   map[key][]string
	passed, failed, skipped int
	bad                     []string // packages that did not build or ended outside a test
	unexplained             []string // skips without a reason
}

func main() {
	// Never from the cache: it knows nothing of the binaries that tests build and run.
	args := append([]string{"test", "-json", "-count=1", "-timeout=20m"}, os.Args[1:]...)
	cmd := exec.Command("go", args...)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		fatal(err)
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		fatal(err)
	}
	r := &report{out: os.Stdout, lines: map[key][]string{}}
	if err := r.read(stdout); err != nil {
		fatal(err)
	}
	runErr := cmd.Wait()
	ok := r.finish(runErr, time.Since(start))
	if !ok {
		os.Exit(1)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "test/run:", err)
	os.Exit(1)
}

func (r *report) read(in io.Reader) error {
	sc := bufio.NewScanner(in)
	sc.Buffer(make([]byte, 1<<20), 64<<20)
	for sc.Scan() {
		var e event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			fmt.Fprintln(r.out, sc.Text()) // not an event: show it as it is
			continue
		}
		r.take(e)
	}
	return sc.Err()
}

func (r *report) take(e event) {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "output":
		r.lines[k] = append(r.lines[k], e.Output)
		return
	case "build-output":
		fmt.Fprint(r.out, e.Output)
		return
	case "pass", "fail", "skip":
	default:
		return
	}
	defer delete(r.lines, k)
	if e.Test == "" {
		r.takePackage(e)
		return
	}
	switch e.Action {
	case "pass":
		r.passed++
	case "fail":
		r.failed++
		fmt.Fprintf(r.out, "FAIL %s %s\n%s", e.Package, e.Test, strings.Join(r.lines[k], ""))
	case "skip":
		r.skipped++
		reason := skipReason(r.lines[k])
		if reason == "" {
			r.unexplained = append(r.unexplained, e.Package+" "+e.Test)
		}
		fmt.Fprintf(r.out, "skip %s %s: %s\n", e.Package, e.Test, reason)
	}
}

func (r *report) takePackage(e event) {
	switch e.Action {
	case "pass":
		fmt.Fprintf(r.out, "ok   %-60s %6.1f s\n", e.Package, e.Elapsed)
	case "fail":
		r.bad = append(r.bad, e.Package)
		fmt.Fprintf(r.out, "FAIL %-60s %6.1f s\n%s", e.Package, e.Elapsed, strings.Join(r.lines[key{e.Package, ""}], ""))
	}
}

// skipReason is what the test said when it skipped: any line of its output that
// is not the runner's own.
func skipReason(lines []string) string {
	for _, l := range lines {
		l = strings.TrimSpace(l)
		if l == "" || strings.HasPrefix(l, "=== ") || strings.HasPrefix(l, "--- ") {
			continue
		}
		if _, text, ok := strings.Cut(l, ".go:"); ok {
			if _, reason, ok := strings.Cut(text, ": "); ok {
				return strings.TrimSpace(reason)
			}
			continue
		}
		return l
	}
	return ""
}

func (r *report) finish(runErr error, took time.Duration) bool {
	ok := runErr == nil && r.failed == 0 && len(r.bad) == 0 && len(r.unexplained) == 0
	slices.Sort(r.bad)
	for _, p := range r.bad {
		fmt.Fprintf(r.out, "failed package: %s\n", p)
	}
	for _, s := range r.unexplained {
		fmt.Fprintf(r.out, "skipped without a reason (give t.Skip one, or mend the test): %s\n", s)
	}
	if runErr != nil && r.failed == 0 && len(r.bad) == 0 {
		fmt.Fprintf(r.out, "go test: %v\n", runErr)
	}
	if r.passed+r.failed == 0 {
		fmt.Fprintln(r.out, "no test ran")
		ok = false
	}
	fmt.Fprintf(r.out, "tests took %s\n", took.Round(time.Second))
	failed := r.failed
	if !ok && failed == 0 {
		failed = max(1, len(r.bad)+len(r.unexplained))
	}
	fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped\n", r.passed, failed, r.skipped)
	return ok
}
