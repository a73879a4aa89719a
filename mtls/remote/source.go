package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/mtls/internal/keep"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
)

// How often a failed call is tried again: the first wait, doubled up to the
// last, each with up to half of jitter taken off.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 1 * time.Minute
)

// callTimeout bounds one Sign call, connection included.
const callTimeout = 10 * time.Second

// Config of a [Source].
type Config struct {
	Address string // of the control plane, host:port; several separated by commas are tried in order
	DataDir string // the workload's directory is made below it
	Service string // Consul's service name; required
	ID      string // unique in DataDir: the proxy's id; "": Service
	// Token is used where there is no usable stored identity; TokenFile holds
	// one and is read each time one is needed. At most one is set.
	Token, TokenFile string
	Dial             func(ctx context.Context, address string) (net.Conn, error) // nil: TCP
	Log              *slog.Logger                                                // nil: discard
	Now              func() time.Time                                            // nil: time.Now
	Rand             func() float64                                              // in [0, 1), for jitter; nil: math/rand
}

// Source obtains one workload's identity from the control plane, keeps it in
// the data directory and renews it at half of its life. It is a
// [mtls.Source]; an identity that was stored serves from [New] on, whether or
// not anything else is alive.
type Source struct {
	mtls.Cell
	c     Config
	store store
	nudge chan struct{}

	mu   sync.Mutex // guards kept; writers of the file hold it, too
	kept *kept
}

var _ mtls.Source = (*Source)(nil)

// FatalError is an error that no retry can mend: Run returns it.
type FatalError struct{ Err error }

func (e *FatalError) Error() string { return e.Err.Error() }
func (e *FatalError) Unwrap() error { return e.Err }

func fatalf(format string, args ...any) error { return &FatalError{fmt.Errorf(format, args...)} }

// New loads what is stored. It makes no connection; Run does.
func New(c Config) (*Source, error) {
	switch {
	case c.Service == "":
		return nil, errors.New("remote: no service given: name the service that this workload is")
	case c.DataDir == "":
		return nil, errors.New("remote: no data directory given: set --data-dir")
	case c.Address == "":
		return nil, errors.New("remote: no address of the control plane given")
	case c.Token != "" && c.TokenFile != "":
		return nil, errors.New("remote: both a token and a token file are given: give one")
	}
	if c.ID == "" {
		c.ID = c.Service
	}
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Float64
	}
	s := &Source{c: c, store: store{filepath.Join(c.DataDir, dirName(c.ID))}, nudge: make(chan struct{}, 1)}
	if err := s.load(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Source) load() error {
	if err := keep.Dir(s.store.dir); err != nil {
		return fmt.Errorf("remote: data directory: %w", err)
	}
	keep.Sweep(s.store.path())
	k, err := s.store.load(s.c.Service)
	if err != nil {
		if s.c.Token == "" && s.c.TokenFile == "" {
			return fmt.Errorf("%w; remove it and join again with a token from `parrel token create --service %s`", err, s.c.Service)
		}
		s.c.Log.Warn("the stored identity is put aside; joining again", "error", err)
		if err := os.Rename(s.store.path(), s.store.path()+".bad"); err != nil {
			return fmt.Errorf("remote: %w", err)
		}
	}
	s.kept = k
	s.Set(k.snapshot(s.unusable(k)))
	return nil
}

// unusable says why k cannot be presented now, or nil.
func (s *Source) unusable(k *kept) error {
	if k == nil {
		return fmt.Errorf("service %q has not joined yet", s.c.Service)
	}
	if _, err := mtls.Usable(k.snapshot(nil), s.c.Now()); err != nil {
		return err
	}
	return nil
}

// Run joins if need be and renews until ctx ends. It returns ctx's error, or a
// [*FatalError] when there is no usable identity and none can be had: a token
// that is wrong, or none at all. While the identity is usable, and with a
// TokenFile always, it goes on trying.
func (s *Source) Run(ctx context.Context) error {
	wait := firstRetry
	for {
		k := s.current()
		if dead := s.unusable(k); dead == nil {
			if err := s.sleep(ctx, s.untilRenewal(k)); err != nil {
				return err
			}
		}
		err := s.once(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			wait = firstRetry
			continue
		}
		dead := s.unusable(s.current())
		if dead != nil {
			s.Set(s.current().snapshot(err))
			s.c.Log.Error("no identity", "service", s.c.Service, "id", s.c.ID, "error", err)
			if _, fatal := errors.AsType[*FatalError](err); fatal && s.c.TokenFile == "" {
				return err
			}
		} else {
			s.c.Log.Warn("the identity could not be renewed; it is tried again", "service", s.c.Service, "id", s.c.ID,
				"expires", s.current().svid.Certificates[0].NotAfter, "error", err)
		}
		pause := time.Duration(float64(wait) * (1 - s.c.Rand()/2))
		if dead == nil { // say so at the moment when it expires, not a minute later
			pause = min(pause, max(s.current().svid.Certificates[0].NotAfter.Sub(s.c.Now())+time.Second, time.Second))
		}
		if err := s.sleep(ctx, pause); err != nil {
			return err
		}
		wait = min(2*wait, lastRetry)
	}
}

func (s *Source) current() *kept {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept
}

// untilRenewal is the time to half of the life, up to a tenth of it earlier so
// that a fleet started together does not renew together.
func (s *Source) untilRenewal(k *kept) time.Duration {
	leaf := k.svid.Certificates[0]
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	at := leaf.NotBefore.Add(time.Duration(float64(life) * (0.5 - 0.1*s.c.Rand())))
	return max(at.Sub(s.c.Now()), 0)
}

// sleep waits for d, a nudge or ctx's end.
func (s *Source) sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
	case <-s.nudge:
	}
	return nil
}

// Renew asks Run to renew now. It does not wait.
func (s *Source) Renew() {
	select {
	case s.nudge <- struct{}{}:
	default:
	}
}

// UpdateTrust adds what the control plane says of trust while connected: the
// bundles of set replace those of the same trust domains, and are stored. The
// trust domains of the identity and of the control plane are never left
// without roots.
func (s *Source) UpdateTrust(set *x509bundle.Set) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept == nil || set == nil {
		return nil
	}
	merged := x509bundle.NewSet(s.kept.bundles.Bundles()...)
	changed := false
	for _, b := range set.Bundles() {
		if b.TrustDomain().IsZero() || len(b.X509Authorities()) == 0 {
			continue
		}
		if old, ok := merged.Get(b.TrustDomain()); !ok || !old.Equal(b) {
			merged.Add(b)
			changed = true
		}
	}
	if !changed {
		return nil
	}
	return s.keepLocked(&kept{svid: s.kept.svid, bundles: merged, plane: s.kept.plane})
}

// keepLocked stores k and makes it current. The caller holds mu, which is a
// lock of this Source's writers only: Current does not take it.
func (s *Source) keepLocked(k *kept) error {
	s.kept = k
	s.Set(k.snapshot(s.unusable(k)))
	return s.store.save(k, s.c.Service)
}

// token returns the token to join with, or a sentence why there is none.
func (s *Source) token() (string, error) {
	if s.c.TokenFile == "" {
		if s.c.Token == "" {
			return "", fatalf("remote: %w, and no token is given; make one with `parrel token create --service %s`", s.unusable(s.current()), s.c.Service)
		}
		return s.c.Token, nil
	}
	data, err := os.ReadFile(s.c.TokenFile)
	if err != nil {
		return "", fatalf("remote: token file: %w; write there what `parrel token create --service %s` prints", err, s.c.Service)
	}
	return strings.TrimSpace(string(data)), nil
}
