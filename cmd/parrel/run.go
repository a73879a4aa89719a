package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/parrel-mesh/parrel/deploy/notify"
	"github.com/parrel-mesh/parrel/deploy/run"
)

// runFlags are those of `parrel run`.
type runFlags struct {
	sidecar      sidecarFlags
	wait         bool
	startTimeout time.Duration
	user         string
	order        string
	stopSignals  []string
	appSignal    string
	killAfter    time.Duration
	onExit       string
	hold         bool
}

func runCommand() *cobra.Command {
	f := runFlags{sidecar: sidecarFlags{command: "run", bootstrap: bootstrapFlags{mode: "serve"}}}
	cmd := &cobra.Command{
		Use:   "run [flags] -- PROGRAM [ARGUMENT...]",
		Short: "Run an application together with its sidecar",
		Long: `Starts the sidecar of a service instance and, once it has certificates,
configuration and open listeners, the application, so that the application can
call its upstreams from its first millisecond. Callers are let in when the
application listens at its service's port.

At SIGTERM or SIGINT the end comes in this order: the catalogue is told, inbound
traffic ends after the work in hand (--drain-time), the application gets the
signal, outbound traffic goes on until the application has exited, the sidecar
leaves. A second signal skips what is still waited for, a third kills the
application. All other signals are the application's. On a terminal the
application stays in the foreground, so that it gets Ctrl-C at once.

The exit code is the application's, 128 and the number of the signal that ended
it, 127 where there is no such program, 126 where it cannot be run, or 125 where
the sidecar could not start or was lost. It may be the first process of a
container: it waits for the orphans that end there.

--service NAME alone means the instance with the id NAME; --sidecar-for ID names
another one. The flags of the sidecar are those of ` + "`parrel sidecar`" + `.

    parrel run --service web --grpc-addr cp:15012 --token-file web.token --data-dir /var/lib/parrel/web -- ./web --port 8080`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch at := cmd.ArgsLenAtDash(); {
			case len(args) == 0:
				return errors.New("run: which program? Write it after the flags: parrel run --service web -- ./web")
			case at != 0:
				return fmt.Errorf("run: write -- before %q: what comes after it is the program's", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	fs := cmd.Flags()
	fs.SetInterspersed(false)
	f.sidecar.bind(cmd, fs)
	fs.Lookup("all-local").Hidden, fs.Lookup("token-dir").Hidden = true, true // run minds one application
	fs.Lookup("service").Usage = "name of the service; its id too, where --sidecar-for gives no other"
	fs.StringVar(&f.sidecar.accessLog, "admin-access-log-path", "/dev/stderr", "access log; \"\" turns it off")
	fs.BoolVar(&f.wait, "wait", true, "start the application when the sidecar can serve its calls; --wait=false: at once")
	fs.DurationVar(&f.startTimeout, "start-timeout", time.Minute, "how long the sidecar may take until then")
	fs.StringVar(&f.user, "user", "", "user that the application runs as: USER or USER:GROUP, names or numbers (default: the same)")
	fs.StringVar(&f.order, "stop-order", "inbound-first", "inbound-first: the application gets its signal when inbound traffic has ended; together: at once")
	fs.StringSliceVar(&f.stopSignals, "stop-signals", nil, "signals that end both, such as TERM,INT,QUIT (default: TERM,INT, and HUP on a terminal)")
	fs.StringVar(&f.appSignal, "app-signal", "", "signal that ends the application (default: the one that came)")
	fs.DurationVar(&f.killAfter, "kill-after", 30*time.Second, "how long the application may take to exit after its signal; 0s: any time")
	fs.StringVar(&f.onExit, "on-sidecar-exit", "stop", "when the sidecar is lost: stop the application, restart the sidecar, or keep the application without it")
	fs.BoolVar(&f.hold, "hold-inbound", true, "let callers in when the application listens at its service's port; false: at once")
	return cmd
}

// config reads the flags that are not the sidecar's.
func (f *runFlags) config(args []string) (run.Config, error) {
	c := run.Config{Argv: args, Start: f.startTimeout, KillAfter: f.killAfter, Together: f.order == "together"}
	if !f.wait {
		c.Start = -1
	} else if f.startTimeout <= 0 {
		return c, fmt.Errorf("run: --start-timeout %s: give a time above zero, or --wait=false to start the application at once", f.startTimeout)
	}
	if f.killAfter < 0 {
		return c, fmt.Errorf("run: --kill-after %s is below zero: give 0s (never) or more", f.killAfter)
	}
	if f.order != "together" && f.order != "inbound-first" {
		return c, fmt.Errorf("run: --stop-order %q: write inbound-first or together", f.order)
	}
	var known bool
	if c.OnLoss, known = run.Losses[f.onExit]; !known {
		return c, fmt.Errorf("run: --on-sidecar-exit %q: write %s", f.onExit, strings.Join(slices.Sorted(maps.Keys(run.Losses)), ", "))
	}
	for _, name := range f.stopSignals {
		sig, err := signalNamed("--stop-signals", name)
		if err != nil {
			return c, err
		}
		c.StopSignals = append(c.StopSignals, sig)
	}
	var err error
	if f.appSignal != "" {
		if c.AppSignal, err = signalNamed("--app-signal", f.appSignal); err != nil {
			return c, err
		}
	}
	c.Env = slices.DeleteFunc(os.Environ(), func(e string) bool {
		k, _, _ := strings.Cut(e, "=")
		return slices.Contains(notify.Variables, k)
	})
	if f.user != "" {
		if c.User, err = run.FindUser(f.user); err != nil {
			return c, err
		}
		c.Env = c.User.Environ(c.Env)
	}
	return c, nil
}

// signalNamed reads TERM or SIGTERM.
func signalNamed(flag, name string) (syscall.Signal, error) {
	sig := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG"))
	if sig == 0 || sig == syscall.SIGKILL || sig == syscall.SIGSTOP || sig == syscall.SIGCHLD {
		return 0, fmt.Errorf("run: %s: %q is no signal that a program can get and act upon: write TERM, INT, QUIT, HUP, USR1 …", flag, name)
	}
	return sig, nil
}

// oneService reads --service as the name of the one instance.
func (f *sidecarFlags) oneService() error {
	if f.service == "" || f.proxyID != "" {
		return nil
	}
	switch len(f.services) {
	case 0:
		f.services = []string{f.service}
	case 1:
		if id, name, named := strings.Cut(f.services[0], "="); !named {
			f.services[0] = id + "=" + f.service
		} else if name != f.service {
			return fmt.Errorf("run: --service %s and --sidecar-for %s name two services: leave one out", f.service, f.services[0])
		}
	default:
		return nil // said by workloads
	}
	f.service = ""
	return nil
}

func (f *runFlags) run(cmd *cobra.Command, args []string) error {
	logger, level, err := f.sidecar.log.leveled(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	c, err := f.config(args)
	if err != nil {
		return err
	}
	if f.sidecar.local.all {
		return errors.New("run: --all-local is for `parrel sidecar`: run minds one application")
	}
	if err := f.sidecar.oneService(); err != nil {
		return err
	}
	c.Log = logger
	f.sidecar.cfg.HoldInbound = f.hold
	p, err := f.sidecar.parts(cmd, logger, level)
	if err != nil {
		return err
	}
	m := &minded{parts: p, log: logger}
	defer m.close()
	c.New, c.Note = m.companion, m.note
	life, end := context.WithCancel(context.WithoutCancel(cmd.Context())) // signals are the supervisor's here
	defer end()
	settle(life)
	code, err := run.Supervise(c)
	if err != nil {
		return coded{err, exitCode(code)}
	}
	if code != 0 {
		return exitCode(code)
	}
	return nil
}

// coded is an error with an exit code of its own.
type coded struct {
	error
	code exitCode
}

func (c coded) Unwrap() []error { return []error{c.error, c.code} }

// minded makes the supervisor's companions and tells the service manager. Its
// methods are called by one goroutine.
type minded struct {
	parts *parts
	log   *slog.Logger
	ended func()
	told  func(...string)
}

func (m *minded) companion(beforeOutbound func(context.Context)) (run.Companion, error) {
	m.parts.deps.BeforeOutbound = beforeOutbound
	s, err := m.parts.process()
	if err != nil {
		return nil, err
	}
	if m.ended != nil {
		m.ended()
	}
	m.told, m.ended = announce(s, false, m.log)
	return s, nil
}

func (m *minded) note(e run.Event) {
	switch e {
	case run.Ready:
		m.told(notify.Ready, notify.Status+"serving")
	case run.Stopping:
		m.told(notify.Stopping, notify.Status+"leaving: what is in hand ends")
	}
}

func (m *minded) close() {
	if m.ended != nil {
		m.ended()
	}
	m.parts.close()
}
