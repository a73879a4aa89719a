package cluster

import (
	"errors"
	"sync"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// maxReplay is how much of a request's body is kept for another attempt.
const maxReplay = 64 << 10

var errSuperseded = errors.New("cluster: the request is sent by another attempt")

// replay lets several attempts, one after the other, read one body: what was
// read is kept until it is more than maxReplay or the request is committed.
type replay struct {
	mu       sync.Mutex
	cond     sync.Cond
	src      stream.Body
	kept     []byte
	lost     bool  // bytes were read that are not kept
	err      error // what src ended with
	reading  bool  // one attempt is in src.Read
	current  *replayView
	commit   bool // there will be no further attempt
	srcClose sync.Once
}

// newReplay returns nil for a request without a body.
func newReplay(b stream.Body) *replay {
	if b == nil {
		return nil
	}
	r := &replay{src: b}
	r.cond.L = &r.mu
	return r
}

// view starts an attempt; earlier ones read nothing any more.
func (r *replay) view() stream.Body {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.current = &replayView{r: r}
	r.cond.Broadcast()
	return r.current
}

// again says whether another attempt could send the whole body.
func (r *replay) again() bool {
	if r == nil {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.lost && !r.commit
}

// final says that the present attempt is the last: nothing more is kept, and
// closing it closes the body.
func (r *replay) final() {
	if r == nil {
		return
	}
	r.mu.Lock()
	r.commit = true
	closed := r.current != nil && r.current.closed
	r.mu.Unlock()
	if closed {
		r.closeSrc()
	}
}

func (r *replay) closeSrc() { r.srcClose.Do(func() { r.src.Close() }) }

// replayView is the body as one attempt sees it.
type replayView struct {
	r      *replay
	off    int // of kept
	closed bool
}

func (v *replayView) Read(p []byte) (int, error) {
	r := v.r
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		switch {
		case v.closed || r.current != v:
			return 0, errSuperseded
		case v.off < len(r.kept):
			n := copy(p, r.kept[v.off:])
			v.off += n
			if r.commit && v.off == len(r.kept) {
				r.kept, v.off = nil, 0
			}
			return n, nil
		case r.err != nil:
			return 0, r.err
		case r.reading:
			r.cond.Wait() // an earlier attempt's read: its bytes will be kept
			continue
		}
		return v.fetch(p)
	}
}

// fetch reads from the source; the caller holds r.mu.
func (v *replayView) fetch(p []byte) (int, error) {
	r := v.r
	r.reading = true
	r.mu.Unlock()
	n, err := r.src.Read(p)
	r.mu.Lock()
	r.reading = false
	r.cond.Broadcast()
	r.err = err
	if r.current != v { // superseded while reading: the bytes are the next one's
		r.kept = append(r.kept, p[:n]...)
		return 0, errSuperseded
	}
	switch {
	case r.commit || r.lost:
		r.lost = r.lost || n > 0
	case len(r.kept)+n > maxReplay:
		r.lost, r.kept, v.off = true, nil, 0
	default:
		r.kept = append(r.kept, p[:n]...)
		v.off += n
	}
	return n, err
}

func (v *replayView) Trailers() stream.Header { return v.r.src.Trailers() }

func (v *replayView) Close() error {
	r := v.r
	r.mu.Lock()
	v.closed = true
	end := r.commit && r.current == v
	r.cond.Broadcast()
	r.mu.Unlock()
	if end {
		r.closeSrc()
	}
	return nil
}
