package netio

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// memDatagrams is how many datagrams wait at a socket; more are lost.
const memDatagrams = 256

type datagram struct {
	from netip.AddrPort
	data []byte
}

// memPacket is a datagram socket of a Memory network. Datagrams are lost where
// nobody listens, where the hosts are cut off, and when the queue is full.
type memPacket struct {
	h    *Host
	key  memKey
	done chan struct{}
	in   chan datagram

	mu       sync.Mutex
	deadline time.Time
	changed  chan struct{}
	closed   bool
}

// ListenPacket implements Net.
func (h *Host) ListenPacket(_ context.Context, network, address string) (net.PacketConn, error) {
	if network == "unix" {
		return nil, fmt.Errorf("netio: listen %s %s: datagrams over unix sockets are not supported", network, address)
	}
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	key, err := h.bind(network, address, func(k memKey) bool { return h.packets[k] != nil })
	if err != nil {
		return nil, fmt.Errorf("netio: listen %s %s: %w", network, address, err)
	}
	p := &memPacket{h: h, key: key, done: make(chan struct{}), in: make(chan datagram, memDatagrams), changed: make(chan struct{})}
	h.packets[key] = p
	return p, nil
}

func (p *memPacket) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		p.mu.Lock()
		deadline, changed := p.deadline, p.changed
		p.mu.Unlock()
		if passed(deadline) {
			return 0, nil, p.fail("read", os.ErrDeadlineExceeded)
		}
		var expired <-chan time.Time
		if !deadline.IsZero() {
			t := time.NewTimer(time.Until(deadline))
			defer t.Stop()
			expired = t.C
		}
		select {
		case d := <-p.in:
			return copy(b, d.data), net.UDPAddrFromAddrPort(d.from), nil
		case <-p.done:
			return 0, nil, p.fail("read", net.ErrClosed)
		case <-expired:
		case <-changed:
		}
	}
}

func (p *memPacket) WriteTo(b []byte, to net.Addr) (int, error) {
	select {
	case <-p.done:
		return 0, p.fail("write", net.ErrClosed)
	default:
	}
	m := p.h.m
	m.mu.Lock()
	r, err := p.h.lookup(to.String(), nil)
	if err != nil {
		m.mu.Unlock()
		return 0, p.fail("write", err)
	}
	var dst *memPacket
	if r.to != nil && !m.severedLocked(p.h, r.to) {
		dst = r.to.packets[memKey{addr: r.dst}]
		if dst == nil {
			dst = r.to.packets[memKey{addr: netip.AddrPortFrom(netip.IPv4Unspecified(), r.dst.Port())}]
		}
	}
	m.mu.Unlock()
	if dst == nil {
		return len(b), nil
	}
	from := p.key.addr
	if from.Addr().IsUnspecified() {
		from = netip.AddrPortFrom(r.src, from.Port())
	}
	d := datagram{from, append([]byte(nil), b...)}
	deliver := func() {
		select {
		case dst.in <- d:
		default:
		}
	}
	if wait := m.delay(p.h, r.to); wait > 0 {
		time.AfterFunc(wait, deliver)
	} else {
		deliver()
	}
	return len(b), nil
}

func (p *memPacket) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return p.fail("close", net.ErrClosed)
	}
	p.closed = true
	close(p.done)
	p.h.m.mu.Lock()
	delete(p.h.packets, p.key)
	p.h.m.mu.Unlock()
	return nil
}

func (p *memPacket) fail(op string, err error) error {
	return &net.OpError{Op: op, Net: "udp", Source: p.LocalAddr(), Err: err}
}

func (p *memPacket) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(p.key.addr) }

func (p *memPacket) SetDeadline(t time.Time) error { return p.SetReadDeadline(t) }

// SetWriteDeadline does nothing: a write never blocks.
func (p *memPacket) SetWriteDeadline(time.Time) error { return nil }

func (p *memPacket) SetReadDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return p.fail("set", syscall.EINVAL)
	}
	p.deadline = t
	close(p.changed)
	p.changed = make(chan struct{})
	return nil
}
