package h2

import (
	"errors"
	"io"
	"slices"
	"sync"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// strm is one stream, on either side. It is used for one exchange after the
// other; gen tells them apart.
type strm struct {
	c     *conn
	rcond sync.Cond // waits of who reads: head, body
	wcond sync.Cond // waits of who writes: window, room

	// Set before the stream is known to others, then read-only.
	id  uint32
	gen uint64 // guarded by c.mu: counts exchanges

	arena []byte         // strings of the heads
	lists []stream.Field // of the head, with room for what is added

	// Guarded by c.mu.
	open      bool // in the table
	pins      int  // who still has it in hand beside its owner
	over      bool // the owner is done with it
	err       error
	recv      queue
	recvOpen  int64 // window: what the peer may still send
	recvBack  int64 // consumed and not yet given back
	left      int64 // of the declared length, still to come; -1: not declared
	recvEnd   bool  // the peer's END_STREAM has come
	unread    bool  // nobody reads any more: drop what comes
	trailers  stream.Header
	headDone  bool // client: the final response head has come
	sendOpen  int64
	sendLeft  int64 // of the declared length, still to be sent; -1: not declared
	sendEnd   bool
	sendErr   error // writes fail
	noBody    bool  // server: the response has none whatever is written
	headSent  bool
	tail      int    // offset of the last frame in out.buf
	tailGen   uint64 // the buffer that tail is in
	inWaiting bool
	blockedAt int64 // since when the peer's window is shut; 0: it is not
	began     int64 // by c.now

	server serverPart
	client clientPart

	handles []bodyHandle
}

// newStream gives a stream, used or new; the caller holds mu.
func (c *conn) newStream() *strm {
	if n := len(c.free); n > 0 {
		st := c.free[n-1]
		c.free = c.free[:n-1]
		return st
	}
	st := &strm{c: c}
	st.rcond.L, st.wcond.L = &c.mu, &c.mu
	if !c.client {
		st.server.life = new(stream.Scope)
	}
	return st
}

// start makes the stream live; the caller holds mu.
func (st *strm) start(id uint32) {
	c := st.c
	st.id = id
	st.open, st.over = true, false
	st.err, st.sendErr = nil, nil
	st.recvOpen, st.recvBack = streamWindow, 0
	st.left, st.sendLeft = -1, -1
	st.recvEnd, st.unread, st.headDone = false, false, false
	st.sendEnd, st.noBody, st.headSent = false, false, false
	st.sendOpen = c.peerWindow
	st.tailGen = ^uint64(0)
	st.blockedAt, st.began = 0, c.now
	c.streams.put(st)
	if c.idleSince = 0; c.pingAfter > 0 && c.streams.n == 1 { // silence counts from here on
		c.now = c.clock()
		c.lastRead = c.now
		c.arm(c.now + c.pingAfter)
	}
}

// release gives the stream back, where nobody has it in hand; the caller holds
// mu. Every string of the exchange is unreadable from here on.
func (st *strm) release() {
	if !st.over || st.pins > 0 || st.open {
		return
	}
	c := st.c
	st.over = false // once
	st.gen++
	c.credit(st.recv.take() + st.recv.drop())
	stream.Poisoned(st.arena[:cap(st.arena)])
	if cap(st.arena) > 16<<10 {
		st.arena = nil
	}
	st.arena = st.arena[:0]
	if cap(st.lists) > 256 {
		st.lists = nil
	}
	clear(st.lists)
	st.lists = st.lists[:0]
	st.trailers = nil
	st.err, st.sendErr = nil, nil
	if !c.client {
		st.server.life = st.server.life.Renew()
	}
	if len(c.free) < defaultMaxStreams && c.err == nil {
		c.free = append(c.free, st)
	}
}

func (st *strm) unpin() {
	st.pins--
	st.release()
}

// work is what a worker does for the stream.
func (st *strm) work() {
	if st.c.client {
		st.sendBody()
	} else {
		st.exchange()
	}
}

// end makes everything on the stream fail and takes it out of the table without
// a word to the peer; the caller holds mu, and calls cancelled afterwards.
func (st *strm) end(err error) {
	if st.err == nil {
		st.err = err
	}
	if st.sendErr == nil {
		st.sendErr = err
	}
	st.c.remove(st, false)
	st.rcond.Broadcast()
	st.wcond.Broadcast()
}

// cancelled tells the exchange; without mu. The caller has pinned the stream,
// and it is unpinned here.
func (st *strm) cancelled(err error) {
	if !st.c.client {
		st.server.life.Cancel(err)
	}
	st.c.mu.Lock()
	st.unpin()
	st.c.mu.Unlock()
}

// kill resets the stream; the caller holds mu, and calls cancelled afterwards
// where it was not the exchange itself that ends it.
func (st *strm) kill(code ErrCode, err error) {
	if st.open {
		st.c.out.reset(st.id, code)
		st.c.remove(st, true)
	}
	st.end(err)
	st.c.out.kick()
}

// closeRecv notes the peer's END_STREAM; the caller holds mu.
func (st *strm) closeRecv() {
	st.recvEnd = true
	st.rcond.Broadcast()
	if st.sendEnd {
		st.completed()
	}
}

// completed ends a stream that both sides have ended; the caller holds mu.
func (st *strm) completed() {
	st.c.bucket.gain(gainStream)
	st.c.remove(st, false)
}

// ---- receiving

// got takes a part of a DATA frame's payload; the caller holds mu.
func (st *strm) got(p []byte) {
	if st.unread || st.err != nil {
		st.c.credit(len(p))
		return
	}
	st.recv.push(p)
	st.rcond.Broadcast()
}

// consumed gives bytes back to the windows; the caller holds mu.
func (st *strm) consumed(n int) {
	if n == 0 {
		return
	}
	st.c.credit(n)
	if st.recvBack += int64(n); st.recvBack >= streamWindow/4 && st.open && !st.recvEnd {
		st.c.out.windowUpdate(st.id, uint32(st.recvBack))
		st.recvOpen += st.recvBack
		st.recvBack = 0
	}
}

var (
	errBodyClosed = errors.New("h2: the body was closed")
	errOver       = errors.New("h2: the exchange is over: its body can no longer be read")
)

// ready says whether next would not block; the caller holds mu.
func (st *strm) ready() bool {
	return !st.recv.empty() || st.recvEnd || st.err != nil || st.unread
}

// await waits until there is something to read; the caller holds mu.
func (st *strm) await(gen uint64) error {
	for {
		switch {
		case st.gen != gen:
			return errOver
		case st.unread:
			return errBodyClosed
		case !st.recv.empty():
			return nil
		case st.err != nil:
			return st.err
		case st.recvEnd:
			return io.EOF
		}
		st.rcond.Wait()
	}
}

// bodyHandle is what one exchange's user has of a body. It is used once, so that
// what is done with it too late meets no other exchange.
type bodyHandle struct {
	st  *strm
	gen uint64
}

var _ stream.Chunks = (*bodyHandle)(nil)

// handle makes the exchange's; the caller holds mu or is the only user.
func (st *strm) handle() *bodyHandle {
	if len(st.handles) == 0 {
		st.handles = make([]bodyHandle, 16)
	}
	h := &st.handles[0]
	st.handles = st.handles[1:]
	h.st, h.gen = st, st.gen
	return h
}

// Next implements stream.Chunks.
func (h *bodyHandle) Next() ([]byte, error) {
	st := h.st
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if st.gen != h.gen {
		return nil, errOver
	}
	st.consumed(st.recv.take())
	if !st.ready() {
		st.beforeWait()
	}
	if err := st.await(h.gen); err != nil {
		return nil, err
	}
	b := st.recv.lend()
	if st.recvEnd && len(st.recv.bufs) == 1 && st.err == nil {
		return b, io.EOF
	}
	return b, nil
}

// Ready implements stream.Chunks.
func (h *bodyHandle) Ready() bool {
	h.st.c.mu.Lock()
	defer h.st.c.mu.Unlock()
	return h.st.gen != h.gen || h.st.ready()
}

// Read implements stream.Body.
func (h *bodyHandle) Read(p []byte) (int, error) {
	st := h.st
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if st.gen != h.gen {
		return 0, errOver
	}
	if len(p) == 0 {
		return 0, nil
	}
	st.consumed(st.recv.take())
	if !st.ready() {
		st.beforeWait()
	}
	if err := st.await(h.gen); err != nil {
		return 0, err
	}
	n := 0
	for n < len(p) {
		m := copy(p[n:], st.recv.peek())
		if m == 0 {
			break
		}
		st.recv.skip(m)
		n += m
	}
	st.consumed(n)
	return n, nil
}

// Trailers implements stream.Body.
func (h *bodyHandle) Trailers() stream.Header {
	h.st.c.mu.Lock()
	defer h.st.c.mu.Unlock()
	if h.st.gen != h.gen || !h.st.recvEnd {
		return nil
	}
	return h.st.trailers
}

// Close implements stream.Body: a client's stream is over with it; a server's
// only reads no more.
func (h *bodyHandle) Close() error {
	st, c := h.st, h.st.c
	if c.client {
		return st.finishClient(h.gen)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if st.gen == h.gen && !st.unread {
		st.unread = true
		st.rcond.Broadcast()
	}
	return nil
}

// beforeWait sends what the peer may be waiting for; the caller holds mu.
func (st *strm) beforeWait() {
	if !st.c.client {
		st.sayContinue()
	}
	st.c.out.kick()
}

// ---- sending

var (
	errInterrupted = errors.New("h2: the write was interrupted")
	errSendClosed  = errors.New("h2: the stream's own side is ended")
	errTooLong     = errors.New("h2: a body longer than its declared length")
	errTooShort    = errors.New("h2: a body shorter than its declared length")
)

// room is how many bytes of DATA may be appended now; the caller holds mu.
func (st *strm) room(n int) int {
	c := st.c
	return int(min(int64(n), int64(c.peerFrame), st.sendOpen, c.sendWindow, int64(outBound-len(c.out.buf))))
}

// data appends a DATA frame; the caller holds mu and has asked room.
func (st *strm) data(p []byte, more bool) {
	c := st.c
	st.tail, st.tailGen = len(c.out.buf), c.out.gen
	c.out.buf = append(appendFrame(c.out.buf, len(p), frameData, 0, st.id), p...)
	st.sendOpen -= int64(len(p))
	c.sendWindow -= int64(len(p))
	st.blockedAt = 0
	if len(p) >= starved || !more {
		c.bucket.gain(gainSent)
	}
	if len(c.out.buf) >= outEager {
		c.out.kick()
	}
}

// canSend says why nothing may be sent; the caller holds mu.
func (st *strm) canSend() error {
	if st.sendErr != nil {
		return st.sendErr
	}
	if st.sendEnd {
		return errSendClosed
	}
	return nil
}

// put writes p, waiting for windows and room; the caller holds mu. With wait
// false it returns how much could be written at once.
func (st *strm) put(p []byte, wait bool) (n int, err error) {
	n, err = st.fill(p, wait)
	if c := st.c; len(c.waiting) > 0 {
		c.wakeWaiting()
	}
	return n, err
}

func (st *strm) fill(p []byte, wait bool) (n int, err error) {
	for gen := st.gen; n < len(p); {
		if st.gen != gen {
			return n, errOver
		}
		if err := st.canSend(); err != nil {
			return n, err
		}
		m := st.room(len(p) - n)
		if m > 0 {
			st.data(p[n:n+m], n+m < len(p))
			n += m
			continue
		}
		if !wait {
			return n, nil
		}
		st.awaitRoom()
	}
	return n, nil
}

// awaitRoom waits for a change; the caller holds mu.
func (st *strm) awaitRoom() {
	c := st.c
	if !st.inWaiting && st.sendOpen > 0 { // else its own window's change wakes it
		st.inWaiting = true
		c.waiting = append(c.waiting, st)
	}
	if st.blockedAt == 0 && min(st.sendOpen, c.sendWindow) <= 0 {
		st.blockedAt = c.clock()
		c.arm(st.blockedAt + c.write)
	}
	c.out.kick()
	st.wcond.Wait()
	if st.inWaiting { // woken by something else: who waits must really wait
		st.inWaiting = false
		c.waiting = slices.DeleteFunc(c.waiting, func(o *strm) bool { return o == st })
	}
}

// endSend ends our side: by a flag on the last frame where that has not left.
// The caller holds mu.
func (st *strm) endSend() {
	c := st.c
	if st.tailGen == c.out.gen && st.tail < len(c.out.buf) {
		c.out.buf[st.tail+4] |= flagEndStream
	} else {
		c.out.buf = appendFrame(c.out.buf, 0, frameData, flagEndStream, st.id)
	}
	st.sendEnd = true
	if st.recvEnd {
		st.completed()
	}
}

// sendTrailers ends our side with a trailer section; the caller holds mu.
func (st *strm) sendTrailers(h stream.Header) {
	o := &st.c.out
	at := o.beginBlock(st.id, flagEndStream)
	for i := range h {
		if len(h[i].Name) > 0 && h[i].Name[0] != ':' {
			o.buf = st.c.enc.field(o.buf, h[i].Name, h[i].Value)
		}
	}
	if len(o.buf) == at+headLen { // an empty block is one, too
		o.buf = o.buf[:at]
		st.endSend()
		return
	}
	o.endBlock(at)
	st.sendEnd = true
	if st.recvEnd {
		st.completed()
	}
}

// write writes a part of a message whose length may be declared; the caller
// holds mu.
func (st *strm) write(p []byte) (int, error) {
	if st.sendLeft >= 0 && int64(len(p)) > st.sendLeft {
		return 0, errTooLong
	}
	n, err := st.put(p, true)
	if st.sendLeft >= 0 {
		st.sendLeft -= int64(n)
	}
	return n, err
}

// tunnel is an upgraded stream (RFC 8441, section 5).
type tunnel struct{ h *bodyHandle }

var _ stream.Tunnel = (*tunnel)(nil)

func (t *tunnel) Read(p []byte) (int, error) { return t.h.Read(p) }

// Write puts the bytes on the wire: nobody flushes a tunnel.
func (t *tunnel) Write(p []byte) (int, error) {
	st := t.h.st
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if st.gen != t.h.gen {
		return 0, errOver
	}
	n, err := st.put(p, true)
	st.c.out.kick()
	return n, err
}

// CloseWrite ends our direction; the other goes on.
func (t *tunnel) CloseWrite() error {
	st := t.h.st
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if st.gen != t.h.gen {
		return errOver
	}
	if err := st.canSend(); err != nil {
		if err == errSendClosed {
			return nil
		}
		return err
	}
	st.endSend()
	st.c.out.kick()
	return nil
}

// Close ends both directions: with a reset where one has not ended.
func (t *tunnel) Close() error {
	st, c := t.h.st, t.h.st.c
	if c.client {
		return st.finishClient(t.h.gen)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if st.gen == t.h.gen && st.open {
		st.kill(Cancel, errClosed)
	}
	return nil
}

// streamError is what a stream's user is told when the connection ends.
func streamError(err error, st *strm) error {
	if st.c.client {
		return st.lost(err)
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
