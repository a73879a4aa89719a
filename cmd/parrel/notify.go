package main

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/deploy/notify"
)

// announced is a process that a service manager is told of.
type announced interface {
	Await(ctx context.Context) error
	Missing() []string
}

// announce tells the service manager, where there is one, when the process
// serves, what it waits for until then, and that it is alive, which is so while
// it can say what it misses. ready is false where the caller tells [notify.Ready]
// itself; tell tells more, ended is to be called when the process has ended.
func announce(p announced, ready bool, log *slog.Logger) (tell func(...string), ended func()) {
	socket, err := notify.FromEnvironment(os.Getenv)
	if err != nil {
		log.Warn("the service manager is not told everything", "err", err.Error())
	}
	if socket == nil {
		return func(...string) {}, func() {}
	}
	a := &announcer{socket: socket, log: log}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	if ready {
		wg.Go(func() { a.awaitReady(ctx, p) })
	}
	if every := socket.Watchdog(); every > 0 {
		wg.Go(func() { a.watchdog(ctx, p, every) })
	}
	return a.tell, func() { cancel(); wg.Wait() }
}

type announcer struct {
	socket *notify.Socket
	log    *slog.Logger
	failed sync.Once
}

func (a *announcer) tell(lines ...string) {
	if err := a.socket.Tell(lines...); err != nil {
		a.failed.Do(func() { a.log.Warn("the service manager cannot be told", "lines", lines, "err", err.Error()) })
	}
}

// awaitReady tells what is missing each time that it changed, then that nothing is.
func (a *announcer) awaitReady(ctx context.Context, p announced) {
	said := ""
	for {
		look, cancel := context.WithTimeout(ctx, time.Second)
		err := p.Await(look)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			a.tell(notify.Ready, notify.Status+"serving")
			return
		}
		if now := strings.ReplaceAll(strings.Join(p.Missing(), "; "), "\n", " "); now != said {
			said = now
			a.tell(notify.Status + "waiting: " + now)
		}
	}
}

func (a *announcer) watchdog(ctx context.Context, p announced, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		p.Missing() // does not return where the process is stuck
		a.tell(notify.Watchdog)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
