package h2

import "github.com/parrel-mesh/parrel/sidecar/netio"

// queue holds received bytes of one stream until somebody reads them. It is
// filled densely, so that it holds hardly more memory than bytes: at most one
// buffer per stream is not full.
type queue struct {
	bufs []*netio.Buf
	r, w int // offsets in the first and the last buffer
	lent int // bytes that the reader still looks at, from r
}

func (q *queue) empty() bool {
	switch len(q.bufs) {
	case 0:
		return true
	case 1:
		return q.r+q.lent == q.w
	}
	return false
}

func (q *queue) push(p []byte) {
	for len(p) > 0 {
		if len(q.bufs) == 0 || q.w == netio.BufSize {
			q.bufs = append(q.bufs, netio.GetBuf())
			q.w = 0
		}
		n := copy(q.bufs[len(q.bufs)-1][q.w:], p)
		q.w += n
		p = p[n:]
	}
}

// take ends the loan before and says how many bytes that were.
func (q *queue) take() int {
	n := q.lent
	q.lent = 0
	q.skip(n)
	return n
}

func (q *queue) skip(n int) {
	q.r += n
	if last := len(q.bufs) == 1; len(q.bufs) > 0 && (last && q.r == q.w || q.r == netio.BufSize) {
		netio.PutBuf(q.bufs[0])
		q.bufs[0] = nil
		if last {
			q.bufs = q.bufs[:0]
			q.w = 0
		} else {
			q.bufs = append(q.bufs[:0], q.bufs[1:]...)
		}
		q.r = 0
	}
}

// lend gives the next bytes, nil if there are none.
func (q *queue) lend() []byte {
	b := q.peek()
	q.lent = len(b)
	return b
}

func (q *queue) peek() []byte {
	switch len(q.bufs) {
	case 0:
		return nil
	case 1:
		return q.bufs[0][q.r:q.w]
	}
	return q.bufs[0][q.r:]
}

// drop forgets everything and says how many bytes that were.
func (q *queue) drop() int {
	n := 0
	for len(q.bufs) > 0 {
		m := len(q.peek())
		q.skip(m)
		n += m
	}
	q.r, q.w, q.lent = 0, 0, 0
	return n
}
