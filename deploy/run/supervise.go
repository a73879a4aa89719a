package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// supervisor is one run. All of it belongs to the goroutine of Supervise.
type supervisor struct {
	Config
	path     string
	terminal bool
	signals  chan os.Signal

	app      *process // nil: not started
	beside   *beside  // nil: lost, and none is starting
	stops    int      // signals that ask for the end
	stopping bool
	with     syscall.Signal // ends the application
	told     bool           // the application has its signal
	killAt   <-chan time.Time
	undo     func()
	began    []Event // told already

	again   <-chan time.Time // the next companion
	retries int
	lost    error // the companion's reason, where its loss ends the application
}

// beside is one life of the companion.
type beside struct {
	Companion
	cancel  context.CancelFunc
	ready   chan error    // its outbound traffic works; nil once that was seen
	up      chan struct{} // the application's port is open; nil once that was seen
	drained chan struct{} // closed when its inbound traffic has ended; nil once that was seen
	ended   chan error
	release func() // the application has exited, or never started
}

// Supervise starts the companion and the application and returns when both have
// ended, with the exit code to end with. An error says why that is not the
// application's. The calling process must start no children of its own, since
// all of them are waited for here.
func Supervise(c Config) (code int, err error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.retry == 0 {
		c.retry = time.Second
	}
	s := &supervisor{Config: c, terminal: onTerminal(), signals: make(chan os.Signal, 64)}
	if s.path, code, err = find(c.Argv[0]); err != nil {
		return code, err
	}
	if len(s.StopSignals) == 0 {
		s.StopSignals = []syscall.Signal{syscall.SIGTERM, syscall.SIGINT}
		if s.terminal {
			s.StopSignals = append(s.StopSignals, syscall.SIGHUP)
		}
	}
	runtime.LockOSThread() // see withParent
	defer runtime.UnlockOSThread()
	s.listen()
	defer signal.Stop(s.signals)
	if err := s.companion(); err != nil {
		return CodeFailed, err
	}
	if s.Start < 0 {
		if code, err := s.launch(); err != nil {
			s.leave()
			return code, err
		}
	}
	return s.loop()
}

// listen asks for every signal that can be caught, but those that somebody has
// made this process ignore (nohup(1)), and on a terminal those that the terminal
// sends to the application too.
func (s *supervisor) listen() {
	all := append(atOnce(), s.StopSignals...)
	for _, sig := range all {
		if signal.Ignored(sig) || s.terminal && slices.Contains([]syscall.Signal{syscall.SIGTSTP, syscall.SIGCONT, syscall.SIGWINCH}, sig) {
			continue
		}
		signal.Notify(s.signals, sig)
	}
	signal.Notify(s.signals, syscall.SIGCHLD)
}

// companion starts a companion.
func (s *supervisor) companion() error {
	b := &beside{ready: make(chan error, 1), up: make(chan struct{}), drained: make(chan struct{}),
		ended: make(chan error, 1)}
	drained, exited := b.drained, make(chan struct{})
	b.release = sync.OnceFunc(func() { close(exited) })
	c, err := s.New(func(ctx context.Context) {
		close(drained)
		select {
		case <-exited:
		case <-ctx.Done():
		}
	})
	if err != nil {
		return err
	}
	b.Companion = c
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel = cancel
	s.beside = b
	go func() { b.ended <- c.Run(ctx) }()
	up, ready, bounded := b.up, b.ready, s.Start >= 0 && s.app == nil
	go func() {
		wait, end := ctx, context.CancelFunc(func() {})
		if bounded {
			wait, end = context.WithTimeoutCause(ctx, s.Start, fmt.Errorf("that has taken more than %s", s.Start))
		}
		err := c.AwaitOutbound(wait)
		end()
		ready <- err
		if err == nil {
			s.awaitApplication(ctx, c, up)
		}
	}()
	return nil
}

// awaitApplication closes up when the application listens at all of its
// addresses.
func (s *supervisor) awaitApplication(ctx context.Context, c Companion, up chan struct{}) {
	begin, said := time.Now(), false
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		var shut []string
		for _, a := range c.Applications() {
			open, err := Listening(a)
			if err != nil {
				s.Log.Warn("run: cannot see whether the application listens; callers are let in", "err", err.Error())
			} else if !open {
				shut = append(shut, a)
			}
		}
		if len(shut) == 0 {
			close(up)
			return
		}
		if !said && time.Since(begin) > 10*time.Second {
			said = true
			s.Log.Warn("run: the application does not listen yet where its registration says, so that callers are not let in",
				"address", strings.Join(shut, ", "), "remedy", "correct the service's port, or --hold-inbound=false")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// beforeTimeout bounds Config.Before.
const beforeTimeout = 30 * time.Second

// launch starts the application.
func (s *supervisor) launch() (code int, err error) {
	if s.Before != nil {
		ctx, cancel := context.WithTimeout(context.Background(), beforeTimeout)
		s.undo, err = s.Before(ctx)
		cancel()
		if err != nil {
			return CodeFailed, err
		}
	}
	if s.app, err = s.start(s.path, s.terminal); err != nil {
		if s.undo != nil {
			s.undo()
		}
		return CodeNotRun, err
	}
	s.Log.Info("run: the application has started", "pid", s.app.pid, "program", s.path)
	return 0, nil
}

// leave ends the companion where there is no application any more, or was none.
func (s *supervisor) leave() {
	b := s.beside
	if b == nil {
		return
	}
	b.ApplicationGone()
	b.release()
	b.cancel()
	for {
		select {
		case err := <-b.ended:
			if err != nil {
				s.Log.Error("run: the sidecar ended with an error", "err", err.Error())
			}
			return
		case sig := <-s.signals:
			if n, ok := sig.(syscall.Signal); ok && slices.Contains(s.StopSignals, n) {
				s.stops++
				if s.stops > 1 {
					b.Hasten()
				}
			}
			s.app.reap()
		}
	}
}

func (s *supervisor) loop() (int, error) {
	for {
		var b beside // channels that say nothing, where there is no companion
		if s.beside != nil {
			b = *s.beside
		}
		select {
		case sig := <-s.signals:
			if n, ok := sig.(syscall.Signal); ok {
				s.signalled(n)
			}
		case err := <-b.ready:
			s.beside.ready = nil
			if s.app != nil || s.stopping {
				break
			}
			if err != nil {
				return s.fail(CodeFailed, fmt.Errorf("run: the application was not started: %w", err))
			}
			if code, err := s.launch(); err != nil {
				return s.fail(code, err)
			}
		case <-b.up:
			s.beside.up = nil
			s.beside.OpenInbound()
			s.retries = 0
			s.note(Ready)
		case <-b.drained:
			s.beside.drained = nil
			if !s.stopping { // by its admin API
				s.stop(syscall.SIGTERM)
			}
			if s.app == nil {
				s.beside.release()
			}
			s.tell()
		case err := <-b.ended:
			if code, over := s.companionEnded(err); over {
				return code, s.lost
			}
		case <-s.again:
			s.again = nil
			if err := s.companion(); err != nil {
				s.later(err)
			}
		case <-s.killAt:
			s.killAt = nil
			s.Log.Warn("run: the application has not ended in time and is killed", "after", s.KillAfter.String())
			s.app.kill()
		}
		if s.app != nil && s.app.exited {
			return s.over()
		}
	}
}

// fail ends a run whose application never started.
func (s *supervisor) fail(code int, err error) (int, error) {
	s.leave()
	return code, err
}

// over is the end of a run whose application has exited.
func (s *supervisor) over() (int, error) {
	s.note(Stopping)
	level := slog.LevelInfo
	if !s.stopping {
		level = slog.LevelWarn
	}
	s.Log.Log(context.Background(), level, "run: the application has ended", "code", s.app.code())
	if s.app.group { // what it left behind
		_ = syscall.Kill(-s.app.pid, syscall.SIGTERM)
	}
	s.leave()
	if s.undo != nil {
		s.undo()
	}
	if s.lost != nil {
		return CodeFailed, s.lost
	}
	return s.app.code(), nil
}

// signalled is what a signal comes to.
func (s *supervisor) signalled(sig syscall.Signal) {
	if sig == syscall.SIGCHLD {
		s.app.reap()
		return
	}
	if slices.Contains(s.StopSignals, sig) {
		s.stop(sig)
		return
	}
	if s.app != nil && !(s.terminal && slices.Contains([]syscall.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP}, sig)) {
		s.app.signal(sig)
	}
}

// stop begins the soft end; asked for again it hastens it, and the third time it
// ends it.
func (s *supervisor) stop(sig syscall.Signal) {
	s.stops++
	s.note(Stopping)
	s.stopping = true
	s.again = nil
	if s.stops == 1 {
		s.with = sig
		if s.AppSignal != 0 {
			s.with = s.AppSignal
		}
		// What a terminal sends goes to its whole foreground group.
		if s.terminal && (sig == syscall.SIGINT || sig == syscall.SIGHUP) {
			s.with = syscall.SIGTERM
		}
	}
	if s.beside != nil {
		s.beside.cancel()
	}
	switch {
	case s.app == nil:
		if s.stops > 1 && s.beside != nil {
			s.beside.Hasten()
		}
	case s.stops == 1:
		s.Log.Info("run: ending", "signal", sig.String())
		if s.Together || s.beside == nil {
			s.tell()
		}
	case s.stops == 2:
		s.Log.Warn("run: ending at once", "signal", sig.String())
		if s.beside != nil {
			s.beside.Hasten()
		}
		if s.told {
			s.app.signal(s.with)
		}
		s.tell()
	default:
		s.app.kill()
	}
}

// tell gives the application its signal, once.
func (s *supervisor) tell() {
	if s.told || s.app == nil {
		return
	}
	s.told = true
	s.app.signal(s.with)
	if s.KillAfter > 0 {
		s.killAt = time.After(s.KillAfter)
	}
}

// companionEnded looks at the end of a companion while the application runs, or
// before it does.
func (s *supervisor) companionEnded(err error) (code int, over bool) {
	s.beside = nil
	if s.app == nil {
		if s.stopping && err == nil {
			return codeSignalled + int(s.with), true
		}
		if err == nil {
			err = errors.New("it was told to end")
		}
		s.lost = fmt.Errorf("run: the application was not started: the sidecar ended: %w", err)
		return CodeFailed, true
	}
	if err == nil {
		err = errors.New("it ended by itself")
	}
	switch {
	case s.stopping:
		s.Log.Error("run: the sidecar was lost while ending", "err", err.Error())
		s.tell()
	case s.OnLoss == Stop:
		s.Log.Error("run: the sidecar was lost: the application is ended", "err", err.Error())
		s.lost = fmt.Errorf("run: the sidecar was lost: %w", err)
		s.stop(syscall.SIGTERM)
	case s.OnLoss == Restart:
		s.later(err)
	default:
		s.Log.Error("run: the sidecar was lost: the application goes on without it", "err", err.Error())
	}
	return 0, false
}

// later waits before the next companion.
func (s *supervisor) later(err error) {
	pause := min(s.retry<<min(s.retries, 10), 30*time.Second)
	s.retries++
	s.Log.Error("run: the sidecar was lost: another one is started", "pause", pause.String(), "err", err.Error())
	s.again = time.After(pause)
}

func (s *supervisor) note(e Event) {
	if s.Note != nil && !slices.Contains(s.began, e) {
		s.began = append(s.began, e)
		s.Note(e)
	}
}
