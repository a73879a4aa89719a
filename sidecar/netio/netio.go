package netio

import (
	"context"
	"net"
	"net/netip"
	"syscall"
)

// Net makes listeners and connections. network is "tcp", "unix" or "udp".
type Net interface {
	Listen(ctx context.Context, network, address string) (Listener, error)
	Dial(ctx context.Context, network, address string) (Conn, error)
	ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error)
}

// Listener accepts Conns. A failure of Accept that passes by itself (no file
// descriptors left, a connection reset before it was accepted) is waited out
// inside Accept; an error from it is final.
type Listener interface {
	net.Listener // Accept returns a Conn
	AcceptConn() (Conn, error)
}

// Conn is a stream connection.
type Conn interface {
	net.Conn
	// OriginalDst is where the client meant to go before redirection; ok is
	// false where the connection was not redirected.
	OriginalDst() (addr netip.AddrPort, ok bool)
	// CloseWrite ends this side's stream (FIN) and leaves the other open.
	CloseWrite() error
	// Reset closes the connection with an RST.
	Reset() error
	// WaitReadable blocks until a Read would not, without holding a buffer.
	// The read deadline bounds it.
	WaitReadable() error
	// Raw gives the kernel socket, ok false where there is none.
	Raw() (rc syscall.RawConn, ok bool)
}
