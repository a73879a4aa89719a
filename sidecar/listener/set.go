package listener

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/live"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/overload"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Deps is what a Set works with.
type Deps struct {
	Net      netio.Net
	Identity mtls.Source // presented by chains with TLS
	Live     *live.Index // nil: one of its own
	Record   telemetry.Recorder
	Log      *slog.Logger
	Now      func() time.Time // nil: time.Now
	Limits   Limits
	// Overload admits connections; nil: as many as come.
	Overload *overload.Manager
	// OwnPort says whether a capture listener of this process, in whatever Set,
	// has the port: redirected connections to one go round in circles. nil: only
	// the listener's own is known.
	OwnPort func(port uint16) bool
}

// Limits of a Set; zero fields take the defaults.
type Limits struct {
	Sniff     time.Duration // whole ClientHello; default 10 s
	Handshake time.Duration // where the chain says nothing; default 10 s
	Hello     int           // bytes of a ClientHello; default 64 KiB
	// Removed bounds how long connections of a removed listener may go on;
	// default 10 min, Envoy's --drain-time-s.
	Removed time.Duration
	// Retry is the pause before a socket that could not be opened is tried
	// again; default 1 s.
	Retry time.Duration
}

// Set is the open sockets of one workload. Its methods are safe for concurrent
// use.
type Set struct {
	Deps                      // read-only after NewSet
	ctx    context.Context    // handlers'; ends with Run
	stop   context.CancelFunc // ends ctx
	turn   chan struct{}      // whoever holds it changes sockets
	wg     sync.WaitGroup     // accept loops and connections, those without a goroutine too
	idle   netio.Idler        // connections that their engines left idle
	serial atomic.Uint64      // of connections
	unshed func()             // takes shed off Overload

	mu     sync.Mutex
	open   map[string]*socket         // guarded by mu: by listener name
	gone   map[*socket]struct{}       // guarded by mu: removed, with connections left
	held   map[string]netio.Listener  // guarded by mu: opened early, see Hold
	failed map[string]failure         // guarded by mu: could not be opened
	barred map[string]failure         // guarded by mu: not to be opened, see Bar; err is nil
	bars   map[resource.Direction]bar // guarded by mu
	closed bool                       // guarded by mu: Run or Drain ended it all
}

// bar is why a direction's listeners are not opened.
type bar struct{ early, drained bool }

type failure struct {
	version string
	config  Config
	err     error
}

// NewSet makes an empty Set. Nothing of it lives before Update, and all of it
// has ended when Run returned.
func NewSet(d Deps) *Set {
	if d.Live == nil {
		d.Live = live.New(live.Config{})
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	l := &d.Limits
	l.Sniff = cmp.Or(l.Sniff, 10*time.Second)
	l.Handshake = cmp.Or(l.Handshake, 10*time.Second)
	l.Hello = cmp.Or(l.Hello, 64<<10)
	l.Removed = cmp.Or(l.Removed, 10*time.Minute)
	l.Retry = cmp.Or(l.Retry, time.Second)
	s := &Set{
		Deps:   d,
		turn:   make(chan struct{}, 1),
		open:   make(map[string]*socket),
		gone:   make(map[*socket]struct{}),
		held:   make(map[string]netio.Listener),
		failed: make(map[string]failure),
		barred: make(map[string]failure),
		bars:   make(map[resource.Direction]bar),
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.turn <- struct{}{}
	s.unshed = d.Overload.OnShed(s.shed)
	return s
}

// Hold opens a socket before there is a listener for it, and does not accept:
// who connects waits in the kernel's queue until Update brings a listener with
// this address (or one with its port: the held socket then makes room). It
// returns the address with the port that the kernel chose.
func (s *Set) Hold(ctx context.Context, a resource.Address) (resource.Address, error) {
	network, address := place(a)
	ln, err := s.Net.Listen(ctx, network, address)
	if err != nil {
		return a, fmt.Errorf("listener: hold %s: %w", address, err)
	}
	if a.Path == "" && a.Port == 0 {
		_, port, err := net.SplitHostPort(ln.Addr().String())
		if err != nil {
			_ = ln.Close()
			return a, fmt.Errorf("listener: hold %s: %w", address, err)
		}
		p, _ := strconv.ParseUint(port, 10, 16)
		a.Port = uint16(p)
	}
	_, address = place(a)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = ln.Close()
		return a, net.ErrClosed
	}
	s.held[address] = ln
	return a, nil
}

// Update brings the listeners to what is given. Those that stay keep their
// socket, and connections accepted from now on see the new configuration; new
// ones are opened; removed ones stop accepting and their connections drain. An
// error is about one listener: it is tried again until it works or another
// Update replaces it, and the others go on.
func (s *Set) Update(version string, configs []Config) (errs []error) {
	<-s.turn
	defer func() { s.turn <- struct{}{} }()

	wanted := make(map[string]Config, len(configs))
	for _, c := range configs {
		if c.Resource.Address != (resource.Address{}) { // an API listener has no socket
			wanted[c.Resource.Name] = c
		}
	}
	var leave []*socket
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	clear(s.failed)
	clear(s.barred)
	for name, so := range s.open {
		if _, ok := wanted[name]; !ok {
			delete(s.open, name)
			s.gone[so] = struct{}{}
			leave = append(leave, so)
		}
	}
	s.mu.Unlock()
	for _, so := range leave { // first: their addresses may be wanted again
		s.retire(so, "listener removed")
	}
	for _, name := range sortedKeys(wanted) {
		if err := s.apply(version, wanted[name]); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// apply brings one listener to its configuration. Called with the turn.
func (s *Set) apply(version string, c Config) error {
	name := c.Resource.Name
	s.mu.Lock()
	old := s.open[name]
	s.mu.Unlock()
	if old != nil && old.address == c.address() {
		old.active.Store(newActive(s, version, c, old.active.Load()))
		return nil
	}
	if s.isBarred(version, c) {
		return nil
	}
	ln, twin, err := s.listenBoth(c)
	if err != nil {
		_, address := place(c.address())
		err = fmt.Errorf("listener: %s: cannot listen on %s (it is tried again every %s; is another process using the port?): %w",
			name, address, s.Limits.Retry, err)
		s.mu.Lock()
		s.failed[name] = failure{version, c, err}
		s.mu.Unlock()
		return err
	}
	so := &socket{set: s, name: name, address: c.address(), ln: ln, twin: twin, port: addrPort(ln.Addr()).Port(), conns: make(map[*tracked]struct{})}
	so.quiet.summary = so.leftOut
	var before *active
	if old != nil {
		before = old.active.Load()
	}
	so.active.Store(newActive(s, version, c, before))
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		so.close()
		return nil
	}
	delete(s.failed, name)
	s.open[name] = so
	if old != nil {
		s.gone[old] = struct{}{}
	}
	s.wg.Go(func() { so.accept(ln) })
	if twin != nil {
		s.wg.Go(func() { so.accept(twin) })
	}
	s.mu.Unlock()
	if old != nil {
		s.retire(old, "listener moved to another address")
	}
	s.Log.Info("listener: open", "listener", name, "address", ln.Addr().String(), "direction", c.Resource.Direction.String())
	return nil
}

// Bar keeps listeners of a direction closed that are not open yet, until Unbar:
// who connects meanwhile is refused, and goes elsewhere.
func (s *Set) Bar(d resource.Direction) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.bars[d]
	b.early = true
	s.bars[d] = b
}

// Unbar opens them, unless the direction was drained meanwhile. Errors are
// those of Update.
func (s *Set) Unbar(d resource.Direction) (errs []error) {
	<-s.turn
	defer func() { s.turn <- struct{}{} }()
	s.mu.Lock()
	b := s.bars[d]
	b.early = false
	s.bars[d] = b
	var open []failure
	for _, name := range sortedKeys(s.barred) {
		if f := s.barred[name]; f.config.Resource.Direction == d && !b.drained && !s.closed {
			open = append(open, f)
			delete(s.barred, name)
		}
	}
	s.mu.Unlock()
	for _, f := range open {
		if err := s.apply(f.version, f.config); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// Barred names the listeners that are closed because of Bar.
func (s *Set) Barred() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range sortedKeys(s.barred) {
		if s.bars[s.barred[name].config.Resource.Direction].early {
			names = append(names, name)
		}
	}
	return names
}

// isBarred says whether a listener is not to be opened, and remembers it then.
func (s *Set) isBarred(version string, c Config) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.bars[c.Resource.Direction]
	if !b.early && !b.drained {
		return false
	}
	delete(s.failed, c.Resource.Name)
	s.barred[c.Resource.Name] = failure{version: version, config: c}
	return true
}

// listenBoth opens a listener's socket. A capture listener on 127.0.0.1 has a twin
// on [::1], where the kernel sends what was redirected from an IPv6 address; a
// host without IPv6 has none.
func (s *Set) listenBoth(c Config) (ln, twin netio.Listener, err error) {
	a := c.address()
	ln, err = s.listen(a)
	if err != nil || !c.Resource.UseOriginalDst || a.Host != "127.0.0.1" {
		return ln, nil, err
	}
	twin, err = s.listen(resource.Address{Host: "::1", Port: addrPort(ln.Addr()).Port()})
	switch {
	case err == nil:
		return ln, twin, nil
	case errors.Is(err, syscall.EADDRINUSE), errors.Is(err, syscall.EACCES):
		_ = ln.Close()
		return nil, nil, err
	}
	s.Log.Debug("listener: no IPv6 on this host: redirected connections are IPv4's only", "listener", c.Resource.Name, "err", err)
	return ln, nil, nil
}

// listen opens a socket, or takes the one that was held for it.
func (s *Set) listen(a resource.Address) (netio.Listener, error) {
	network, address := place(a)
	s.mu.Lock()
	ln := s.held[address]
	delete(s.held, address)
	var inTheWay []netio.Listener
	if ln == nil && a.Path == "" {
		for other, h := range s.held {
			if _, port, _ := net.SplitHostPort(other); port == strconv.Itoa(int(a.Port)) {
				inTheWay = append(inTheWay, h)
				delete(s.held, other)
			}
		}
	}
	s.mu.Unlock()
	for _, h := range inTheWay {
		_ = h.Close()
	}
	if ln != nil {
		return ln, nil
	}
	return s.Net.Listen(s.ctx, network, address)
}

// retire ends a socket: nothing new, connections drain. Its goroutine leaves
// gone when the last connection has ended or Limits.Removed has passed.
func (s *Set) retire(so *socket, reason string) {
	so.active.Store(nil)
	so.close()
	so.drain(reason)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.wg.Go(func() {
		ctx, cancel := context.WithTimeout(s.ctx, s.Limits.Removed)
		defer cancel()
		so.finish(ctx)
		s.mu.Lock()
		delete(s.gone, so)
		s.mu.Unlock()
	})
	s.Log.Info("listener: closed; its connections drain", "listener", so.name, "reason", reason)
}

// Run keeps the Set alive until ctx ends, then closes every socket and every
// connection and returns when all of that is over. Sockets that could not be
// opened are tried again. Call [Set.Drain] before for a soft end.
func (s *Set) Run(ctx context.Context) error {
	tick := time.NewTicker(s.Limits.Retry)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			s.retry()
		}
	}
	<-s.turn
	s.mu.Lock()
	s.closed = true
	all := s.socketsLocked()
	held := s.held
	s.held = nil
	s.mu.Unlock()
	s.turn <- struct{}{}
	s.stop()
	for _, h := range held {
		_ = h.Close()
	}
	for _, so := range all {
		so.close()
		so.cut(telemetry.DrainTimeout, "the sidecar ends")
	}
	s.wg.Wait()
	s.idle.Close()
	s.unshed()
	for _, so := range all {
		so.quiet.end()
	}
	return ctx.Err()
}

func (s *Set) retry() {
	s.mu.Lock()
	none := len(s.failed) == 0
	s.mu.Unlock()
	if none {
		return
	}
	<-s.turn
	defer func() { s.turn <- struct{}{} }()
	s.mu.Lock()
	again := make([]failure, 0, len(s.failed))
	for _, name := range sortedKeys(s.failed) {
		again = append(again, s.failed[name])
	}
	s.mu.Unlock()
	for _, f := range again {
		if err := s.apply(f.version, f.config); err != nil {
			s.Log.Debug("listener: still cannot listen", "err", err)
		}
	}
}

// Drain stops accepting on the listeners of the given directions (none given:
// all), asks their connections to end after the work in hand, and waits for
// that until ctx ends; what is then left is closed, with an error that says how
// many there were. Listeners of these directions are not opened any more.
func (s *Set) Drain(ctx context.Context, directions ...resource.Direction) error {
	sockets := s.stopAccepting(directions)
	for _, so := range sockets {
		so.drain("the sidecar drains")
	}
	left := 0
	for _, so := range sockets {
		left += so.finish(ctx)
	}
	if left > 0 {
		return fmt.Errorf("listener: drain: %d connections were closed before they had ended: %w", left, context.Cause(ctx))
	}
	return nil
}

func (s *Set) stopAccepting(directions []resource.Direction) []*socket {
	<-s.turn
	defer func() { s.turn <- struct{}{} }()
	s.mu.Lock()
	all := len(directions) == 0
	if all {
		directions = []resource.Direction{resource.DirectionUnspecified, resource.Inbound, resource.Outbound}
	}
	for _, d := range directions {
		s.bars[d] = bar{drained: true}
	}
	for name, f := range s.failed { // they would be tried again
		if s.bars[f.config.Resource.Direction].drained {
			delete(s.failed, name)
		}
	}
	var out []*socket
	for _, so := range s.open {
		if a := so.active.Load(); all || a != nil && slices.Contains(directions, a.config.Resource.Direction) {
			out = append(out, so)
		}
	}
	for so := range s.gone {
		if all {
			out = append(out, so)
		}
	}
	s.mu.Unlock()
	for _, so := range out {
		so.stopped.Store(true)
		so.close()
	}
	return out
}

// Listening says whether every listener of the last Update has its socket; if
// not, the error names those that have not.
func (s *Set) Listening() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, name := range sortedKeys(s.failed) {
		errs = append(errs, s.failed[name].err)
	}
	return errors.Join(errs...)
}

// Status is one listener, for admin.
type Status struct {
	Name      string
	Address   string // where it really listens
	Direction resource.Direction
	Version   string
	Draining  bool
	Err       string // why it is not open
	UDP       bool   // it answers DNS; Counts are none
	Counts    Counts
}

// Status lists the listeners by name.
func (s *Set) Status() []Status {
	s.mu.Lock()
	all := s.socketsLocked()
	var out []Status
	for name, f := range s.failed {
		_, address := place(f.config.address())
		out = append(out, Status{Name: name, Address: address, Direction: f.config.Resource.Direction, Version: f.version, Err: f.err.Error()})
	}
	s.mu.Unlock()
	for _, so := range all {
		st := Status{Name: so.name, Address: so.ln.Addr().String(), Draining: true, Counts: so.counters.read()}
		if a := so.active.Load(); a != nil {
			st.Direction, st.Version, st.Draining = a.config.Resource.Direction, a.version, so.stopped.Load()
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b Status) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Address, b.Address))
	})
	return out
}

func (s *Set) socketsLocked() []*socket {
	out := make([]*socket, 0, len(s.open)+len(s.gone))
	for _, so := range s.open {
		out = append(out, so)
	}
	for so := range s.gone {
		out = append(out, so)
	}
	return out
}

func place(a resource.Address) (network, address string) {
	if a.Path != "" {
		return "unix", a.Path
	}
	return "tcp", net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port)))
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
