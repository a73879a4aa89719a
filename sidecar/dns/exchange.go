package dns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
)

// defaultTimeout is how long one resolver has before the next is asked as well.
const defaultTimeout = 2 * time.Second

// attempt is one question to one resolver. It is used by one goroutine at a time.
type attempt interface {
	// wait gives the resolver's answer. After an error that is a time-out it may
	// be called again, and goes on waiting for the same answer, which refers to
	// memory of the attempt.
	wait(until time.Time) ([]byte, error)
	close()
}

// asking is how a query is put to resolvers.
type asking struct {
	servers []netip.AddrPort
	timeout time.Duration // of one resolver, before the next is asked as well
	open    func(netip.AddrPort) (attempt, error)
	// recovered keeps a panic to what it happened in.
	recovered func(in string)
}

// exchanged is what became of a query. The answer refers to memory of held, which
// whoever has it closes.
type exchanged struct {
	msg  []byte
	held attempt
	next bool  // not the first attempt's
	err  error // why there is no answer
}

// exchange asks the resolvers in order, the first one again where it is the only
// one. One that is silent for a while has the next asked beside it, and may still
// answer; one that answers that it cannot (SERVFAIL, REFUSED, NOTIMP) or is not
// there has the next asked at once, as libc does. Where none does better, the
// first such answer stands. It returns after twice the time-out at the latest.
func (a *asking) exchange(ctx context.Context) exchanged {
	if len(a.servers) == 0 {
		return exchanged{err: errNoResolver}
	}
	start := time.Now()
	list := a.servers
	stagger := min(a.timeout, 2*a.timeout/time.Duration(len(list)))
	first, err := a.open(list[0])
	if err == nil {
		var msg []byte
		if msg, err = first.wait(start.Add(stagger)); err == nil && !poor(msg) {
			return exchanged{msg: msg, held: first}
		} else if err == nil && len(list) == 1 {
			return exchanged{msg: msg, held: first}
		} else if err == nil {
			return a.more(ctx, start, stagger, list[1:], nil, exchanged{msg: msg, held: first})
		}
		if timedOut(err) {
			if len(list) == 1 {
				return a.more(ctx, start, stagger, list, first, exchanged{})
			}
			return a.more(ctx, start, stagger, list[1:], first, exchanged{})
		}
		first.close()
	}
	if len(list) == 1 {
		return exchanged{err: err}
	}
	return a.more(ctx, start, stagger, list[1:], nil, exchanged{err: err})
}

// tried is what one attempt came to.
type tried struct {
	attempt attempt
	msg     []byte
	err     error
}

// more asks further resolvers while open, an attempt that had no answer yet, goes
// on waiting. known is what is answered where nothing better comes.
func (a *asking) more(ctx context.Context, start time.Time, stagger time.Duration, list []netip.AddrPort, open attempt, known exchanged) (best exchanged) {
	end := start.Add(2 * a.timeout)
	results := make(chan tried, len(list)+1)
	var wg sync.WaitGroup
	running := map[attempt]bool{}
	launch := func(at attempt) {
		running[at] = true
		wg.Go(func() {
			r := tried{at, nil, errPanic}
			defer func() { results <- r }()
			defer a.recovered("a query to a further resolver")
			r.msg, r.err = at.wait(end)
		})
	}
	best = known
	next := func() { // the next resolver that can be asked at all
		for len(list) > 0 {
			at, err := a.open(list[0])
			list = list[1:]
			if err == nil {
				launch(at)
				return
			}
			best.err = errors.Join(best.err, err)
		}
	}
	defer func() { // those that lost end, and are waited for
		for at := range running {
			at.close()
		}
		wg.Wait()
	}()
	if open != nil {
		launch(open)
	}
	next()
	turn := time.NewTimer(stagger)
	defer turn.Stop()
	for len(running) > 0 {
		select {
		case r := <-results:
			delete(running, r.attempt)
			if r.err == nil && !poor(r.msg) {
				if best.held != nil {
					best.held.close()
				}
				return exchanged{msg: r.msg, held: r.attempt, next: true}
			}
			if r.err == nil && best.held == nil {
				best.msg, best.held, best.next = r.msg, r.attempt, true
			} else {
				best.err = errors.Join(best.err, r.err)
				r.attempt.close()
			}
			next()
		case <-turn.C:
			next()
			turn.Reset(stagger)
		case <-ctx.Done():
			best.err = errors.Join(best.err, ctx.Err())
			return best
		}
	}
	return best
}

// poor says whether an answer is one that another resolver may do better than.
func poor(msg []byte) bool {
	switch codeOf(msg) {
	case serverFailure, notImplemented, refused:
		return true
	}
	return false
}

func timedOut(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
}

var errPanic = errors.New("a defect of the sidecar ended the attempt")

var errNoResolver = errors.New("there is no resolver to ask but this server itself; name others in /etc/resolv.conf")

const (
	smallAnswer = 4096
	largeAnswer = maxMessage
)

// One byte more than an answer may have tells one that was cut off.
var (
	smallBuffers = sync.Pool{New: func() any { b := make([]byte, smallAnswer+1); return &b }}
	largeBuffers = sync.Pool{New: func() any { b := make([]byte, largeAnswer+1); return &b }}
)

// udpAttempt is a question by UDP: a socket of its own with a port of its own.
type udpAttempt struct {
	s      *server
	q      *query
	server netip.AddrPort
	pc     net.PacketConn
	key    uint32 // in s.flying
	buf    *[]byte
	pool   *sync.Pool
	once   sync.Once
}

// packetConn is what a kernel's datagram socket can do beside: it reads and
// writes without making addresses.
type packetConn interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
}

func readFrom(pc net.PacketConn, b []byte) (int, netip.AddrPort, error) {
	if u, ok := pc.(packetConn); ok {
		n, from, err := u.ReadFromUDPAddrPort(b)
		return n, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), err
	}
	n, a, err := pc.ReadFrom(b)
	if u, ok := a.(*net.UDPAddr); ok && u != nil {
		from := u.AddrPort()
		return n, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), err
	}
	return n, netip.AddrPort{}, err
}

func writeTo(pc net.PacketConn, b []byte, to netip.AddrPort) error {
	var err error
	if u, ok := pc.(packetConn); ok {
		_, err = u.WriteToUDPAddrPort(b, to)
	} else {
		_, err = pc.WriteTo(b, net.UDPAddrFromAddrPort(to))
	}
	return err
}

// askUDP puts q to a resolver.
func (s *server) askUDP(ctx context.Context, q *query, to netip.AddrPort) (attempt, error) {
	network, address := "udp4", "0.0.0.0:0"
	if to.Addr().Is6() {
		network, address = "udp6", "[::]:0"
	}
	pc, err := s.set.Net.ListenPacket(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("resolver %s: %w", to, err)
	}
	a := &udpAttempt{s: s, q: q, server: to, pc: pc, pool: &smallBuffers}
	if q.size > smallAnswer {
		a.pool = &largeBuffers
	}
	a.buf = a.pool.Get().(*[]byte)
	if err = netio.ConnectPacket(pc, to); err == nil && s.takeOff(a) {
		if err = writeTo(pc, q.msg, to); err == nil {
			return a, nil
		}
	}
	a.close()
	return nil, fmt.Errorf("resolver %s: %w", to, errors.Join(err, ctx.Err()))
}

func (a *udpAttempt) wait(until time.Time) ([]byte, error) {
	if err := a.pc.SetReadDeadline(until); err != nil {
		return nil, fmt.Errorf("resolver %s: %w", a.server, err)
	}
	for {
		n, from, err := readFrom(a.pc, *a.buf)
		switch {
		case err != nil && errors.Is(err, syscall.ECONNREFUSED):
			return nil, fmt.Errorf("resolver %s: nothing listens there", a.server)
		case err != nil:
			return nil, fmt.Errorf("resolver %s: %w", a.server, err)
		case from != a.server:
			a.s.set.counts.add(dropSource)
		case n == len(*a.buf):
			a.s.set.counts.add(dropLongReply)
		case !answers((*a.buf)[:n], a.q):
			a.s.set.counts.add(dropMismatch)
		default:
			return (*a.buf)[:n], nil
		}
	}
}

func (a *udpAttempt) close() {
	a.once.Do(func() {
		a.s.land(a)
		_ = a.pc.Close()
	})
}

// release closes the attempt and gives its memory back: nobody waits for it, and
// nobody has its answer.
func (a *udpAttempt) release() {
	a.close()
	if a.buf != nil {
		a.pool.Put(a.buf)
		a.buf = nil
	}
}

// takeOff notes an attempt's port, so that its query is known where it comes back
// to this server; false where the server has ended.
func (s *server) takeOff(a *udpAttempt) bool {
	u, ok := a.pc.LocalAddr().(*net.UDPAddr)
	if ok {
		a.key = portKey(uint16(u.Port), a.server.Addr().Is6())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.flying[a.key] = a
	return true
}

func (s *server) land(a *udpAttempt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flying[a.key] == a {
		delete(s.flying, a.key)
	}
}

// comesBack says whether a message is a query that this server itself sent: a
// rule that is to let it out sends it back.
func (s *server) comesBack(from netip.AddrPort, msg []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock() // what has landed has memory that is used again
	a := s.flying[portKey(from.Port(), from.Addr().Is6())]
	return a != nil && bytes.Equal(a.q.msg, msg)
}

func portKey(port uint16, six bool) uint32 {
	k := uint32(port)
	if six {
		k |= 1 << 16
	}
	return k
}
