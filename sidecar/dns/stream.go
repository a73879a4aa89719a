package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

// serveTCP accepts until the listener is closed.
func (s *server) serveTCP(ctx context.Context, ln netio.Listener) {
	for {
		c, err := ln.AcceptConn()
		if err != nil {
			return
		}
		if s.set.counts.conns.Add(1) > int64(s.set.Conns) {
			s.set.counts.conns.Add(-1)
			s.set.counts.add(dropConns)
			_ = c.Close()
			continue
		}
		s.wg.Go(func() {
			defer s.set.counts.conns.Add(-1)
			st := &stream{s: s, c: c, slots: make(chan struct{}, s.set.Pipeline), turn: make(chan struct{}, 1)}
			st.turn <- struct{}{}
			st.serve(ctx)
		})
	}
}

// stream is one client's TCP connection. Answers go back in the order in which
// they come (RFC 7766, section 7).
type stream struct {
	s     *server
	c     netio.Conn
	slots chan struct{} // one for each query in hand

	turn chan struct{} // whoever holds it writes
	out  []byte        // with the turn
}

func (st *stream) serve(ctx context.Context) {
	defer st.s.recovered("a connection")
	var wg sync.WaitGroup
	// The client may have said that it sends no more; it gets what it asked for.
	defer func() { _ = st.c.Close() }()
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { _ = st.c.Close() })
	defer stop()
	client := addrPortOf(st.c.RemoteAddr())
	for {
		select { // before a message is read, there is room for it
		case st.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		_ = st.c.SetReadDeadline(time.Now().Add(st.s.set.Idle))
		msg, err := readMessage(st.c, st.s.set.Message)
		if err != nil {
			if errors.Is(err, errLength) {
				st.s.set.counts.add(dropTooLong)
			}
			return
		}
		st.s.set.counts.tcp.Add(1)
		if st.s.dialled(client) {
			st.s.set.counts.add(dropLoop)
			st.s.say(loopMessage, telemetry.KeyAddress, client.String())
			return
		}
		q := &query{}
		act := st.s.active.Load()
		switch err := q.parse(msg); {
		case errors.Is(err, errShort), errors.Is(err, errAnswer):
			st.s.set.counts.add(dropNoQuery)
			return
		case errors.Is(err, errQuestion):
			if st.reply(st.s.malformed(nil, q)) != nil {
				return
			}
			<-st.slots
			continue
		default:
			if out, ok := st.s.own(nil, q, act, err, client.Addr(), maxMessage, true); ok {
				if st.reply(out) != nil {
					return
				}
				<-st.slots
				continue
			}
		}
		wg.Go(func() {
			defer func() { <-st.slots }()
			st.forward(ctx, q, act)
		})
	}
}

// reply writes one message.
func (st *stream) reply(msg []byte) error {
	<-st.turn
	defer func() { st.turn <- struct{}{} }()
	st.out = append(binary.BigEndian.AppendUint16(st.out[:0], uint16(len(msg))), msg...)
	_ = st.c.SetWriteDeadline(time.Now().Add(st.s.set.Idle))
	_, err := st.c.Write(st.out)
	if cap(st.out) > smallAnswer {
		st.out = nil
	}
	if err != nil {
		_ = st.c.Close() // a client that does not read gets no more
		return fmt.Errorf("dns: %w", err)
	}
	return nil
}

// forward asks the resolvers by TCP, as the client did.
func (st *stream) forward(ctx context.Context, q *query, act *active) {
	s := st.s
	defer s.recovered("a query by TCP")
	if !s.enter(act) {
		_ = st.reply(s.overloaded(nil, q))
		return
	}
	defer s.leave()
	ask := s.ask(act, func(to netip.AddrPort) (attempt, error) { return &tcpAttempt{ctx: ctx, s: s, q: q, server: to}, nil })
	if q.transfer() {
		st.relay(ctx, q, &ask)
		return
	}
	start := time.Now()
	got := ask.exchange(ctx)
	_ = st.reply(s.finish(nil, q, act, &got, start, maxMessage))
	if got.held != nil {
		got.held.close()
	}
}

// relay carries a zone transfer, which is as many messages as the resolver
// chooses, from the first resolver that takes it, until it ends, or is silent for
// the idle time.
func (st *stream) relay(ctx context.Context, q *query, ask *asking) {
	s := st.s
	got := exchanged{err: errNoResolver}
	for _, to := range ask.servers {
		a := &tcpAttempt{ctx: ctx, s: s, q: q, server: to}
		msg, err := a.wait(time.Now().Add(ask.timeout))
		if err != nil {
			got.err = err
			a.close()
			continue
		}
		defer a.close()
		s.set.counts.add(forwardAnswered)
		for err == nil {
			_ = st.c.SetReadDeadline(time.Now().Add(s.set.Idle))
			if st.reply(msg) != nil {
				return
			}
			msg, err = a.wait(time.Now().Add(s.set.Idle))
		}
		return
	}
	_ = st.reply(s.failed(nil, q, got.err))
}

// tcpAttempt is a question by TCP, on a connection of its own.
type tcpAttempt struct {
	ctx    context.Context
	s      *server
	q      *query
	server netip.AddrPort

	mu     sync.Mutex
	c      netio.Conn  // guarded by mu: nil before it is connected
	stop   func() bool // guarded by mu
	closed bool        // guarded by mu

	head [2]byte
	read int // of head and msg together
	msg  []byte
}

func (a *tcpAttempt) connect(until time.Time) (netio.Conn, error) {
	a.mu.Lock()
	c, closed := a.c, a.closed
	a.mu.Unlock()
	if c != nil || closed {
		return c, nil
	}
	ctx, cancel := context.WithDeadline(a.ctx, until)
	defer cancel()
	c, err := a.s.set.Net.Dial(ctx, "tcp", a.server.String())
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller does
	}
	a.mu.Lock()
	if closed = a.closed; !closed {
		a.s.dials(addrPortOf(c.LocalAddr()), true)
		a.c, a.stop = c, context.AfterFunc(a.ctx, func() { _ = c.Close() })
	}
	a.mu.Unlock()
	if closed {
		_ = c.Close()
		return nil, nil
	}
	_ = c.SetWriteDeadline(until)
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a.q.msg))), a.q.msg...)); err != nil {
		return nil, err //nolint:wrapcheck // the caller does
	}
	return c, nil
}

// wait reads the next message that answers the query.
func (a *tcpAttempt) wait(until time.Time) ([]byte, error) {
	c, err := a.connect(until)
	if err == nil && c == nil {
		err = context.Canceled
	}
	if err == nil {
		err = c.SetReadDeadline(until)
	}
	for err == nil {
		var msg []byte
		if msg, err = a.message(c); err == nil {
			if answers(msg, a.q) || a.q.transfer() && follows(msg, a.q) {
				return msg, nil
			}
			a.s.set.counts.add(dropMismatch)
		}
	}
	return nil, fmt.Errorf("resolver %s by TCP: %w", a.server, err)
}

// follows says whether msg is a further message of a transfer: it may leave the
// question out (RFC 5936, section 2.2).
func follows(msg []byte, q *query) bool {
	return len(msg) >= headerSize && msg[0] == q.msg[0] && msg[1] == q.msg[1] && msg[2]&0x80 != 0 && msg[4]|msg[5] == 0
}

// message reads one message; after a time-out it goes on where it was.
func (a *tcpAttempt) message(c netio.Conn) ([]byte, error) {
	for a.read < len(a.head) {
		n, err := c.Read(a.head[a.read:])
		a.read += n
		if err != nil {
			return nil, err //nolint:wrapcheck // the caller does
		}
	}
	if a.msg == nil {
		a.msg = make([]byte, binary.BigEndian.Uint16(a.head[:]))
	}
	for a.read-len(a.head) < len(a.msg) {
		n, err := c.Read(a.msg[a.read-len(a.head):])
		a.read += n
		if err != nil {
			return nil, err //nolint:wrapcheck // the caller does
		}
	}
	msg := a.msg
	a.msg, a.read = nil, 0
	return msg, nil
}

func (a *tcpAttempt) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	if a.c != nil {
		a.s.dials(addrPortOf(a.c.LocalAddr()), false)
		a.stop()
		_ = a.c.Close()
		a.c = nil
	}
}

// dials notes the address of a connection to a resolver, or forgets it.
func (s *server) dials(from netip.AddrPort, open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if open {
		s.dialling[from] = true
	} else {
		delete(s.dialling, from)
	}
}

// dialled says whether a client is this server itself: see comesBack.
func (s *server) dialled(client netip.AddrPort) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dialling[client]
}

var errLength = errors.New("dns: a message is longer than is taken")

// readMessage reads one message of at most limit bytes.
func readMessage(r io.Reader, limit int) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err //nolint:wrapcheck // it ends the connection
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n > limit {
		return nil, errLength
	}
	msg := make([]byte, n)
	if _, err := io.ReadFull(r, msg); err != nil {
		return nil, err //nolint:wrapcheck // it ends the connection
	}
	return msg, nil
}

// recovered keeps a panic to what it happened in.
func (s *server) recovered(in string) {
	if r := recover(); r != nil {
		s.set.counts.add(dropPanic)
		s.set.Error(telemetry.LocalPanic)
		s.log.Error("dns: "+in+" was given up", telemetry.KeyCode, telemetry.LocalPanic.String(), telemetry.KeyError, fmt.Sprint(r), telemetry.KeyStack, string(debug.Stack()))
	}
}
