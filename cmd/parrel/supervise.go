package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

// superviseFlags are the command's flags.
type superviseFlags struct {
	redirect   bool
	uid        int
	excludeIn  []string
	excludeOut []string
	cidrs      []string
	uids       []string
	log        logFlags
}

func superviseCommand() *cobra.Command {
	var f superviseFlags
	cmd := &cobra.Command{
		Use:   "supervise [flags] -- sidecar FLAGS",
		Short: "Be the first process of a sidecar's container",
		Long: `Makes the redirection rules of this network namespace (--redirect), then runs
parrel with the arguments behind -- as the user --proxy-uid, without any
capability, and starts it again whenever it ends: the container and its network
namespace, which the application shares, outlive the sidecar, and meanwhile the
rules let nothing past it. SIGTERM and SIGINT are passed on; the exit code is
that of the sidecar. This is what ` + "`parrel inject`" + ` writes into compose files.

    parrel supervise --redirect --proxy-uid 15001 -- sidecar --sidecar-for web --grpc-addr cp:15012 --data-dir /var/lib/parrel/web`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("supervise: run what? Write `parrel supervise -- sidecar …`")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	fs := cmd.Flags()
	fs.BoolVar(&f.redirect, "redirect", false, "make redirection rules first (CAP_NET_ADMIN), as `parrel redirect apply` does")
	fs.IntVar(&f.uid, "proxy-uid", 0, "user id and group id of the sidecar's process; its traffic is not captured (default: this process's)")
	fs.StringSliceVar(&f.excludeIn, "exclude-inbound-port", nil, "with --redirect: inbound port or range that is not captured; repeat for several")
	fs.StringSliceVar(&f.excludeOut, "exclude-outbound-port", nil, "with --redirect: outbound port or range that is not captured")
	fs.StringSliceVar(&f.cidrs, "exclude-outbound-cidr", nil, "with --redirect: destination that is not captured")
	fs.StringSliceVar(&f.uids, "exclude-uid", nil, "with --redirect: user whose traffic is not captured")
	f.log.bind(cmd)
	return cmd
}

func (f *superviseFlags) run(cmd *cobra.Command, args []string) error {
	log, err := f.log.logger(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("supervise: cannot find this binary: %w", err)
	}
	switch {
	case f.uid < 0:
		return fmt.Errorf("supervise: --proxy-uid %d: give a user id", f.uid)
	case f.redirect && f.uid == 0:
		return errors.New("supervise: --redirect needs --proxy-uid: the sidecar's own traffic is told by its user, which no application may have")
	case !f.redirect && len(f.excludeIn)+len(f.excludeOut)+len(f.cidrs)+len(f.uids) > 0:
		return errors.New("supervise: exclusions without --redirect: nothing is captured; add --redirect")
	}
	if f.redirect {
		if err := f.applyRules(cmd.Context(), self, cmd.OutOrStdout(), cmd.ErrOrStderr()); err != nil {
			return err
		}
	}
	s := &supervisor{log: log, start: func() (*os.Process, error) {
		c := exec.Command(self, args...)
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		if f.uid != 0 && f.uid != os.Getuid() {
			c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(f.uid), Gid: uint32(f.uid)}}
		}
		if err := c.Start(); err != nil {
			return nil, fmt.Errorf("supervise: start %s: %w", args[0], err)
		}
		return c.Process, nil
	}}
	return s.run()
}

// applyRules runs `redirect apply`. It does not wait for the sidecar: the rules
// stand before anything runs, and the application starts only when the sidecar
// is ready.
func (f *superviseFlags) applyRules(ctx context.Context, self string, out, errOut io.Writer) error {
	args := []string{"redirect", "apply", "--proxy-uid", strconv.Itoa(f.uid), "--consul-dns-port", "15053", "--ready-timeout", "0s"}
	for flag, values := range map[string][]string{"--exclude-inbound-port": f.excludeIn, "--exclude-outbound-port": f.excludeOut,
		"--exclude-outbound-cidr": f.cidrs, "--exclude-uid": f.uids} {
		for _, v := range values {
			args = append(args, flag, v)
		}
	}
	c := exec.CommandContext(ctx, self, args...)
	c.Stdout, c.Stderr = out, errOut
	if err := c.Run(); err != nil {
		return fmt.Errorf("supervise: the redirection rules were not made (%w); without them nothing would be captured, so that nothing is started", err)
	}
	return nil
}

// supervisor runs one child and starts it again until it is told to stop.
type supervisor struct {
	log   *slog.Logger
	start func() (*os.Process, error)
}

// The pause before a child is started again: doubled each time, and short again
// after a child that has lived for long.
const (
	restartFirst = 50 * time.Millisecond
	restartMost  = 5 * time.Second
	livedLong    = 10 * time.Second
)

func (s *supervisor) run() error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	stopping := false
	for wait := restartFirst; ; {
		began := time.Now()
		p, err := s.start()
		if err != nil {
			return err
		}
		ended := make(chan syscall.WaitStatus, 1)
		go func() { ended <- reap(p.Pid) }()
		var st syscall.WaitStatus
		for alive := true; alive; {
			select {
			case sig := <-signals:
				stopping = stopping || sig == syscall.SIGTERM || sig == syscall.SIGINT
				if err := syscall.Kill(p.Pid, sig.(syscall.Signal)); err != nil && !errors.Is(err, syscall.ESRCH) {
					s.log.Warn("supervise: the signal could not be passed on", "signal", sig.String(), telemetry.KeyError, err.Error())
				}
			case st = <-ended:
				alive = false
			}
		}
		if stopping {
			return exitOf(st)
		}
		if time.Since(began) > livedLong {
			wait = restartFirst
		}
		s.log.Error("supervise: the sidecar ended and is started again", "status", howEnded(st), telemetry.KeyDuration, wait.String())
		t := time.NewTimer(wait)
		select {
		case sig := <-signals:
			t.Stop()
			if sig == syscall.SIGTERM || sig == syscall.SIGINT {
				return exitOf(st)
			}
		case <-t.C:
		}
		wait = min(2*wait, restartMost)
	}
}

// reap waits for the child. As a container's first process it also gets those
// that others left behind, and clears them away.
func reap(pid int) syscall.WaitStatus {
	which := pid
	if os.Getpid() == 1 {
		which = -1
	}
	for {
		var st syscall.WaitStatus
		got, err := syscall.Wait4(which, &st, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil || got == pid && (st.Exited() || st.Signaled()):
			return st
		}
	}
}

func howEnded(st syscall.WaitStatus) string {
	if st.Signaled() {
		return "killed by " + st.Signal().String()
	}
	return "exit code " + strconv.Itoa(st.ExitStatus())
}

// exitOf gives the child's end as this process's.
func exitOf(st syscall.WaitStatus) error {
	switch {
	case st.Signaled():
		return exitCode(128 + int(st.Signal()))
	case st.ExitStatus() != 0:
		return exitCode(st.ExitStatus())
	}
	return nil
}
