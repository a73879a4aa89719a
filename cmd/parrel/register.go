package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/parrel-mesh/parrel/discovery/consul"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

// self registers the service that a sidecar stands for, where the definition was
// given to the sidecar itself, and takes it away at the end.
type self struct {
	definition *consul.Definition
	protocol   string // for service-defaults, "" for none
	agent      string
	address    string // "": the one that leads to the agent
	readyPort  string // of the readiness listener, "": no check of it
	registrar  *consul.Registrar
	log        *slog.Logger

	at       *consul.Definition // as registered; nil: not yet
	listens  bool               // as reported last
	reported time.Time          // when
	done     chan struct{}
}

const (
	// registerEvery is how often the agent is asked whether it still knows the
	// service: an agent that lost its memory is told again.
	registerEvery = 10 * time.Second
	// listenEvery is how often it is looked whether the application listens. That
	// is read from the kernel's table: the application sees no connection.
	listenEvery = 200 * time.Millisecond
	// reportEvery is how often that is told to the agent where nothing changes.
	reportEvery = 10 * time.Second
)

// newSelf reads --service-definition; nil where it was not given.
func (f *sidecarFlags) newSelf(r *consul.Registrar, log *slog.Logger) (*self, error) {
	if f.definition == "" {
		if f.protocol != "" {
			return nil, errors.New("sidecar: --service-protocol is for --service-definition: write it into service-defaults otherwise")
		}
		return nil, nil
	}
	d, err := consul.ParseDefinition(f.definition)
	if err != nil {
		return nil, fmt.Errorf("sidecar: --service-definition: %w", err)
	}
	switch {
	case r == nil:
		return nil, errors.New("sidecar: --service-definition needs a Consul agent to register with: give --http-addr or CONSUL_HTTP_ADDR")
	case len(f.services) > 1 || len(f.services) == 1 && f.services[0] != d.ID():
		return nil, fmt.Errorf("sidecar: --service-definition is of %q and --sidecar-for says otherwise: leave --sidecar-for out", d.ID())
	}
	s := &self{definition: d, protocol: f.protocol, address: f.bindAddress, registrar: r, log: log, done: make(chan struct{})}
	if s.agent = f.httpAddr; s.agent == "" {
		s.agent = os.Getenv("CONSUL_HTTP_ADDR")
	}
	if f.cfg.Ready != "" {
		host, port, err := net.SplitHostPort(f.cfg.Ready)
		if err == nil && (host == "" || !net.ParseIP(host).IsLoopback()) {
			s.readyPort = port
		}
	}
	f.services = []string{d.ID() + "=" + d.Name()}
	return s, nil
}

// run registers and stays until ctx ends.
func (s *self) run(ctx context.Context) {
	defer close(s.done)
	wait := 200 * time.Millisecond
	for {
		err := s.once(ctx)
		next := registerEvery
		if err != nil && ctx.Err() == nil {
			s.log.Warn("sidecar: the service is not registered; trying again, meanwhile nobody finds it",
				"service_id", s.definition.ID(), telemetry.KeyDuration, wait.String(), telemetry.KeyError, err.Error())
			next, wait = wait, min(2*wait, 5*time.Second)
		}
		wctx, stop := context.WithTimeout(ctx, next)
		s.watch(wctx)
		stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// watch reports whether the application listens until ctx ends.
func (s *self) watch(ctx context.Context) {
	port := s.definition.LocalPort()
	if s.at == nil || port == 0 {
		<-ctx.Done()
		return
	}
	for {
		began := time.Now()
		listens, err := listensOn(port)
		// With many connections the table is long: looking takes 2 % of the time at most.
		pause := max(listenEvery, 50*time.Since(began))
		if err != nil {
			s.log.Warn("sidecar: whether the application listens cannot be seen; its check turns critical", telemetry.KeyError, err.Error())
			<-ctx.Done()
			return
		}
		if s.reported.IsZero() || listens != s.listens || time.Since(s.reported) > reportEvery {
			if err := s.registrar.Report(ctx, s.at, listens); err == nil {
				s.listens, s.reported = listens, time.Now()
			} else if ctx.Err() == nil && !s.reported.IsZero() {
				s.reported = time.Time{}
				s.log.Warn("sidecar: the agent does not hear whether the application listens; trying again", telemetry.KeyError, err.Error())
			}
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// listensOn says whether any socket of this network namespace listens on a TCP
// port, from the kernel's own table.
func listensOn(port int) (bool, error) {
	const listening = "0A"
	suffix := fmt.Sprintf(":%04X", port)
	read := 0
	for _, file := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // without IPv6 the second is not there
		}
		read++
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 3 && f[3] == listening && strings.HasSuffix(f[1], suffix) {
				return true, nil
			}
		}
	}
	if read == 0 {
		return false, errors.New("/proc/self/net/tcp cannot be read")
	}
	return false, nil
}

func (s *self) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if s.at != nil {
		l, err := s.registrar.Lookup(ctx, s.definition.ID())
		if err == nil && l.Proxy != nil {
			return nil
		}
		if err != nil && !errors.Is(err, consul.ErrNotRegistered) {
			return nil // the agent is away; it keeps what it has
		}
		s.log.Info("sidecar: the agent has lost the service; registering it again", "service_id", s.definition.ID())
	}
	address, ready := s.address, ""
	if address == "" {
		var err error
		if address, err = consul.LocalAddress(s.agent); err != nil {
			return err
		}
	}
	if s.readyPort != "" {
		host := address
		if host == "" {
			host = "127.0.0.1"
		}
		ready = "http://" + net.JoinHostPort(host, s.readyPort) + "/ready"
	}
	if s.protocol != "" {
		switch stands, err := s.registrar.Declare(ctx, s.definition.Name(), s.protocol); {
		case err != nil:
			return err
		case stands != s.protocol && s.at == nil:
			s.log.Warn("sidecar: service-defaults says another protocol than --service-protocol; it stands", "service", s.definition.Name(), "protocol", stands)
		}
	}
	at := s.definition.At(address, ready)
	if err := s.registrar.Register(ctx, at); err != nil {
		return err
	}
	s.at, s.reported = at, time.Time{}
	s.log.Info("sidecar: registered the service", "service_id", at.ID(), "proxy", at.ProxyID(), telemetry.KeyAddress, address)
	return nil
}

// leave waits for run to end and takes away what it registered.
func (s *self) leave() {
	<-s.done
	if s.at == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if err := s.registrar.Deregister(ctx, s.at); err != nil {
		s.log.Warn("sidecar: the service could not be deregistered; its check turns critical", "service_id", s.at.ID(), telemetry.KeyError, err.Error())
	}
}
