package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Config of a Set; zero fields take the defaults.
type Config struct {
	ResolvConf string  // default /etc/resolv.conf
	Rate       float64 // own answers a second to one address; default 10,000
	PerClient  int     // queries of one UDP socket that wait for resolvers; default 128
	Pipeline   int     // queries in hand of one TCP connection; default 32
	Conns      int     // TCP connections of a Set's clients; default 256
	// Message is the longest message that is taken by TCP; default 16 KiB.
	Message int
	// Idle ends a TCP connection that sends nothing, or does not read, for this
	// long; default 10 s.
	Idle  time.Duration
	Retry time.Duration // pause before a socket is tried again; default 1 s
}

// Deps is what a Set works with.
type Deps struct {
	Net   netio.Net
	Log   *slog.Logger         // nil: none
	Rand  func() uint64        // safe for concurrent use; nil: math/rand/v2
	Error func(telemetry.Code) // told of the mesh's own errors; nil: nobody is
}

// Set is the DNS servers of a process. Workloads that bring the same address
// share a server, which answers with the union of their names. A name that is in
// no table is forwarded; where the resolver says that it does not exist, and it
// is a name of the table with a search domain of the host's resolv.conf behind
// it ("api.corp.example"), the table answers, unless the client asked for DNSSEC
// (DO), which no answer of the mesh's would bear. Safe for concurrent use.
type Set struct {
	Config // read-only after NewSet
	Deps   // read-only after NewSet
	counts *counts
	host   *host
	turns  atomic.Uint64
	said   atomic.Int64 // when a failure was logged last, Unix nanoseconds
	ctx    context.Context
	stop   context.CancelFunc

	turn    chan struct{}                   // whoever holds it changes servers
	owners  map[string][]*resource.Listener // with the turn: by workload
	servers map[netip.AddrPort]*server      // with the turn: open ones
	closed  bool                            // with the turn

	mu     sync.Mutex
	status map[netip.AddrPort]error // guarded by mu: wanted addresses; nil: open
	wanted map[string][]want        // guarded by mu: by workload
	absent map[netip.AddrPort]bool  // guarded by mu: the host has no such address
	mine   atomic.Pointer[map[netip.AddrPort]bool]
}

// want is an address that a workload's listener has.
type want struct {
	listener string
	address  netip.AddrPort
	more     bool // an additional one
}

// NewSet makes an empty Set. All of it has ended when Run returned.
func NewSet(c Config, d Deps) *Set {
	c.ResolvConf = cmp.Or(c.ResolvConf, "/etc/resolv.conf")
	c.Rate, c.PerClient = cmp.Or(c.Rate, 10_000), cmp.Or(c.PerClient, 128)
	c.Pipeline, c.Conns = cmp.Or(c.Pipeline, 32), cmp.Or(c.Conns, 256)
	c.Message, c.Idle, c.Retry = cmp.Or(c.Message, 16<<10), cmp.Or(c.Idle, 10*time.Second), cmp.Or(c.Retry, time.Second)
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Rand == nil {
		d.Rand = rand.Uint64
	}
	if d.Error == nil {
		d.Error = func(telemetry.Code) {}
	}
	s := &Set{Config: c, Deps: d, counts: newCounts(), host: &host{path: c.ResolvConf, log: d.Log}, turn: make(chan struct{}, 1),
		owners: map[string][]*resource.Listener{}, servers: map[netip.AddrPort]*server{},
		status: map[netip.AddrPort]error{}, wanted: map[string][]want{}, absent: map[netip.AddrPort]bool{}}
	s.mine.Store(&map[netip.AddrPort]bool{})
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.turn <- struct{}{}
	return s
}

// Collector gives the Set's metrics.
func (s *Set) Collector() prometheus.Collector { return s.counts }

// Update brings a workload's DNS listeners to what is given; none takes them
// away. Servers that stay keep their sockets. An error is about one address: it
// is tried again until it works or another Update replaces it.
func (s *Set) Update(workload string, listeners []*resource.Listener) []error {
	<-s.turn
	defer func() { s.turn <- struct{}{} }()
	if s.closed || slices.Equal(s.owners[workload], listeners) {
		return nil
	}
	if len(listeners) == 0 {
		delete(s.owners, workload)
	} else {
		s.owners[workload] = listeners
	}
	s.mu.Lock()
	delete(s.wanted, workload)
	for _, l := range listeners {
		s.wanted[workload] = append(s.wanted[workload], wants(l)...)
	}
	s.mu.Unlock()
	return s.apply()
}

func wants(l *resource.Listener) []want {
	var out []want
	for i, a := range append([]resource.Address{l.Address}, l.Additional...) {
		if ip, err := netip.ParseAddr(a.Host); err == nil {
			out = append(out, want{l.Name, netip.AddrPortFrom(ip, a.Port), i > 0})
		}
	}
	return out
}

// apply opens, changes and closes servers. Called with the turn.
func (s *Set) apply() (errs []error) {
	filters, optional := map[netip.AddrPort][]*resource.DNSFilter{}, map[netip.AddrPort]bool{}
	names := map[string]bool{}
	for _, w := range sortedKeys(s.owners) {
		for _, l := range s.owners[w] {
			for _, at := range wants(l) {
				if _, had := filters[at.address]; !had || !at.more {
					optional[at.address] = at.more
				}
				filters[at.address] = append(filters[at.address], l.DNS)
			}
			for i := range l.DNS.Domains {
				names[l.DNS.Domains[i].Name] = true
			}
		}
	}
	s.counts.names.Store(int64(len(names)))
	mine := make(map[netip.AddrPort]bool, len(filters))
	for a := range filters {
		mine[a] = true
	}
	s.mine.Store(&mine)
	for a, old := range s.servers {
		if filters[a] == nil {
			delete(s.servers, a)
			old.close()
			s.Log.Info("dns: closed", telemetry.KeyAddress, a.String())
		}
	}
	status := make(map[netip.AddrPort]error, len(filters))
	tables := map[string]*table{}
	for a, fs := range filters {
		key := fmt.Sprintf("%p", fs) // addresses of one listener have one table
		if len(fs) == 1 {
			key = fmt.Sprintf("%p", fs[0])
		}
		if tables[key] == nil {
			tables[key] = union(fs)
		}
		if err := s.serve(a, s.activeOf(fs, tables[key]), optional[a]); err != nil {
			status[a] = err
			errs = append(errs, err)
			continue
		}
		status[a] = nil
	}
	s.mu.Lock()
	s.status = status
	s.mu.Unlock()
	return errs
}

// activeOf makes what an address's filters say together.
func (s *Set) activeOf(fs []*resource.DNSFilter, t *table) *active {
	a := &active{table: t, host: s.host, turn: &s.turns, avoid: func(x netip.AddrPort) bool { return (*s.mine.Load())[x] }}
	for _, f := range fs {
		a.timeout = max(a.timeout, cmp.Or(f.Timeout, defaultTimeout))
		a.pending = max(a.pending, int64(min(cmp.Or(f.MaxPending, resource.DNSPending), 1<<20)))
		for _, r := range f.Resolvers {
			ip, err := netip.ParseAddr(r.Host)
			if at := netip.AddrPortFrom(ip.Unmap(), r.Port); err == nil && !slices.Contains(a.servers, at) {
				a.servers = append(a.servers, at)
			}
		}
	}
	return a
}

// serve opens the server of an address, or gives it what is new. An optional
// address that the host does not have is left out.
func (s *Set) serve(at netip.AddrPort, act *active, optional bool) error {
	if old := s.servers[at]; old != nil {
		old.active.Store(act)
		return nil
	}
	n := &server{set: s, log: s.Log, address: at, limiter: newLimiter(s.Rate), flying: map[uint32]*udpAttempt{}, clients: map[netip.AddrPort]int{}, dialling: map[netip.AddrPort]bool{}}
	n.active.Store(act)
	err := n.open(s.ctx)
	if err == nil {
		s.servers[at] = n
		s.mu.Lock()
		delete(s.absent, at)
		s.mu.Unlock()
		s.Log.Info("dns: open", telemetry.KeyAddress, n.address.String(), telemetry.KeyCount, len(act.table.exact))
		return nil
	}
	missing := optional && (errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT))
	s.mu.Lock()
	said := s.absent[at]
	s.absent[at] = missing
	s.mu.Unlock()
	if missing {
		if !said {
			s.Log.Info("dns: an additional address is left out: this host does not have it", telemetry.KeyAddress, at.String())
		}
		return nil
	}
	return fmt.Errorf("%w (it is tried again every %s; is another process using the port?)", err, s.Retry)
}

// Run keeps the Set alive until ctx ends, then closes every server and returns
// when all of it is over. Sockets that could not be opened are tried again.
func (s *Set) Run(ctx context.Context) error {
	tick := time.NewTicker(s.Retry)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			if s.Listening("") != nil {
				<-s.turn
				for _, err := range s.apply() {
					s.Log.Debug("dns: still cannot listen", telemetry.KeyError, err.Error())
				}
				s.turn <- struct{}{}
			}
		}
	}
	<-s.turn
	defer func() { s.turn <- struct{}{} }()
	s.closed = true
	s.stop()
	for _, a := range s.servers {
		a.close()
	}
	clear(s.servers)
	return ctx.Err()
}

// Listening says whether every address of a workload's listeners is open; if not,
// why. The workload "" is all of them.
func (s *Set) Listening(workload string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	seen := map[netip.AddrPort]bool{}
	for w, all := range s.wanted {
		if workload != "" && w != workload {
			continue
		}
		for _, at := range all {
			if err := s.status[at.address]; err != nil && !seen[at.address] {
				seen[at.address] = true
				errs = append(errs, fmt.Errorf("%s: %w", at.listener, err))
			}
		}
	}
	return errors.Join(errs...)
}

// Status is one address of a workload's DNS listener, for admin.
type Status struct {
	Listener, Address string
	Err               string // why it is not open
}

// Status lists a workload's addresses, those that the host does not have left out.
func (s *Set) Status(workload string) []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Status
	for _, at := range s.wanted[workload] {
		if s.absent[at.address] {
			continue
		}
		st := Status{Listener: at.listener, Address: at.address.String()}
		if err := s.status[at.address]; err != nil {
			st.Err = err.Error()
		}
		out = append(out, st)
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
