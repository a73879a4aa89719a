package h2

import (
	"io"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// sendReady sends what of the body is there and fits. It says whether the body
// is done with: sent, or of no use any more.
func (st *strm) sendReady() bool {
	p := &st.client
	if p.chunks == nil {
		return false
	}
	for p.chunks.Ready() {
		b, err := p.chunks.Next()
		if over := st.sendPart(b, err, false); over {
			return true
		}
		if len(p.rest) > 0 {
			return false
		}
	}
	return false
}

// sendBody sends the rest of the body; it is a worker's.
func (st *strm) sendBody() {
	p, c := &st.client, st.c
	if over := len(p.rest) > 0 && st.sendPart(p.rest, p.restErr, true); over {
		return
	}
	if p.chunks != nil {
		for {
			if !p.chunks.Ready() {
				c.mu.Lock()
				c.out.kick()
				c.mu.Unlock()
			}
			if b, err := p.chunks.Next(); st.sendPart(b, err, true) {
				return
			}
		}
	}
	buf := netio.GetBuf()
	for {
		n, err := p.body.Read(buf[:])
		over := st.sendPart(buf[:n], err, true)
		if over {
			break
		}
		c.mu.Lock()
		c.out.kick() // whether more comes soon nobody knows
		c.mu.Unlock()
	}
	netio.PutBuf(buf)
}

// sendPart sends a part of the body, which ends with err. It says whether the
// sending is over; the stream may then be another's.
func (st *strm) sendPart(b []byte, err error, wait bool) (over bool) {
	c, p := st.c, &st.client
	c.mu.Lock()
	defer c.mu.Unlock()
	p.rest, p.restErr = nil, nil
	if st.sendLeft >= 0 && int64(len(b)) > st.sendLeft {
		err = errTooLong
		b = nil
	}
	n, serr := st.put(b, wait)
	if st.sendLeft >= 0 {
		st.sendLeft -= int64(n)
	}
	switch {
	case serr != nil:
		st.sent()
		return true
	case n < len(b):
		p.rest, p.restErr = b[n:], err
		return false
	case err == nil:
		return false
	}
	if cerr := st.canSend(); cerr != nil {
		st.sent()
		return true
	}
	if err == io.EOF && st.sendLeft > 0 {
		err = errTooShort
	}
	if err != io.EOF {
		st.kill(Cancel, failure(stream.FailedRequest, true, "the request's body did not come to its end", err))
		st.sent()
		return true
	}
	if t := p.body.Trailers(); len(t) > 0 {
		st.sendTrailers(t)
	} else {
		st.endSend()
	}
	c.out.kick()
	st.sent()
	return true
}

// sent notes that nobody sends any more; the caller holds mu.
func (st *strm) sent() {
	p := &st.client
	p.sending, p.body, p.chunks = false, nil, nil
	st.unpin()
}
