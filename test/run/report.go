package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// event is one line of `go test -json` (cmd/test2json).
type event struct {
	Action  string
	Package string
	Test    string
	Elapsed float64 // seconds
	Output  string
}

type key struct{ pkg, test string }

func (k key) String() string { return k.pkg + " " + k.test }

// top is the test of which k is a part.
func (k key) top() key {
	k.test, _, _ = strings.Cut(k.test, "/")
	return k
}

// report collects what the events said.
type report struct {
	out                     io.Writer
	mayRetry                bool // what fails now may be tried again
	lines                   map[key][]string
	open                    map[key]bool // began and have not ended
	passed, failed, skipped int
	bad                     []string // packages that did not build or ended outside a test
	unexplained             []string // skips without a reason
	second                  []string // passed only at the second try
	slow                    map[string]float64
	held                    map[key]*failure
	broken                  map[string]bool // packages that a panic or a time-out ended
}

// failure is a test of which something failed, subtests included, and which may
// be tried again.
type failure struct {
	key
	failed int
	said   []string // shown when it is known whether trying again helped
}

func newReport(out io.Writer) *report {
	return &report{out: out, lines: map[key][]string{}, open: map[key]bool{}, slow: map[string]float64{}, held: map[key]*failure{}, broken: map[string]bool{}}
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
	if err := sc.Err(); err != nil {
		_, _ = io.Copy(io.Discard, in) // or who writes waits for ever
		return err
	}
	return nil
}

func (r *report) take(e event) {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "run":
		r.open[k] = true
		return
	case "output":
		r.lines[k] = append(r.lines[k], e.Output)
		if strings.HasPrefix(e.Output, "panic: ") || strings.HasPrefix(e.Output, "fatal error: ") || strings.HasPrefix(e.Output, "SIGQUIT: ") {
			r.broken[e.Package] = true
		}
		return
	case "build-output":
		fmt.Fprint(r.out, e.Output)
		return
	case "pass", "fail", "skip":
	default:
		return
	}
	delete(r.open, k)
	defer delete(r.lines, k)
	if e.Test == "" {
		r.takePackage(e)
		return
	}
	if !strings.Contains(e.Test, "/") {
		r.slow[k.String()] = e.Elapsed
	}
	switch e.Action {
	case "pass":
		r.passed++
	case "fail":
		r.failed++
		r.fail(k)
	case "skip":
		r.skipped++
		reason := skipReason(r.lines[k])
		if reason == "" {
			r.unexplained = append(r.unexplained, k.String())
		}
		fmt.Fprintf(r.out, "skip %s: %s\n", k, reason)
	}
}

// fail shows a failure, at once or, where the test may be tried again, when it is
// known whether that helped.
func (r *report) fail(k key) {
	text := fmt.Sprintf("FAIL %s\n%s", k, strings.Join(r.lines[k], ""))
	if !r.mayRetry {
		fmt.Fprint(r.out, text)
		return
	}
	f := r.held[k.top()]
	if f == nil {
		f = &failure{key: k.top()}
		r.held[k.top()] = f
	}
	f.failed++
	f.said = append(f.said, text)
}

func (r *report) takePackage(e event) {
	r.slow[e.Package] = e.Elapsed
	if e.Action != "fail" {
		if e.Action == "pass" {
			fmt.Fprintf(r.out, "ok   %-60s %6.1f s\n", e.Package, e.Elapsed)
		}
		return
	}
	var unended []key
	for k := range r.open {
		if k.pkg == e.Package && k.test != "" {
			unended = append(unended, k)
		}
	}
	slices.SortFunc(unended, func(a, b key) int { return strings.Compare(a.test, b.test) })
	said := fmt.Sprintf("FAIL %-60s %6.1f s\n%s", e.Package, e.Elapsed, strings.Join(r.lines[key{e.Package, ""}], ""))
	if held := r.of(e.Package); len(held) > 0 && len(unended) == 0 && !r.broken[e.Package] {
		fmt.Fprintf(r.out, "…    %-60s %6.1f s: %d failed; more of it below\n", e.Package, e.Elapsed, len(held))
		held[len(held)-1].said = append(held[len(held)-1].said, said)
		return
	}
	r.show(e.Package)
	fmt.Fprint(r.out, said)
	r.blame(e.Package)
	for _, k := range unended { // a hang, or another's panic: its last words are stacks
		fmt.Fprintf(r.out, "FAIL %s: it did not come to its end\n%s", k, middle(strings.Join(r.lines[k], "")))
		r.failed++
		delete(r.open, k)
		delete(r.lines, k)
	}
}

// blame notes that a package failed, whatever else is tried.
func (r *report) blame(pkg string) {
	if !slices.Contains(r.bad, pkg) {
		r.bad = append(r.bad, pkg)
	}
}

// mostStacks is how much is shown of what a test that did not end has said.
const mostStacks = 200 << 10

// middle shortens a very long text: the stacks of thousands of goroutines, of
// which those that wait inside a synctest bubble, where waiting is ordinary, come
// last.
func middle(s string) string {
	if len(s) <= mostStacks {
		return s
	}
	var first, last []string
	for _, block := range strings.SplitAfter(s, "\n\n") {
		head, _, _ := strings.Cut(block, "\n")
		if strings.HasPrefix(head, "goroutine ") && strings.Contains(head, "(durable)") {
			last = append(last, block)
		} else {
			first = append(first, block)
		}
	}
	s = strings.Join(append(first, last...), "")
	return s[:mostStacks/2] + fmt.Sprintf("\n… %d bytes are left out …\n", len(s)-mostStacks) + s[len(s)-mostStacks/2:]
}

// of gives what is held back of a package, in order; "" is all.
func (r *report) of(pkg string) []*failure {
	var all []*failure
	for _, f := range r.held {
		if pkg == "" || f.pkg == pkg {
			all = append(all, f)
		}
	}
	slices.SortFunc(all, func(a, b *failure) int { return strings.Compare(a.String(), b.String()) })
	return all
}

// show prints what was held back of a package and tries it no more.
func (r *report) show(pkg string) {
	for _, f := range r.of(pkg) {
		fmt.Fprint(r.out, strings.Join(f.said, ""))
		r.blame(f.pkg)
		delete(r.held, f.key)
	}
}

// cut takes what never came to its end because go test itself was ended.
func (r *report) cut() {
	pkgs := map[string]bool{}
	for k := range r.open {
		pkgs[k.pkg] = true
	}
	for _, p := range slices.Sorted(maps.Keys(pkgs)) {
		r.takePackage(event{Action: "fail", Package: p})
	}
}

// retries are the tests to be tried a second time: none where they are too many.
func (r *report) retries() []*failure {
	all := r.of("")
	if len(all) > mostRetries {
		fmt.Fprintf(r.out, "%d tests failed, more than %d: none is tried again\n", len(all), mostRetries)
		r.show("")
		return nil
	}
	return all
}

// retried takes the outcome of the second try and shows what both tries said.
func (r *report) retried(f *failure, passed bool, said string) {
	if !passed {
		r.show(f.pkg)
		fmt.Fprintf(r.out, "the second try of %s failed, too:\n%s", f.key, said)
		return
	}
	// Marked, so that nobody takes it for what the run ended with.
	for line := range strings.Lines(strings.Join(f.said, "")) {
		fmt.Fprint(r.out, "first try | ", line)
	}
	r.failed -= f.failed
	r.passed += f.failed
	r.second = append(r.second, f.String())
	delete(r.held, f.key)
}

// troubles counts what went wrong.
func (r *report) troubles() int { return r.failed + len(r.bad) }

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

// slowest is how many of the slowest packages and tests are named.
const slowest = 8

func (r *report) finish(runErr error, took time.Duration) bool {
	r.show("") // what was to be tried again and was not
	ok := runErr == nil && r.failed == 0 && len(r.bad) == 0 && len(r.unexplained) == 0
	names := slices.SortedFunc(maps.Keys(r.slow), func(a, b string) int { return cmp.Or(cmp.Compare(r.slow[b], r.slow[a]), cmp.Compare(a, b)) })
	for _, n := range names[:min(len(names), slowest)] {
		if r.slow[n] >= 10 {
			fmt.Fprintf(r.out, "slow: %6.1f s %s\n", r.slow[n], n)
		}
	}
	slices.Sort(r.bad)
	for _, p := range r.bad {
		fmt.Fprintf(r.out, "failed package: %s\n", p)
	}
	for _, s := range r.unexplained {
		fmt.Fprintf(r.out, "skipped without a reason (give t.Skip one, or mend the test): %s\n", s)
	}
	if runErr != nil {
		fmt.Fprintf(r.out, "go test: %v\n", runErr)
	}
	if r.passed+r.failed == 0 {
		fmt.Fprintln(r.out, "no test ran")
		ok = false
	}
	for _, s := range r.second {
		fmt.Fprintf(r.out, "passed only at the second try: %s\n", s)
	}
	fmt.Fprintf(r.out, "tests took %s\n", took.Round(time.Second))
	failed := r.failed
	if !ok && failed == 0 {
		failed = max(1, len(r.bad)+len(r.unexplained))
	}
	fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped\n", r.passed, failed, r.skipped)
	return ok
}
