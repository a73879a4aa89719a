package netio

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// Numbers of the memory network, like those of a kernel.
const (
	memBuffer     = 64 << 10 // bytes on their way or unread, per direction
	memBacklog    = 128      // connections not yet accepted, per listener
	memDeadAfter  = 25 * time.Second
	memSynTimeout = 127 * time.Second
	memFirstPort  = 32768
)

// Memory is a network inside the process: hosts with addresses, whose
// connections behave like TCP's (bounded buffers, half-close, RST, a backlog,
// refusal, silence) and whose every wait is a durable block under
// testing/synctest. Create it inside the bubble. Safe for concurrent use.
type Memory struct {
	mu      sync.Mutex
	hosts   map[netip.Addr]*Host
	all     []*Host
	latency time.Duration
	delays  map[[2]*Host]time.Duration
	cut     map[[2]*Host]bool
	pairs   map[*pair]struct{} // open connections
}

// NewMemory returns a network without hosts and without latency.
func NewMemory() *Memory {
	return &Memory{
		hosts:  map[netip.Addr]*Host{},
		delays: map[[2]*Host]time.Duration{},
		cut:    map[[2]*Host]bool{},
		pairs:  map[*pair]struct{}{},
	}
}

// Host is one machine on a Memory network and the Net of what runs on it. Its
// loopback addresses and Unix sockets are its own.
type Host struct {
	m     *Memory
	name  string
	addrs []netip.Addr

	// Guarded by m.mu.
	unplugged bool

	nextPort  uint16
	listeners map[memKey]*memListener
	packets   map[memKey]*memPacket
	redirect  func(netip.AddrPort) (netip.AddrPort, bool)
}

// memKey names a bound socket: an address (any for unspecified) or a path.
type memKey struct {
	addr netip.AddrPort
	path string
}

var _ Net = (*Host)(nil)

// Host adds a host. ips are its addresses beside loopback; it panics on one
// that is malformed or taken, since only tests build networks.
func (m *Memory) Host(name string, ips ...string) *Host {
	h := &Host{m: m, name: name, nextPort: memFirstPort,
		listeners: map[memKey]*memListener{}, packets: map[memKey]*memPacket{}}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range ips {
		a := netip.MustParseAddr(s)
		if m.hosts[a] != nil {
			panic(fmt.Sprintf("netio: %s belongs to host %s already", a, m.hosts[a].name))
		}
		m.hosts[a] = h
		h.addrs = append(h.addrs, a)
	}
	m.all = append(m.all, h)
	return h
}

// Name is the name given to Memory.Host.
func (h *Host) Name() string { return h.name }

// Addr is the host's first address, 127.0.0.1 where it has none.
func (h *Host) Addr() netip.Addr {
	if len(h.addrs) == 0 {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return h.addrs[0]
}

// SetLatency sets the one-way delay between any two different hosts. Bytes
// already on their way keep theirs.
func (m *Memory) SetLatency(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.latency = d
}

// SetLatencyBetween sets the one-way delay between two hosts, in both
// directions; a == b sets that of the host's loopback.
func (m *Memory) SetLatencyBetween(a, b *Host, d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.delays[[2]*Host{a, b}], m.delays[[2]*Host{b, a}] = d, d
}

// Partition makes everything between a and b vanish silently until Heal. As
// with TCP, bytes under way arrive after healing; connections that stay cut off
// for longer than a kernel's keep-alive would bear fail with ETIMEDOUT.
func (m *Memory) Partition(a, b *Host) { m.setCut(a, b, true) }

// Heal ends a Partition.
func (m *Memory) Heal(a, b *Host) { m.setCut(a, b, false) }

func (m *Memory) setCut(a, b *Host, cut bool) {
	m.mu.Lock()
	m.cut[[2]*Host{a, b}], m.cut[[2]*Host{b, a}] = cut, cut
	touched := m.between(a, b)
	m.mu.Unlock()
	for _, p := range touched {
		p.setCut(m.severed(p.host[0], p.host[1]))
	}
}

// ResetBetween ends every connection between a and b as a middlebox would: both
// ends see ECONNRESET. It returns how many there were.
func (m *Memory) ResetBetween(a, b *Host) int {
	m.mu.Lock()
	touched := m.between(a, b)
	m.mu.Unlock()
	for _, p := range touched {
		p.fail(syscall.ECONNRESET)
	}
	return len(touched)
}

// Open is the number of connections of the host that are not closed by both
// ends.
func (h *Host) Open() int {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	return len(h.m.between(h, nil))
}

// Unplug cuts the host off from every other, silently; its loopback works.
func (h *Host) Unplug() { h.setPlug(true) }

// Plug ends Unplug.
func (h *Host) Plug() { h.setPlug(false) }

func (h *Host) setPlug(out bool) {
	h.m.mu.Lock()
	h.unplugged = out
	touched := h.m.between(h, nil)
	h.m.mu.Unlock()
	for _, p := range touched {
		p.setCut(h.m.severed(p.host[0], p.host[1]))
	}
}

// Kill ends everything on the host as the death of its processes does: peers
// see an RST, its listeners are gone, and new connections are refused until
// something listens again.
func (h *Host) Kill() {
	h.m.mu.Lock()
	touched := h.m.between(h, nil)
	var ls []*memListener
	for _, l := range h.listeners {
		ls = append(ls, l)
	}
	h.m.mu.Unlock()
	for _, l := range ls {
		l.Close()
	}
	for _, p := range touched {
		p.fail(syscall.ECONNRESET)
	}
}

// Redirect makes f answer where the host's own outgoing connections really go,
// as netfilter's REDIRECT does: the acceptor learns the first destination by
// OriginalDst. A nil f redirects nothing.
func (h *Host) Redirect(f func(dst netip.AddrPort) (to netip.AddrPort, ok bool)) {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	h.redirect = f
}

// As is the host's network as another user of the host sees it: what it dials is
// redirected by f, or, where f is nil, not at all.
func (h *Host) As(f func(dst netip.AddrPort) (to netip.AddrPort, ok bool)) Net { return &memUser{h, f} }

type memUser struct {
	*Host
	to func(netip.AddrPort) (netip.AddrPort, bool)
}

func (u *memUser) Dial(ctx context.Context, network, address string) (Conn, error) {
	return u.Host.dialed(ctx, network, address, u.to)
}

// between returns the open connections between a and b; a nil b is anyone. The
// caller holds m.mu.
func (m *Memory) between(a, b *Host) []*pair {
	var out []*pair
	for p := range m.pairs {
		x, y := p.host[0], p.host[1]
		if (x == a && (b == nil || y == b)) || (y == a && (b == nil || x == b)) {
			out = append(out, p)
		}
	}
	return out
}

// severed says whether nothing passes between a and b now.
func (m *Memory) severed(a, b *Host) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.severedLocked(a, b)
}

func (m *Memory) severedLocked(a, b *Host) bool {
	return a != b && (a.unplugged || b.unplugged || m.cut[[2]*Host{a, b}]) || a == b && m.cut[[2]*Host{a, a}]
}

func (m *Memory) delay(a, b *Host) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d, ok := m.delays[[2]*Host{a, b}]; ok {
		return d
	}
	if a == b {
		return 0
	}
	return m.latency
}

// Listen implements Net. Port 0 takes a free port.
func (h *Host) Listen(_ context.Context, network, address string) (Listener, error) {
	l := &memListener{h: h, queue: make(chan *memConn, memBacklog), done: make(chan struct{})}
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	key, err := h.bind(network, address, func(k memKey) bool { return h.listeners[k] != nil })
	if err != nil {
		return nil, fmt.Errorf("netio: listen %s %s: %w", network, address, err)
	}
	l.key, l.addr = key, memAddr(key, network)
	h.listeners[key] = l
	return l, nil
}

// bind resolves an address to listen on; the caller holds m.mu.
func (h *Host) bind(network, address string, taken func(memKey) bool) (memKey, error) {
	if network == "unix" {
		k := memKey{path: address}
		if taken(k) {
			return k, syscall.EADDRINUSE
		}
		return k, nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return memKey{}, err
	}
	if host == "" {
		host = "0.0.0.0"
	}
	ap, err := netip.ParseAddrPort(net.JoinHostPort(literal(host), port))
	if err != nil {
		return memKey{}, err
	}
	a := ap.Addr()
	if a.IsUnspecified() {
		a = netip.IPv4Unspecified() // one wild card for both families, as with a dual-stack socket
	} else if !h.owns(a) {
		return memKey{}, syscall.EADDRNOTAVAIL
	}
	k := memKey{addr: netip.AddrPortFrom(a, ap.Port())}
	for k.addr.Port() == 0 || ap.Port() == 0 && taken(k) {
		k.addr = netip.AddrPortFrom(a, h.port())
	}
	if taken(k) {
		return k, syscall.EADDRINUSE
	}
	return k, nil
}

// literal maps the one name that every host knows.
func literal(host string) string {
	if host == "localhost" {
		return "127.0.0.1"
	}
	return host
}

func (h *Host) owns(a netip.Addr) bool { return a.IsLoopback() || h.m.hosts[a] == h }

// port returns the next ephemeral port; the caller holds m.mu.
func (h *Host) port() uint16 {
	p := h.nextPort
	h.nextPort++
	if h.nextPort == 0 {
		h.nextPort = memFirstPort
	}
	return p
}

// route is how a Dial or a packet goes.
type route struct {
	to       *Host
	dst      netip.AddrPort // where it arrives
	original netip.AddrPort // where it was sent, when redirected
	src      netip.Addr
}

// lookup resolves a destination; the caller holds m.mu. to is nil where no host
// has the address.
func (h *Host) lookup(address string, redirect func(netip.AddrPort) (netip.AddrPort, bool)) (route, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return route{}, err
	}
	dst, err := netip.ParseAddrPort(net.JoinHostPort(literal(host), port))
	if err != nil {
		return route{}, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	if dst.Addr().IsUnspecified() { // connect(2) to 0.0.0.0 reaches this host
		dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), dst.Port())
	}
	r := route{dst: dst}
	if redirect != nil {
		if to, ok := redirect(dst); ok && to != dst {
			r.dst, r.original = to, dst
		}
	}
	switch a := r.dst.Addr(); {
	case h.owns(a):
		r.to, r.src = h, a
	default:
		r.to, r.src = h.m.hosts[a], h.Addr()
	}
	return r, nil
}

// Dial implements Net. address takes IP literals and "localhost"; there are no
// names.
func (h *Host) Dial(ctx context.Context, network, address string) (Conn, error) {
	h.m.mu.Lock()
	redirect := h.redirect
	h.m.mu.Unlock()
	return h.dialed(ctx, network, address, redirect)
}

func (h *Host) dialed(ctx context.Context, network, address string, redirect func(netip.AddrPort) (netip.AddrPort, bool)) (Conn, error) {
	c, err := h.dial(ctx, network, address, redirect)
	if err != nil {
		return nil, fmt.Errorf("netio: %w", &net.OpError{Op: "dial", Net: network, Addr: strAddr{network, address}, Err: err})
	}
	return c, nil
}

func (h *Host) dial(ctx context.Context, network, address string, redirect func(netip.AddrPort) (netip.AddrPort, bool)) (Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	h.m.mu.Lock()
	r := route{to: h}
	var err error
	if network != "unix" {
		r, err = h.lookup(address, redirect)
	}
	h.m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if r.to == nil { // no such machine: nobody answers
		return nil, waitSYN(ctx, memSynTimeout, syscall.ETIMEDOUT)
	}
	d := h.m.delay(h, r.to)
	if d > 0 {
		if err := waitSYN(ctx, d, nil); err != nil {
			return nil, err
		}
	}
	if h.m.severed(h, r.to) {
		return nil, waitSYN(ctx, memSynTimeout, syscall.ETIMEDOUT)
	}
	local, _, err := h.connect(network, address, r)
	if d > 0 {
		if werr := waitSYN(ctx, d, nil); werr != nil {
			if err == nil {
				local.Reset()
			}
			return nil, werr
		}
	}
	if err != nil {
		return nil, err
	}
	return local, nil
}

// waitSYN waits d, then returns err; or the context's error.
func waitSYN(ctx context.Context, d time.Duration, err error) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return err
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return &timeoutError{ctx.Err()}
		}
		return ctx.Err()
	}
}

// timeoutError is a context's deadline as a net.Error, as net.Dialer gives it.
type timeoutError struct{ error }

func (e *timeoutError) Timeout() bool   { return true }
func (e *timeoutError) Temporary() bool { return true }
func (e *timeoutError) Unwrap() error   { return e.error }

// connect makes the pair and puts its far end into the listener's backlog.
func (h *Host) connect(network, address string, r route) (local, remote *memConn, err error) {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	l := r.to.listener(network, address, r.dst)
	if l == nil {
		return nil, nil, syscall.ECONNREFUSED
	}
	p := &pair{m: h.m, host: [2]*Host{h, r.to}, changed: make(chan struct{})}
	p.dead = h.m.severedLocked(h, r.to)
	local, remote = &memConn{p: p, side: 0}, &memConn{p: p, side: 1}
	if network == "unix" {
		local.local, local.remote = &net.UnixAddr{Net: "unix"}, l.addr
	} else {
		local.local = tcpAddr(netip.AddrPortFrom(r.src, h.port()))
		local.remote = tcpAddr(r.dst)
		if r.original.IsValid() {
			local.remote = tcpAddr(r.original) // what getpeername says on the redirected side
			remote.original = r.original
		}
	}
	remote.local, remote.remote = tcpOr(l.addr, r.dst), local.local
	select {
	case l.queue <- remote:
	default:
		return nil, nil, syscall.ECONNREFUSED
	}
	h.m.pairs[p] = struct{}{}
	return local, remote, nil
}

func tcpOr(a net.Addr, dst netip.AddrPort) net.Addr {
	if dst.IsValid() {
		return tcpAddr(dst)
	}
	return a
}

// listener finds who listens; the caller holds m.mu.
func (h *Host) listener(network, address string, dst netip.AddrPort) *memListener {
	if network == "unix" {
		return h.listeners[memKey{path: address}]
	}
	if l := h.listeners[memKey{addr: dst}]; l != nil {
		return l
	}
	return h.listeners[memKey{addr: netip.AddrPortFrom(netip.IPv4Unspecified(), dst.Port())}]
}

type memListener struct {
	h     *Host
	key   memKey
	addr  net.Addr
	queue chan *memConn
	done  chan struct{}
	once  sync.Once
}

func (l *memListener) Accept() (net.Conn, error) { return l.AcceptConn() }

func (l *memListener) AcceptConn() (Conn, error) {
	select {
	case <-l.done:
	default:
		select {
		case c := <-l.queue:
			return c, nil
		case <-l.done:
		}
	}
	return nil, fmt.Errorf("netio: accept %s: %w", l.addr, net.ErrClosed)
}

// Close stops listening; connections not yet accepted are reset.
func (l *memListener) Close() error {
	err := error(net.ErrClosed)
	l.once.Do(func() {
		err = nil
		l.h.m.mu.Lock()
		if l.h.listeners[l.key] == l {
			delete(l.h.listeners, l.key)
		}
		l.h.m.mu.Unlock()
		close(l.done)
		for {
			select {
			case c := <-l.queue:
				c.Reset()
				continue
			default:
			}
			return
		}
	})
	return err
}

func (l *memListener) Addr() net.Addr { return l.addr }

type strAddr struct{ network, s string }

func (a strAddr) Network() string { return a.network }
func (a strAddr) String() string  { return a.s }

func tcpAddr(a netip.AddrPort) net.Addr { return net.TCPAddrFromAddrPort(a) }

func memAddr(k memKey, network string) net.Addr {
	switch network {
	case "unix":
		return &net.UnixAddr{Name: k.path, Net: "unix"}
	case "udp":
		return net.UDPAddrFromAddrPort(k.addr)
	}
	return tcpAddr(k.addr)
}
