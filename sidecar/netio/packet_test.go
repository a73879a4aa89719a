package netio

import (
	"errors"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// TestConnectPacket: a connected socket hears its peer and no one else, and is
// told where nobody listens.
func TestConnectPacket(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("connected datagram sockets are for Linux; elsewhere sources are checked by who reads")
	}
	ctx := t.Context()
	peer, err := OS{}.ListenPacket(ctx, "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	other, err := OS{}.ListenPacket(ctx, "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	pc, err := OS{}.ListenPacket(ctx, "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	if err := ConnectPacket(pc, netip.MustParseAddrPort(peer.LocalAddr().String())); err != nil {
		t.Fatal(err)
	}
	if _, err := other.WriteTo([]byte("forged"), pc.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.WriteTo([]byte("true"), pc.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	_ = pc.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 16)
	if n, _, err := pc.ReadFrom(b); err != nil || string(b[:n]) != "true" {
		t.Errorf("read %q, %v", b[:n], err)
	}
	to := peer.LocalAddr()
	peer.Close()
	if _, err := pc.WriteTo([]byte("x"), to); err != nil {
		t.Fatal(err)
	}
	if _, _, err := pc.ReadFrom(b); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens there: %v", err)
	}
	if err := ConnectPacket(NewMemory().mustPacket(t), netip.MustParseAddrPort("10.0.0.1:53")); err != nil {
		t.Error(err)
	}
}

func (m *Memory) mustPacket(t *testing.T) *memPacket {
	pc, err := m.Host("h", "10.0.0.9").ListenPacket(t.Context(), "udp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	return pc.(*memPacket)
}
