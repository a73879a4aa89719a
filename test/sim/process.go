package sim

import (
	"context"
	"fmt"
	"net"
	"sync"
	"syscall"

	"github.com/parrel-mesh/parrel/sidecar/netio"
)

// process is one process on a host: it knows its sockets, so that it can be
// killed without the others on the host.
type process struct {
	host *netio.Host

	mu        sync.Mutex
	dead      bool
	listeners map[netio.Listener]struct{}
	conns     map[netio.Conn]struct{}
}

var _ netio.Net = (*process)(nil)

func newProcess(h *netio.Host) *process {
	return &process{host: h, listeners: map[netio.Listener]struct{}{}, conns: map[netio.Conn]struct{}{}}
}

// kill ends the process as SIGKILL does: its listeners are gone, its
// connections reset, and it reaches nobody any more.
func (p *process) kill() {
	p.mu.Lock()
	p.dead = true
	ls, cs := p.listeners, p.conns
	p.listeners, p.conns = map[netio.Listener]struct{}{}, map[netio.Conn]struct{}{}
	p.mu.Unlock()
	for l := range ls {
		_ = l.Close()
	}
	for c := range cs {
		_ = c.Reset()
	}
}

func (p *process) killed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead
}

func (p *process) Listen(ctx context.Context, network, address string) (netio.Listener, error) {
	ln, err := p.host.Listen(ctx, network, address)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		_ = ln.Close()
		return nil, fmt.Errorf("sim: the process was killed: %w", syscall.EBADF)
	}
	p.listeners[ln] = struct{}{}
	return &listener{Listener: ln, p: p}, nil
}

func (p *process) Dial(ctx context.Context, network, address string) (netio.Conn, error) {
	if p.killed() {
		return nil, fmt.Errorf("sim: the process was killed: %w", syscall.ENETUNREACH)
	}
	c, err := p.host.As(nil).Dial(ctx, network, address) // its own connections are never captured
	if err != nil {
		return nil, err
	}
	return p.track(c)
}

func (p *process) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	return p.host.ListenPacket(ctx, network, address)
}

func (p *process) track(c netio.Conn) (netio.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		_ = c.Reset()
		return nil, fmt.Errorf("sim: the process was killed: %w", net.ErrClosed)
	}
	p.conns[c] = struct{}{}
	return &conn{Conn: c, p: p}, nil
}

func (p *process) forget(c netio.Conn) {
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

// open is the number of connections that the process holds.
func (p *process) open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

type listener struct {
	netio.Listener
	p *process
}

func (l *listener) Accept() (net.Conn, error) { return l.AcceptConn() }

func (l *listener) AcceptConn() (netio.Conn, error) {
	c, err := l.Listener.AcceptConn()
	if err != nil {
		return nil, err
	}
	return l.p.track(c)
}

func (l *listener) Close() error {
	l.p.mu.Lock()
	delete(l.p.listeners, l.Listener)
	l.p.mu.Unlock()
	return l.Listener.Close()
}

type conn struct {
	netio.Conn
	p *process
}

func (c *conn) Close() error { c.p.forget(c.Conn); return c.Conn.Close() }
func (c *conn) Reset() error { c.p.forget(c.Conn); return c.Conn.Reset() }
