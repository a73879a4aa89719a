package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
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

	at   *consul.Definition // as registered; nil: not yet
	done chan struct{}
}

// registerEvery is how often the agent is asked whether it still knows the
// service: an agent that lost its memory is told again.
const registerEvery = 10 * time.Second

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
		t := time.NewTimer(next)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

func (s *self) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
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
	s.at = at
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
