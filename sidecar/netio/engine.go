package netio

import (
	"sync"
	"time"
)

// Pending is what was read ahead of an engine, to find out what it is: N bytes
// of Buf. The zero value is none. Whoever is given one owns Buf and puts it
// back.
type Pending struct {
	Buf *Buf
	N   int
}

// Bytes are the bytes read ahead, valid until Buf is put back.
func (p Pending) Bytes() []byte {
	if p.Buf == nil {
		return nil
	}
	return p.Buf[:p.N]
}

// Release puts the buffer back, where there is one.
func (p *Pending) Release() {
	if p.Buf != nil {
		PutBuf(p.Buf)
	}
	*p = Pending{}
}

// maxVecs is how many buffers one gathering write takes; longer lists are
// written in several.
const maxVecs = 8

// alive is a Conn that can look at its peer without blocking.
type alive interface{ alive() bool }

// Alive says, without blocking, whether an idle connection can be used again:
// false where the peer has ended or reset it, or has sent bytes that nobody
// asked for. A connection that cannot tell is said to be alive. Not to be called
// while somebody reads.
func Alive(c Conn) bool {
	if a, ok := unwrap(c).(alive); ok {
		return a.alive()
	}
	return true
}

// buffersWriter is a Conn with a gathering write. It keeps nothing of bufs.
type buffersWriter interface {
	writeBuffers(bufs [][]byte) (int64, error)
}

// vectors carries the buffers of a gathering write, so that the caller's list
// stays on its stack.
type vectors [maxVecs][]byte

var vectorsPool = sync.Pool{New: func() any { return new(vectors) }}

// WriteBuffers writes all bytes of bufs in their order, in one system call where
// the kernel has one for it and they are eight at the most. It keeps none of
// them.
func WriteBuffers(c Conn, bufs ...[]byte) (total int64, err error) {
	if o, ok := c.(*osConn); ok && len(bufs) <= maxVecs {
		return o.writeBuffers(bufs)
	}
	w, ok := c.(buffersWriter)
	if !ok {
		for _, b := range bufs {
			m, err := c.Write(b)
			total += int64(m)
			if err != nil {
				return total, err
			}
		}
		return total, nil
	}
	v := vectorsPool.Get().(*vectors)
	for len(bufs) > 0 && err == nil {
		k := copy(v[:], bufs)
		bufs = bufs[k:]
		var m int64
		m, err = w.writeBuffers(v[:k])
		total += m
	}
	clear(v[:])
	vectorsPool.Put(v)
	return total, err
}

func (c *memConn) alive() bool {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	in, me := &c.p.flow[1-c.side], &c.p.end[c.side]
	arrived := len(in.segs) > 0 && !c.p.dead && !in.segs[0].due.After(time.Now())
	failed := me.err != nil && !me.errDue.After(time.Now())
	return !me.closed && !me.finRead && !arrived && !failed
}
