package intercept

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// kernel is a netlink socket in one network namespace (netlink(7)).
type kernel struct {
	fd  int
	seq uint32
}

// answerWithin bounds the wait for the kernel, which answers at once: a kernel
// without the subsystem may answer less often than it is asked.
const answerWithin = 5 * time.Second

// bufferSize is for a table of a thousand workloads: a transaction is one datagram.
const bufferSize = 8 << 20

// openKernel opens a socket in the namespace netns, "" for the caller's own.
func openKernel(protocol int, netns string) (*kernel, error) {
	return inNetNS(netns, func() (*kernel, error) { return socket(protocol) })
}

// inNetNS runs f on a thread that is in the namespace: a socket, and a file below
// /proc/sys/net or /proc/thread-self/net, belongs to the namespace of the thread that
// opens it.
func inNetNS[T any](netns string, f func() (T, error)) (v T, err error) {
	if netns == "" {
		return f()
	}
	ns, err := os.Open(netnsPath(netns))
	if err != nil {
		return v, fmt.Errorf("intercept: network namespace %s: %w; name one of `ip netns list`, or a path such as /proc/1234/ns/net", netns, err)
	}
	defer ns.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and not unlocked: the thread ends with the goroutine
		if e := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); e != nil {
			err = setnsError(netns, e)
			return
		}
		v, err = f()
	}()
	<-done
	return v, err
}

// netnsPath is the file of a namespace given by name or path.
func netnsPath(netns string) string {
	if strings.Contains(netns, "/") {
		return netns
	}
	return filepath.Join("/run/netns", netns)
}

func setnsError(netns string, err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("intercept: entering network namespace %s: %w; it needs CAP_SYS_ADMIN: run it as root", netns, err)
	}
	return fmt.Errorf("intercept: %s is no network namespace: %w; name one of `ip netns list`, or a path such as /proc/1234/ns/net", netns, err)
}

func socket(protocol int) (*kernel, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, &kernelError{what: "netlink", errno: errnoOf(err)}
	}
	k := &kernel{fd: fd}
	tv := unix.NsecToTimeval(int64(answerWithin))
	if err := errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
	); err != nil {
		k.close()
		return nil, fmt.Errorf("intercept: netlink socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1) // says why; Linux 4.12
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	for _, o := range []struct{ force, plain int }{{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}, {unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.force, bufferSize) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.plain, bufferSize)
		}
	}
	return k, nil
}

func (k *kernel) close() { _ = unix.Close(k.fd) }

// message is one request. what is for errors: "chain outbound".
type message struct {
	what  string
	typ   uint16
	flags uint16
	body  []byte
}

// kernelError is what the kernel answered to a message.
type kernelError struct {
	what  string // the message's
	errno syscall.Errno
	text  string // the kernel's own, by extended acknowledgement
}

func (e *kernelError) Error() string {
	if e.text != "" {
		return fmt.Sprintf("%s: %s (%s)", e.what, e.errno.Error(), e.text)
	}
	return fmt.Sprintf("%s: %s", e.what, e.errno.Error())
}

func (e *kernelError) Unwrap() error { return e.errno }

func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	errors.As(err, &errno)
	return errno
}

func (k *kernel) encode(b []byte, m message, seq uint32) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.NLMSG_HDRLEN+len(m.body)))
	b = binary.NativeEndian.AppendUint16(b, m.typ)
	b = binary.NativeEndian.AppendUint16(b, m.flags|unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, m.body...)
	return append(b, make([]byte, (4-len(m.body)%4)%4)...)
}

func (k *kernel) send(b []byte) error {
	err := unix.Sendto(k.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err != nil {
		return &kernelError{what: "sending to the kernel", errno: errnoOf(err)}
	}
	return nil
}

// receive reads one datagram of answers.
func (k *kernel) receive(what string) ([]syscall.NetlinkMessage, error) {
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(k.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EAGAIN) {
			return nil, fmt.Errorf("intercept: %s: the kernel did not answer within %v", what, answerWithin)
		}
		if err != nil {
			return nil, &kernelError{what: what, errno: errnoOf(err)}
		}
		return syscall.ParseNetlinkMessage(buf[:n])
	}
}

// ask sends one request and waits for its acknowledgement.
func (k *kernel) ask(m message) error {
	k.seq++
	m.flags |= unix.NLM_F_ACK
	if err := k.send(k.encode(nil, m, k.seq)); err != nil {
		return err
	}
	for {
		answers, err := k.receive(m.what)
		if err != nil {
			return err
		}
		for _, a := range answers {
			if a.Header.Seq == k.seq && a.Header.Type == unix.NLMSG_ERROR {
				return ackError(a, m.what)
			}
		}
	}
}

// dump asks for a list, again when it changed meanwhile.
func (k *kernel) dump(m message) (out []syscall.NetlinkMessage, err error) {
	for range 8 {
		var torn bool
		if out, torn, err = k.dumpOnce(m); err != nil || !torn {
			break
		}
	}
	return out, err
}

func (k *kernel) dumpOnce(m message) (out []syscall.NetlinkMessage, torn bool, err error) {
	k.seq++
	m.flags |= unix.NLM_F_DUMP
	if err := k.send(k.encode(nil, m, k.seq)); err != nil {
		return nil, false, err
	}
	for {
		answers, err := k.receive(m.what)
		if err != nil {
			return nil, false, err
		}
		for _, a := range answers {
			if a.Header.Seq != k.seq {
				continue
			}
			torn = torn || a.Header.Flags&unix.NLM_F_DUMP_INTR != 0
			switch a.Header.Type {
			case unix.NLMSG_DONE:
				return out, torn, nil
			case unix.NLMSG_ERROR:
				return nil, false, ackError(a, m.what)
			}
			out = append(out, a)
		}
	}
}

// transact sends messages as one nftables transaction: all are done or none is.
func (k *kernel) transact(ms []message) error {
	begin := message{typ: unix.NFNL_MSG_BATCH_BEGIN, body: nfgen(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)}
	end := begin
	end.typ = unix.NFNL_MSG_BATCH_END
	first := k.seq + 1
	k.seq++
	b := k.encode(nil, begin, k.seq)
	for i, m := range ms {
		if i == len(ms)-1 {
			m.flags |= unix.NLM_F_ACK
		}
		k.seq++
		b = k.encode(b, m, k.seq)
	}
	last := k.seq
	k.seq++
	if err := k.send(k.encode(b, end, k.seq)); err != nil {
		return err
	}
	var failed error
	for {
		answers, err := k.receive("nftables")
		if err != nil {
			return errors.Join(failed, err)
		}
		for _, a := range answers {
			seq := a.Header.Seq
			if seq < first || seq > k.seq || a.Header.Type != unix.NLMSG_ERROR {
				continue
			}
			what := "nftables"
			if seq > first && seq <= last {
				what = ms[seq-first-1].what
			}
			err := ackError(a, what)
			if failed == nil {
				failed = err // what comes after it fails for its absence
			}
			if seq >= last || seq == first { // the first: nothing else is looked at
				return failed
			}
		}
	}
}

func ackError(a syscall.NetlinkMessage, what string) error {
	if len(a.Data) < 4 {
		return fmt.Errorf("intercept: %s: the kernel's answer is cut short", what)
	}
	code := int32(binary.NativeEndian.Uint32(a.Data))
	if code == 0 {
		return nil
	}
	e := &kernelError{what: what, errno: syscall.Errno(-code)}
	const header = 4 + unix.NLMSG_HDRLEN
	if a.Header.Flags&unix.NLM_F_ACK_TLVS != 0 && len(a.Data) > header {
		rest := a.Data[header:]
		if a.Header.Flags&unix.NLM_F_CAPPED == 0 {
			n := int(binary.NativeEndian.Uint32(a.Data[4:])) - unix.NLMSG_HDRLEN
			rest = rest[min(max(n, 0), len(rest)):]
		}
		eachAttr(rest, func(typ uint16, data []byte) {
			if typ == unix.NLMSGERR_ATTR_MSG {
				e.text = strings.TrimRight(string(data), "\x00")
			}
		})
	}
	return e
}

// attr appends an attribute, with its padding.
func attr(b []byte, typ uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.NLA_HDRLEN+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, data...)
	return append(b, make([]byte, (4-len(data)%4)%4)...)
}

func nested(b []byte, typ uint16, data []byte) []byte { return attr(b, typ|unix.NLA_F_NESTED, data) }
func text(b []byte, typ uint16, s string) []byte      { return attr(b, typ, append([]byte(s), 0)) }
func be32(v uint32) []byte                            { return binary.BigEndian.AppendUint32(nil, v) }

// eachAttr reads attributes; it stops at one that is cut short.
func eachAttr(b []byte, f func(typ uint16, data []byte)) {
	for len(b) >= unix.NLA_HDRLEN {
		n := int(binary.NativeEndian.Uint16(b))
		typ := binary.NativeEndian.Uint16(b[2:])
		if n < unix.NLA_HDRLEN || n > len(b) {
			return
		}
		f(typ&^uint16(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.NLA_HDRLEN:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// nfgen is struct nfgenmsg.
func nfgen(family uint8, resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{family, 0}, resource)
}
