package sidecar

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// claimant is a workload and what it takes of inbound connections.
type claimant struct {
	workload *workload
	sockets  []netip.AddrPort // of its inbound capture listeners
	ports    []uint16         // the destinations that its chains ask for
	rest     bool             // it takes others too
}

// claim takes in what an inbound capture listener takes.
func (c *claimant) claim(l *resource.Listener) {
	c.sockets = append(c.sockets, addrPortOf(l.Address))
	c.rest = c.rest || l.Default != nil
	for i := range l.Chains {
		if p := l.Chains[i].Match.DestinationPort; p == 0 {
			c.rest = true
		} else if !slices.Contains(c.ports, p) {
			c.ports = append(c.ports, p)
		}
	}
	slices.Sort(c.ports)
}

// claimTable says whose an inbound connection is. Immutable.
type claimTable struct {
	ports map[uint16][]claimed
	rest  []string // workloads that take what nobody claims
}

type claimed struct {
	name string
	at   netip.Addr // the service's address, where it has one
}

func newClaimTable(claims map[string]claimant) *claimTable {
	t := &claimTable{ports: map[uint16][]claimed{}}
	for _, name := range slices.Sorted(maps.Keys(claims)) {
		c := claims[name]
		var at netip.Addr
		if m := c.workload.local.Load(); m != nil {
			at, _ = netip.ParseAddr(m.Address)
		}
		for _, p := range c.ports {
			t.ports[p] = append(t.ports[p], claimed{name, at.Unmap()})
		}
		if c.rest && len(c.sockets) > 0 {
			t.rest = append(t.rest, name)
		}
	}
	return t
}

// whose says to which workload a connection goes. Where several services have
// one port, their addresses decide. The error is for the log.
func (t *claimTable) whose(dst netip.AddrPort) (string, error) {
	of := t.ports[dst.Port()]
	if len(of) == 0 {
		if len(t.rest) == 1 {
			return t.rest[0], nil
		}
		return "", fmt.Errorf("no service of this host has the port of %s", dst)
	}
	if len(of) == 1 {
		return of[0].name, nil
	}
	var names []string
	found := ""
	for _, c := range of {
		names = append(names, c.name)
		if c.at == dst.Addr().Unmap() {
			if found != "" {
				found = ""
				break
			}
			found = c.name
		}
	}
	if found == "" {
		return "", fmt.Errorf("several services of this host have the port of %s, and their addresses do not say which is meant: %s", dst, strings.Join(names, ", "))
	}
	return found, nil
}

// sharedQueue is how many connections wait for a workload to accept them.
const sharedQueue = 128

// shared is one inbound capture socket of several workloads.
type shared struct {
	c       *captures
	ln      netio.Listener
	address string
	port    uint16
	table   atomic.Pointer[claimTable]
	members map[string]*member // guarded by captures.mu
	closed  chan struct{}
	quiet   atomic.Int64 // second of the last log line
}

// member is the listener that a workload's Set has of a shared socket.
type member struct {
	s     *shared
	name  string
	queue chan netio.Conn
	done  chan struct{}
	once  sync.Once
}

var _ netio.Listener = (*member)(nil)

// join gives a workload its part of a shared socket, which is opened for the
// first of them and closed with the last.
func (c *captures) join(ctx context.Context, name, address string) (netio.Listener, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sockets[address]
	if s == nil {
		ln, err := c.network.Listen(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		s = &shared{c: c, ln: ln, address: address, members: map[string]*member{}, closed: make(chan struct{})}
		if ap, err := netip.ParseAddrPort(address); err == nil {
			s.port = ap.Port()
		}
		s.table.Store(newClaimTable(c.claims))
		c.sockets[address] = s
		c.wg.Go(s.accept)
	}
	if s.members[name] != nil {
		return nil, fmt.Errorf("sidecar: %s is open for %s already", address, name)
	}
	m := &member{s: s, name: name, queue: make(chan netio.Conn, sharedQueue), done: make(chan struct{})}
	s.members[name] = m
	return m, nil
}

func (s *shared) accept() {
	for pause := time.Duration(0); ; {
		conn, err := s.ln.AcceptConn()
		switch {
		case err == nil:
			pause = 0
			s.give(conn)
		case errors.Is(err, net.ErrClosed):
			return
		default:
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.c.log.Warn("sidecar: cannot accept; trying again after a pause", telemetry.KeyAddress, s.address, telemetry.KeyError, err.Error())
			select {
			case <-time.After(pause):
			case <-s.closed:
				return
			}
		}
	}
}

// give hands a connection to the workload that it is for, which decides about it.
// It never blocks: one workload's flood is not another's.
func (s *shared) give(conn netio.Conn) {
	dst, ok := conn.OriginalDst()
	if local, err := netip.ParseAddrPort(conn.LocalAddr().String()); !ok && err == nil && local.Port() != s.port {
		dst, ok = local, true // by TPROXY
	}
	if !ok {
		s.refuse(conn, dst, telemetry.NotRedirected, "the connection was made to the capture port "+s.address+" itself")
		return
	}
	name, err := s.table.Load().whose(dst)
	if err != nil {
		s.refuse(conn, dst, telemetry.NoFilterChain, err.Error())
		return
	}
	s.c.mu.Lock()
	m := s.members[name]
	s.c.mu.Unlock()
	if m == nil {
		s.refuse(conn, dst, telemetry.NoFilterChain, "the listener of "+name+" is not open")
		return
	}
	select {
	case m.queue <- conn:
		select {
		case <-m.done: // closed meanwhile, and nobody takes it out any more
			m.empty()
		default:
		}
	default:
		s.refuse(conn, dst, telemetry.ConnectionLimit, name+" does not accept as fast as connections come")
	}
}

// refuse resets a connection that is nobody's.
func (s *shared) refuse(conn netio.Conn, dst netip.AddrPort, code telemetry.Code, detail string) {
	src, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
	_ = conn.Reset()
	now := time.Now()
	s.c.record.ConnClosed(&telemetry.Record{Start: now, Inbound: true, Listener: s.address, DownstreamRemote: src, DownstreamLocal: dst,
		Protocol: "tcp", GRPCStatus: -1, Code: code, Detail: detail})
	if last := s.quiet.Load(); now.Unix() != last && s.quiet.CompareAndSwap(last, now.Unix()) { // one line a second
		s.c.log.Warn("sidecar: connection refused", telemetry.KeyAddress, s.address, "source", src.String(), telemetry.KeyCode, code.String(), telemetry.KeyError, detail)
	}
}

func (m *member) Accept() (net.Conn, error) { return m.AcceptConn() }

func (m *member) AcceptConn() (netio.Conn, error) {
	select {
	case c := <-m.queue:
		return c, nil
	case <-m.done:
		return nil, fmt.Errorf("sidecar: accept %s: %w", m.s.address, net.ErrClosed)
	}
}

func (m *member) Addr() net.Addr { return m.s.ln.Addr() }

// Close implements net.Listener: connections not yet accepted are reset.
func (m *member) Close() error {
	m.once.Do(func() {
		c := m.s.c
		c.mu.Lock()
		delete(m.s.members, m.name)
		if len(m.s.members) == 0 {
			delete(c.sockets, m.s.address)
			close(m.s.closed)
			_ = m.s.ln.Close()
		}
		c.mu.Unlock()
		close(m.done)
		m.empty()
	})
	return nil
}

func (m *member) empty() {
	for {
		select {
		case c := <-m.queue:
			_ = c.Reset()
		default:
			return
		}
	}
}
