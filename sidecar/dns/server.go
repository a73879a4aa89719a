package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

// active is what queries are decided by. Immutable, but for what the host's
// resolv.conf says at the time.
type active struct {
	table   *table
	servers []netip.AddrPort // none: the host's
	timeout time.Duration
	pending int64
	host    *host
	avoid   func(netip.AddrPort) bool // addresses of our own
	turn    *atomic.Uint64            // of rotation
}

// ask is how a query is put to the resolvers in force.
func (s *server) ask(a *active, open func(netip.AddrPort) (attempt, error)) asking {
	servers, rotate := a.servers, false
	if len(servers) == 0 {
		c := a.host.conf()
		servers, rotate = c.servers, c.rotate
	}
	for _, r := range servers {
		if a.avoid(r) {
			servers = a.others(servers)
			break
		}
	}
	if n := uint64(len(servers)); rotate && n > 1 {
		i := a.turn.Add(1) % n
		servers = append(append(make([]netip.AddrPort, 0, n), servers[i:]...), servers[:i]...)
	}
	return asking{servers: servers, timeout: a.timeout, open: open, recovered: s.recovered}
}

func (a *active) others(servers []netip.AddrPort) (out []netip.AddrPort) {
	for _, s := range servers {
		if !a.avoid(s) {
			out = append(out, s)
		}
	}
	return out
}

// server serves one address, by UDP and TCP.
type server struct {
	set     *Set
	log     *slog.Logger
	address netip.AddrPort
	active  atomic.Pointer[active]
	limiter *limiter

	pc   net.PacketConn
	ln   netio.Listener
	stop context.CancelFunc
	wg   sync.WaitGroup // everything that serves

	mu      sync.Mutex
	flying  map[uint32]*udpAttempt // guarded by mu: by local port
	clients map[netip.AddrPort]int // guarded by mu: queries in hand of a client's socket
	// dialling are this server's own ends of connections to resolvers; guarded by mu.
	dialling map[netip.AddrPort]bool
	closed   bool // guarded by mu
}

// open opens both sockets of an address.
func (s *server) open(ctx context.Context) error {
	if !s.address.Addr().IsLoopback() {
		return fmt.Errorf("dns: %s is no loopback address: whoever can reach it could use this server; write 127.0.0.1 or ::1", s.address)
	}
	pc, err := s.set.Net.ListenPacket(ctx, "udp", s.address.String())
	if err != nil {
		return fmt.Errorf("dns: %w", err)
	}
	ln, err := s.set.Net.Listen(ctx, "tcp", s.address.String())
	if err != nil {
		_ = pc.Close()
		return fmt.Errorf("dns: %w", err)
	}
	s.pc, s.ln = pc, ln
	ctx, s.stop = context.WithCancel(ctx)
	s.wg.Go(func() { s.serveUDP(ctx) })
	s.wg.Go(func() { s.serveTCP(ctx, ln) })
	return nil
}

// close ends the server and waits for all of it.
func (s *server) close() {
	s.mu.Lock()
	s.closed = true
	flying := make([]*udpAttempt, 0, len(s.flying))
	for _, a := range s.flying {
		flying = append(flying, a)
	}
	s.mu.Unlock()
	if s.stop == nil {
		return // never open
	}
	s.stop()
	_ = s.pc.Close()
	_ = s.ln.Close()
	for _, a := range flying {
		a.close()
	}
	s.wg.Wait()
}

// flight is a query by UDP that is being forwarded. Pooled.
type flight struct {
	q      query
	in     []byte
	out    []byte
	client netip.AddrPort
}

var flights = sync.Pool{New: func() any { return &flight{} }}

// serveUDP answers what is the mesh's own at once; what is to be forwarded has a
// goroutine each.
func (s *server) serveUDP(ctx context.Context) {
	in, out := make([]byte, maxMessage), make([]byte, 0, maxMessage)
	for {
		n, from, err := readFrom(s.pc, in)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
				return
			}
			select { // such as an ICMP error that a former answer met
			case <-ctx.Done():
			case <-time.After(time.Millisecond):
			}
			continue
		}
		s.datagram(ctx, in[:n], out, from)
	}
}

const loopMessage = "dns: queries that the sidecar sends to a resolver come back to it: the redirection captures the sidecar's own traffic; " +
	"run it as another user than the applications and name that with --proxy-uid"

func (s *server) datagram(ctx context.Context, msg, out []byte, from netip.AddrPort) {
	defer s.recovered("a query")
	c := s.set.counts
	c.udp.Add(1)
	f := flights.Get().(*flight)
	act := s.active.Load()
	err := f.q.parse(msg)
	switch {
	case errors.Is(err, errShort), errors.Is(err, errAnswer):
		c.add(dropNoQuery)
	case errors.Is(err, errQuestion):
		_ = writeTo(s.pc, s.malformed(out, &f.q), from)
	default:
		if reply, ok := s.own(out, &f.q, act, err, from.Addr(), f.q.size, false); ok {
			_ = writeTo(s.pc, reply, from)
			break
		}
		if s.comesBack(from, msg) {
			c.add(dropLoop)
			s.say(loopMessage, telemetry.KeyAddress, from.String())
			break
		}
		if !s.take(act, from) {
			_ = writeTo(s.pc, s.overloaded(out, &f.q), from)
			break
		}
		f.in = append(f.in[:0], msg...)
		f.q.msg, f.client = f.in, from
		s.wg.Add(1)
		go s.forward(ctx, f, act)
		return
	}
	f.q.msg = nil
	flights.Put(f)
}

// forward asks the resolvers by UDP, as the client did.
func (s *server) forward(ctx context.Context, f *flight, act *active) {
	defer s.wg.Done()
	defer s.give(f.client)
	defer s.recovered("a query by UDP")
	ask := s.ask(act, func(to netip.AddrPort) (attempt, error) { return s.askUDP(ctx, &f.q, to) })
	start := time.Now()
	got := ask.exchange(ctx)
	f.out = f.out[:0]
	_ = writeTo(s.pc, s.finish(f.out, &f.q, act, &got, start, f.q.size), f.client)
	if a, ok := got.held.(*udpAttempt); ok {
		a.release()
	}
	f.q.msg = nil
	flights.Put(f)
}

// finish is what a client gets: the resolver's bytes, an own answer to a name
// with a search domain behind it, or SERVFAIL.
func (s *server) finish(buf []byte, q *query, act *active, got *exchanged, start time.Time, limit int) []byte {
	c := s.set.counts
	if got.msg == nil {
		return s.failed(buf, q, got.err)
	}
	c.took(time.Since(start))
	if got.next {
		c.add(forwardNext)
	} else {
		c.add(forwardAnswered)
	}
	if codeOf(got.msg) == nameError && q.plain && !q.do && q.class == classIN && q.opcode() == opcodeQuery {
		if f, ok := act.searched(q); ok {
			out, code := appendAnswer(buf, q, f, limit, s.set.Rand())
			c.ownAnswer(code, out, out[2]&(flagTC>>8) != 0)
			c.add(searched)
			return out
		}
	}
	return got.msg
}

// searched looks for a name of the mesh's with one of the host's search domains
// behind it.
func (a *active) searched(q *query) (found, bool) {
	for _, s := range a.host.conf().search {
		rest, ok := strings.CutSuffix(string(q.text()), "."+s)
		if !ok {
			continue
		}
		if f := a.table.find([]byte(rest)); f.entry != nil && f.entry.ptr == "" {
			f.owner = q.nameLen
			return f, true
		}
	}
	return found{}, false
}

// own answers a query for a name of the mesh's; false where it is none. bad is
// what parse said of the records behind the question.
func (s *server) own(buf []byte, q *query, act *active, bad error, from netip.Addr, limit int, stream bool) ([]byte, bool) {
	if !q.plain || q.class != classIN || q.opcode() != opcodeQuery {
		return nil, false
	}
	f := act.table.find(q.text())
	if !f.ours {
		return nil, false
	}
	c := s.set.counts
	if !s.limiter.allow(from, time.Now()) {
		c.add(ownLimited)
		s.set.Error(telemetry.Overload)
		if !stream {
			return appendTruncated(buf, q), true
		}
		return appendReply(buf, q, refused, edeOther, "parrel: overload: more queries a second than one address may ask"), true
	}
	if bad != nil {
		return s.malformed(buf, q), true
	}
	out, code := appendAnswer(buf, q, f, limit, s.set.Rand())
	c.ownAnswer(code, out, out[2]&(flagTC>>8) != 0)
	return out, true
}

// malformed answers what cannot be read.
func (s *server) malformed(buf []byte, q *query) []byte {
	s.set.counts.add(ownFormatError)
	q.edns = false
	return appendReply(buf, q, formatError, 0, "")
}

// overloaded answers a query that is one too many.
func (s *server) overloaded(buf []byte, q *query) []byte {
	s.set.counts.add(forwardOverload)
	s.set.Error(telemetry.Overload)
	return appendReply(buf, q, serverFailure, edeOther, "parrel: overload: too many queries wait for resolvers")
}

// failed answers a query that no resolver answered.
func (s *server) failed(buf []byte, q *query, err error) []byte {
	code, e := telemetry.DNSError, forwardFailed
	if timedOut(err) {
		code, e = telemetry.DNSTimeout, forwardTimeout
	}
	s.set.counts.add(e)
	s.set.Error(code)
	s.say("dns: a query was answered with SERVFAIL, because no resolver answered it", telemetry.KeyCode, code.String(), telemetry.KeyError, fmt.Sprint(err))
	why := "parrel: " + code.String() + ": no resolver answered"
	return appendReply(buf, q, serverFailure, edeNoAuthority, why)
}

// take counts a query by UDP in; false where it is one too many.
func (s *server) take(act *active, from netip.AddrPort) bool {
	if !s.enter(act) {
		return false
	}
	s.mu.Lock()
	n := s.clients[from]
	full := n >= s.set.PerClient || s.closed
	if !full {
		s.clients[from] = n + 1
	}
	s.mu.Unlock()
	if full {
		s.leave()
	}
	return !full
}

func (s *server) give(from netip.AddrPort) {
	s.mu.Lock()
	if n := s.clients[from]; n > 1 {
		s.clients[from] = n - 1
	} else {
		delete(s.clients, from)
	}
	s.mu.Unlock()
	s.leave()
}

func (s *server) enter(act *active) bool {
	if s.set.counts.flying.Add(1) > act.pending {
		s.leave()
		return false
	}
	return true
}

func (s *server) leave() { s.set.counts.flying.Add(-1) }

// say logs a failure that may come with every query, once in a while.
func (s *server) say(msg string, args ...any) {
	const pause = 10 * time.Second
	now := time.Now().UnixNano()
	last := s.set.said.Load()
	if last != 0 && now-last < int64(pause) || !s.set.said.CompareAndSwap(last, now) {
		return
	}
	s.log.Warn(msg+" (such messages are not repeated within "+pause.String()+")", args...)
}

func addrPortOf(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok && t != nil {
		return netip.AddrPortFrom(t.AddrPort().Addr().Unmap(), uint16(t.Port))
	}
	return netip.AddrPort{}
}
