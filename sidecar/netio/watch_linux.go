package netio

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	canLook = true

	tcpClose    = 7  // TCP_CLOSE of net/tcp_states.h
	tcpRTOMaxMS = 44 // TCP_RTO_MAX_MS of linux/tcp.h, since Linux 6.15
)

// lookAt reads TCP_INFO (tcp(7), linux/tcp.h). What a kernel is too old to say
// is zero: then nobody counts as asked, and no connection is reset.
func lookAt(rc syscall.RawConn) (look, error) {
	var i *unix.TCPInfo
	var ierr error
	err := rc.Control(func(fd uintptr) {
		i, ierr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	if err != nil {
		return look{}, err
	}
	if ierr != nil {
		return look{}, ierr
	}
	return look{
		at:      time.Now(),
		quiet:   time.Duration(i.Last_ack_recv) * time.Millisecond,
		waiting: i.Unacked > 0 || i.Notsent_bytes > 0,
		asked:   asked{i.Segs_out, i.Retransmits, i.Probes, i.Backoff},
		over:    i.State == tcpClose,
	}, nil
}

// bound keeps retransmissions and window probes probesApart at most, and gives
// the kernel its own bound back. It is set only while something waits: a kernel
// gives up a connection that the process has closed once its back-off reaches
// the bound (tcp_orphan_retries).
type bound struct {
	kernel int  // the kernel's, in milliseconds, while on
	on     bool // the kernel's is replaced
	old    bool // the kernel has no such option
}

func (b *bound) set(rc syscall.RawConn, on bool) {
	if b.on == on || b.old {
		return
	}
	_ = rc.Control(func(fd uintptr) {
		if !on {
			b.on = false
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, tcpRTOMaxMS, b.kernel)
			return
		}
		was, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, tcpRTOMaxMS)
		if err != nil {
			b.old = true
			return
		}
		if was <= int(probesApart.Milliseconds()) {
			return
		}
		b.kernel = was
		b.on = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, tcpRTOMaxMS, int(probesApart.Milliseconds())) == nil
	})
}
