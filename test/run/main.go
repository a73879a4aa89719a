// Command run runs the tests of the packages given and holds them to the
// project's rules:
//
//   - A package whose tests start processes, as clients of real time, real ports
//     and real memory, has the machine to itself; the others run before, side by
//     side.
//   - A package that hangs ends after a quarter of an hour with the stacks of its
//     goroutines, and the whole run after 32 minutes.
//   - Of those packages, a test that fails is run once more, alone. Where it then
//     passes, the run passes and says so in its last lines: "passed only at the
//     second try: NAME". Where more than three tests fail, or a package ends by a
//     panic, a time-out or outside a test, nothing is tried again.
//   - A test that is skipped without a stated reason fails the run.
//
// Arguments that begin with "-" are go test's. The last line counts: "N passed,
// N failed, N skipped".
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	packageLimit = 15 * time.Minute // for the tests of one package
	runLimit     = 32 * time.Minute // for everything
	// lastWords is how long go test may take to say what it has to say when it was
	// told to end.
	lastWords = 20 * time.Second
	// mostRetries is how many tests may be tried a second time.
	mostRetries = 3
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, runLimit, errTooLong)
	defer cancel()
	ok, err := run(ctx, os.Stdout, os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "test/run:", err)
	}
	if !ok || err != nil {
		stop()
		os.Exit(1)
	}
}

var errTooLong = fmt.Errorf("the whole run takes longer than %s", runLimit)

func run(ctx context.Context, out io.Writer, args []string) (ok bool, err error) {
	var flags, patterns []string
	for _, a := range args {
		if strings.HasPrefix(a, "-") {
			flags = append(flags, a)
		} else {
			patterns = append(patterns, a)
		}
	}
	alone, together, err := packages(ctx, patterns)
	if err != nil {
		return false, err
	}
	start := time.Now()
	r := newReport(out)
	var errs []error
	if len(together) > 0 {
		errs = append(errs, goTest(ctx, r, slices.Concat(flags, together)))
	}
	if len(alone) > 0 {
		r.mayRetry = true
		errs = append(errs, goTest(ctx, r, slices.Concat(flags, []string{"-p=1"}, alone)))
		for _, f := range r.retries() {
			fmt.Fprintf(r.out, "once more, alone: %s\n", f.key)
			var said strings.Builder
			again := newReport(&said)
			err := goTest(ctx, again, slices.Concat(flags, []string{"-run=^" + regexp.QuoteMeta(f.test) + "$", f.pkg}))
			r.retried(f, err == nil && again.troubles() == 0 && again.passed > 0, said.String())
		}
	}
	if cause := context.Cause(ctx); cause != nil {
		errs = append(errs, fmt.Errorf("ended: %w", cause))
	}
	return r.finish(errors.Join(errs...), time.Since(start)), nil
}

// goTest runs go test and reports what it says. An error is one of go test
// itself; that a test failed is in the report.
func goTest(ctx context.Context, r *report, args []string) error {
	if ctx.Err() != nil {
		return nil // said once
	}
	// Never from the cache: it knows nothing of the binaries that tests build and run.
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json", "-count=1", "-timeout=" + packageLimit.String()}, args...)...)
	cmd.Stderr = os.Stderr
	// A group of its own: whoever ends it ends the tests, which show their stacks.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		time.AfterFunc(lastWords/2, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }) // gone is as good
		return syscall.Kill(-cmd.Process.Pid, syscall.SIGQUIT)
	}
	cmd.WaitDelay = lastWords
	out, in := io.Pipe()
	cmd.Stdout = in
	before := r.troubles()
	read := make(chan error, 1)
	go func() { read <- r.read(out) }()
	err := cmd.Run()
	_ = in.Close()
	rerr := <-read
	r.cut()
	var exit *exec.ExitError
	if errors.As(err, &exit) && rerr == nil && r.troubles() > before {
		return nil // the report knows why
	}
	return errors.Join(err, rerr)
}
