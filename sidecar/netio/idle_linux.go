package netio

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// poller is an epoll of the Idler's own, itself waited for in the runtime's
// poller, so that it takes no thread.
type poller struct {
	f      *os.File
	rc     syscall.RawConn
	fd     int
	events [128]unix.EpollEvent
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	p := &poller{f: os.NewFile(uintptr(fd), "epoll"), fd: fd}
	if p.rc, err = p.f.SyscallConn(); err != nil {
		p.f.Close()
		return nil, err
	}
	return p, nil
}

func (p *poller) close() { _ = p.f.Close() }

// wait gives the next events; an error means that the poller was closed.
func (p *poller) wait() ([]unix.EpollEvent, error) {
	var n int
	err := p.rc.Read(func(fd uintptr) bool {
		for {
			var err error
			if n, err = unix.EpollWait(int(fd), p.events[:], 0); err != unix.EINTR {
				return n > 0 || err != nil
			}
		}
	})
	return p.events[:max(n, 0)], err
}

// watch arms one report for the descriptor.
func (p *poller) watch(fd int, epoch uint32, known bool) error {
	e := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(fd), Pad: int32(epoch)}
	if known {
		if err := unix.EpollCtl(p.fd, unix.EPOLL_CTL_MOD, fd, &e); err != unix.ENOENT {
			return err
		}
	}
	return unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &e)
}

// parkSocket enters c in the epoll. Closing a descriptor takes it out of every
// epoll without a word, so [osConn.Close] wakes what is parked: it first says
// that it closes and then takes the waker, and here the waker is entered before
// that is asked, so one of the two sees the other.
func (i *Idler) parkSocket(c *osConn, w Waker) bool {
	i.mu.Lock()
	if i.closed {
		i.mu.Unlock()
		return false
	}
	if i.poll == nil {
		p, err := newPoller()
		if err != nil { // no descriptor left
			i.mu.Unlock()
			return false
		}
		i.poll = p
		i.wg.Go(func() { i.run(p) })
	}
	i.mu.Unlock()
	known := c.idler.Swap(i) == i
	armed := false
	err := c.rc.Control(func(ufd uintptr) {
		fd := int(ufd)
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.closed {
			return
		}
		for fd >= len(i.slots) {
			i.slots = append(i.slots, slot{})
			i.slots = i.slots[:cap(i.slots)]
		}
		i.epoch++
		i.slots[fd] = slot{c, w, i.epoch}
		i.parked++
		c.parkFD.Store(int32(fd) + 1)
		if i.poll.watch(fd, i.epoch, known) != nil {
			i.slots[fd] = slot{}
			i.parked--
			return
		}
		armed = true
	})
	if err == nil && !armed {
		return false // the kernel is out of memory, or the Idler closes
	}
	if err != nil { // closed
		w.Wake()
		return true
	}
	if c.closing.Load() {
		i.Wake(c)
	}
	return true
}

// run reports events until the poller is closed.
func (i *Idler) run(p *poller) {
	var ready []Waker
	for {
		events, err := p.wait()
		if err != nil {
			return
		}
		ready = ready[:0]
		i.mu.Lock()
		for _, e := range events {
			if fd := int(e.Fd); fd < len(i.slots) && i.slots[fd].w != nil && i.slots[fd].epoch == uint32(e.Pad) {
				ready = append(ready, i.slots[fd].w)
				i.slots[fd] = slot{}
				i.parked--
			}
		}
		i.mu.Unlock()
		for _, w := range ready {
			w.Wake()
		}
		clear(ready)
	}
}
