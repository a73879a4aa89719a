package cluster

import (
	"errors"
	"io"
	"sync"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/pool"
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// maxReplay is how much of a request's body is kept for another attempt, in
// bytes: keptBufs pooled buffers.
const (
	keptBufs  = 4
	maxReplay = keptBufs * netio.BufSize
)

var errSuperseded = errors.New("cluster: the request is sent by another attempt")

// replay lets several attempts, one after the other, read one body: what was
// read is kept until it is more than maxReplay or the request is committed. A
// body that its codec lends whole at the first call is not copied at all. The
// zero value is a request without a body.
type replay struct {
	mu     sync.Mutex
	cond   sync.Cond
	src    stream.Body   // nil: none
	lender stream.Chunks // src, where it lends

	// Guarded by mu.
	whole    []byte // everything, lent by src
	kept     [keptBufs]*netio.Buf
	n        int   // bytes in kept
	lost     bool  // bytes were read that are not kept
	err      error // what src ended with
	reading  bool  // one attempt is in src
	current  *replayView
	views    int
	commit   bool // there will be no further attempt
	over     bool // the exchange is: nobody reads any more
	srcEnded bool // src was closed

	first replayView // the first attempt's, which most requests end with
}

// begin takes a request's body; nil is none.
func (r *replay) begin(b stream.Body) {
	r.src = b
	r.lender, _ = b.(stream.Chunks)
	r.cond.L = &r.mu
}

// view starts an attempt; earlier ones read nothing any more. Nil without a
// body.
func (r *replay) view() stream.Body {
	if r.src == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.next()
}

// next is view; the caller holds mu.
func (r *replay) next() *replayView {
	v := &r.first
	if r.views > 0 {
		v = &replayView{}
		r.cond.Broadcast()
	}
	r.views++
	v.r = r
	r.current = v
	return v
}

// again says whether another attempt could send the whole body.
func (r *replay) again() bool {
	if r.src == nil {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.lost && !r.commit
}

// final says that the present attempt is the last: nothing more is kept, and
// closing it closes the body.
func (r *replay) final() {
	if r.src == nil {
		return
	}
	r.mu.Lock()
	r.commit = true
	end := r.current != nil && r.current.closed && !r.srcEnded
	r.srcEnded = r.srcEnded || end
	r.mu.Unlock()
	if end {
		_ = r.src.Close()
	}
}

// release ends the replay with the exchange, gives the buffers back and says
// whether nobody can hold a part of it: who sends may come again until it was
// told the end or has closed its view, and an attempt that was superseded may
// still be at work.
func (r *replay) release() bool {
	if r.src == nil {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	if r.views > 1 || r.reading || r.views == 1 && !r.first.closed && !r.first.done {
		return false
	}
	for i, b := range r.kept {
		if b != nil {
			netio.PutBuf(b)
			r.kept[i] = nil
		}
	}
	return true
}

// replayView is the body as one attempt sees it. It lends.
type replayView struct {
	r       *replay
	off     int // of whole or kept
	closed  bool
	done    bool   // Next has told the end
	rest    []byte // what Read has not copied yet
	restErr error
}

var (
	_ stream.Chunks = (*replayView)(nil)
	_ pool.Again    = (*replayView)(nil)
)

// Next implements [stream.Chunks].
func (v *replayView) Next() ([]byte, error) {
	r := v.r
	r.mu.Lock()
	defer r.mu.Unlock()
	b, err := v.next()
	v.done = v.done || err != nil
	return b, err
}

// next is Next; the caller holds r.mu.
func (v *replayView) next() ([]byte, error) {
	r := v.r
	for {
		switch {
		case v.closed || r.over || r.current != v:
			return nil, errSuperseded
		case r.whole != nil && v.off == 0:
			v.off = len(r.whole)
			return r.whole, r.err
		case v.off < r.n:
			b := r.kept[v.off/netio.BufSize][v.off%netio.BufSize : min(netio.BufSize, r.n-v.off/netio.BufSize*netio.BufSize)]
			if v.off += len(b); v.off == r.n {
				return b, r.err
			}
			return b, nil
		case r.err != nil:
			return nil, r.err
		case r.reading:
			r.cond.Wait() // an earlier attempt's read: its bytes will be kept
			continue
		}
		if b, done := v.fetch(); done {
			return b, r.err
		}
	}
}

// fetch takes the next bytes from the source. done: b is for the caller, not
// kept; else what came is kept, or nothing did. The caller holds r.mu.
func (v *replayView) fetch() (b []byte, done bool) {
	r := v.r
	var to []byte
	if r.lender == nil {
		to = r.room()
	}
	keep := !r.lost && !r.commit
	r.reading = true
	var err error
	if r.lender != nil {
		r.mu.Unlock()
		b, err = r.lender.Next()
		r.mu.Lock()
	} else {
		r.mu.Unlock()
		var n int
		n, err = r.src.Read(to)
		b = to[:n]
		r.mu.Lock()
	}
	r.reading = false
	r.err = err
	r.cond.Broadcast()
	switch {
	case len(b) == 0:
		return nil, false
	case keep && err == io.EOF && r.lender != nil && r.n == 0:
		r.whole = b
		return nil, false
	case keep && r.keep(b):
		return nil, false
	}
	// A superseded attempt comes here only with more than can be kept; then
	// nobody can send the body again, and its successor's read fails.
	r.lost = true
	if r.current != v {
		r.err = errSuperseded
		return nil, true
	}
	return b, true
}

// room is where the next bytes of a source that does not lend go: behind what
// is kept, or, where nothing is kept any more, the first buffer. The caller
// holds mu.
func (r *replay) room() []byte {
	i, off := r.n/netio.BufSize, r.n%netio.BufSize
	r.lost = r.lost || i == keptBufs
	if r.lost || r.commit {
		i, off = 0, 0
		if r.n > 0 { // may still be lent to an earlier attempt
			r.kept[0], r.n = nil, 0
		}
	}
	if r.kept[i] == nil {
		r.kept[i] = netio.GetBuf()
	}
	return r.kept[i][off:]
}

// keep adds bytes to what is kept, if they fit. The caller holds mu.
func (r *replay) keep(b []byte) bool {
	if r.n+len(b) > maxReplay {
		return false
	}
	for len(b) > 0 {
		i, off := r.n/netio.BufSize, r.n%netio.BufSize
		if r.kept[i] == nil {
			r.kept[i] = netio.GetBuf()
		}
		n := copy(r.kept[i][off:], b) // onto itself where room gave the place
		r.n += n
		b = b[n:]
	}
	return true
}

// Ready implements [stream.Chunks].
func (v *replayView) Ready() bool {
	r := v.r
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case len(v.rest) > 0, v.closed, r.over, r.current != v, r.err != nil, v.off < r.n:
		return true
	case r.reading, r.lender == nil:
		return false
	}
	return r.lender.Ready()
}

// Read implements [stream.Body].
func (v *replayView) Read(p []byte) (int, error) {
	if len(v.rest) == 0 {
		if v.restErr == nil {
			v.rest, v.restErr = v.Next()
		}
		if len(v.rest) == 0 {
			return 0, v.restErr
		}
	}
	n := copy(p, v.rest)
	if v.rest = v.rest[n:]; len(v.rest) == 0 {
		return n, v.restErr
	}
	return n, nil
}

// Trailers implements [stream.Body].
func (v *replayView) Trailers() stream.Header { return v.r.src.Trailers() }

// Again implements [pool.Again].
func (v *replayView) Again() (stream.Body, bool) {
	r := v.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lost || r.commit || r.current != v {
		return nil, false
	}
	return r.next(), true
}

// Close implements [stream.Body].
func (v *replayView) Close() error {
	r := v.r
	r.mu.Lock()
	v.closed = true
	end := r.commit && r.current == v && !r.srcEnded
	r.srcEnded = r.srcEnded || end
	r.cond.Broadcast()
	r.mu.Unlock()
	if end {
		return r.src.Close()
	}
	return nil
}
