package netio

import (
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// asker is one question to the kernel. Its callbacks are made once, for a
// closure per call would be an allocation per call.
type asker struct {
	info     unix.TCPInfo
	ok       bool
	tcp, fin func(fd uintptr)
}

var askers = sync.Pool{New: func() any {
	a := new(asker)
	a.tcp, a.fin = a.askTCP, a.askFIN
	return a
}}

func (a *asker) askTCP(fd uintptr) {
	size := uint32(unsafe.Sizeof(a.info))
	_, _, e := syscall.RawSyscall6(syscall.SYS_GETSOCKOPT, fd, unix.IPPROTO_TCP, unix.TCP_INFO,
		uintptr(unsafe.Pointer(&a.info)), uintptr(unsafe.Pointer(&size)), 0)
	// Linux before 4.1 does not say it.
	a.ok = e == 0 && uintptr(size) >= unsafe.Offsetof(a.info.Bytes_acked)+unsafe.Sizeof(a.info.Bytes_acked)
}

func (a *asker) askFIN(fd uintptr) {
	var b [1]byte
	n, e := call(syscall.SYS_RECVFROM, fd, unsafe.Pointer(&b), 1, syscall.MSG_PEEK)
	a.ok = e == 0 && n == 0
}

// Acked is how many bytes the peer's TCP has acknowledged so far, on an
// arbitrary base; ok is false where there is no kernel socket of TCP to ask.
func Acked(c Conn) (n uint64, ok bool) {
	rc, has := unwrap(c).Raw()
	if !has {
		return 0, false
	}
	a := askers.Get().(*asker)
	a.ok = false
	_ = rc.Control(a.tcp)
	n, ok = a.info.Bytes_acked, a.ok
	askers.Put(a)
	return n, ok
}

// Finished says that the peer has ended its side in order (FIN) and that
// everything it sent before was read. Only where the connection has reported no
// reset: a kernel forgets that it did.
func Finished(c Conn) (fin bool) {
	rc, has := unwrap(c).Raw()
	if !has {
		return false
	}
	a := askers.Get().(*asker)
	a.ok = false
	_ = rc.Control(a.fin)
	fin = a.ok
	askers.Put(a)
	return fin
}
