package h2

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
)

// Flow-control windows that we give: enough for one stream to fill a fast
// network, small enough that a stuck application holds little memory and that
// several stuck streams do not stop their neighbours on the connection.
const (
	streamWindow = 512 << 10
	connWindow   = 4 << 20
	// protocolWindow is what both sides begin with (RFC 9113, section 6.9.2).
	protocolWindow = 1<<16 - 1
)

// Defaults of what a configuration leaves zero.
const (
	defaultMaxHeader = 60 << 10
	defaultMaxFields = 200
	// defaultMaxStreams is what a client may have open at once. Each holds a
	// goroutine, a buffer and a place upstream, and a client may make that many
	// begin with a few packets: 250 is more than a browser (100) or a gRPC channel
	// (100) ever opens, and keeps what one connection can claim below 32 MB.
	defaultMaxStreams = 250
	headerTimeout     = 10 * time.Second
	writeTimeout      = 30 * time.Second
	drainPing         = 5 * time.Second // how long the second GOAWAY waits for the answer to a PING
	linger            = time.Second     // how long the peer may take to read our last words
	trimAfter         = 5 * time.Second // without a stream: then what was kept for the next is given back
)

// side is what a server and a client do differently with what comes in. Its
// methods are called by the reader without the connection's mu.
type side interface {
	// message takes a complete header block.
	message(id uint32, endStream bool, block []byte) *connError
	// settings is called after the peer's settings changed; with mu held.
	settings()
	// leaving is called with mu held after the peer said GOAWAY.
	leaving(last uint32, code ErrCode)
	// removed is called with mu held after a stream was taken out of the table.
	removed()
	// tell is called without mu after a batch of frames.
	tell()
	// over is called when the connection is, without mu.
	over(cause error)
}

// conn is what both sides of HTTP/2 have in common: one reader, one out-buffer
// with one writer, the table of streams, windows, time-outs, the budget.
type conn struct {
	nc      netio.Conn
	client  bool
	side    side
	log     *slog.Logger
	limits  limits
	wheel   *wheel.Wheel
	timer   wheel.Timer
	idle    int64 // nanoseconds; 0: never
	headers int64 // nanoseconds
	write   int64 // nanoseconds that the peer may take to let us write
	in      input // the reader's own
	runs    workers

	mu sync.Mutex
	// All below is guarded by mu.
	out       outbox
	enc       encoder
	bucket    bucket
	err       error // the connection is over or ending
	now       int64 // the wheel's clock, as of the last batch
	lastRead  int64
	tickAt    int64 // when timer is set to; 0: not
	streams   table
	free      []*strm // for reuse
	closed    recent
	nextID    uint32 // of our own streams
	lastPeer  uint32 // the peer's highest
	idleSince int64  // 0: there are streams
	blockAt   int64  // since when a header block waits for its end; 0: none

	// Of the peer.
	peerFrame    int
	peerWindow   int64 // initial, of a stream
	peerStreams  uint32
	peerConnect  bool // takes extended CONNECT
	peerSettings bool // have come
	sendWindow   int64
	waiting      []*strm // writers that wait for room or the connection's window

	recvWindow int64 // what the peer may still send
	recvCredit int64 // consumed and not yet given back

	drain      drainState
	drainAt    int64  // when the PING of the drain was sent
	drainLast  uint32 // the last stream that is taken, in drainFinal
	closeAt    int64  // when the connection is closed whatever the peer does; 0: not
	pingAt     int64  // when our liveness PING was sent; 0: none under way
	pingAfter  int64  // nanoseconds of silence; 0: never
	pingWithin int64
}

type drainState uint8

const (
	drainNone   drainState = iota
	drainWarned            // GOAWAY(2^31-1) and PING are sent
	drainFinal             // GOAWAY with the last stream's id is sent
)

var errClosed = errors.New("h2: the connection is closed")

func (c *conn) init(nc netio.Conn, w *wheel.Wheel, s side, budget Budget, lim limits, log *slog.Logger) {
	if w == nil {
		w = wheel.New()
	}
	if lim.size <= 0 {
		lim.size = defaultMaxHeader
	}
	if lim.fields <= 0 {
		lim.fields = defaultMaxFields
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c.nc, c.side, c.wheel, c.limits, c.log = nc, s, w, lim, log
	c.timer.Init(w, c.tick)
	c.headers, c.write = int64(headerTimeout), int64(writeTimeout)
	c.now = c.clock()
	c.lastRead, c.idleSince = c.now, c.now
	c.bucket.init(budget, c.now)
	c.enc.init()
	c.in.dec.table.max = tableSize
	c.peerFrame, c.peerWindow, c.peerStreams, c.sendWindow = maxFrame, protocolWindow, 100, protocolWindow
	c.recvWindow = connWindow
	c.out.init(c)
	c.runs.init(c)
	c.nextID = 1
}

// greet queues our settings and the connection's window; the caller holds mu or
// nobody else knows c.
func (c *conn) greet(maxStreams uint32) {
	b := c.out.buf
	if c.client {
		b = append(b, Preface...)
	}
	head := len(b)
	b = appendFrame(b, 0, frameSettings, 0, 0)
	if c.client {
		b = appendSetting(b, settingEnablePush, 0)
	} else {
		b = appendSetting(b, settingMaxStreams, maxStreams)
		b = appendSetting(b, settingConnectProtocol, 1)
	}
	b = appendSetting(b, settingInitialWindow, streamWindow)
	b = appendSetting(b, settingMaxHeaderList, uint32(c.limits.size))
	putLength(b[head:], len(b)-head-headLen)
	b = appendFrame(b, 4, frameWindowUpdate, 0, 0)
	n := uint32(connWindow - protocolWindow)
	c.out.buf = append(b, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}

// serve runs the connection until it is over.
func (c *conn) serve(ctx context.Context, first netio.Pending) {
	stop, ok := stream.OnCancel(ctx, (*connLife)(c))
	if !ok {
		(*connLife)(c).Cancelled(context.Cause(ctx))
	}
	c.mu.Lock()
	c.arm(c.now + c.headers) // the peer's first settings
	c.blockAt = c.now
	c.out.kick()
	c.mu.Unlock()
	err := c.read(first)
	var broken *connError
	if errors.As(err, &broken) {
		c.fail(err, broken)
		c.drainInput()
	} else {
		c.fail(err, nil)
	}
	stop.Stop()
	c.side.over(c.cause())
	c.finish()
}

// cause is why the connection is over.
func (c *conn) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// connLife closes the connection when its context ends.
type connLife conn

func (l *connLife) Cancelled(cause error) {
	c := (*conn)(l)
	if cause == nil {
		cause = context.Canceled
	}
	c.fail(cause, nil)
	_ = c.nc.Close()
}

// fail ends every stream and the connection: with a GOAWAY where say is given,
// which the peer has some time to read. Only the first call does anything.
func (c *conn) fail(err error, say *connError) {
	if err == nil {
		err = errClosed
	}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	if say != nil {
		c.log.Debug("an HTTP/2 connection is ended", "code", say.code.String(), "reason", say.reason)
		c.goAway(c.lastPeer, say.code, say.reason)
		c.now = c.clock()
		c.closeAt = c.now + int64(linger)
		c.arm(c.closeAt)
	}
	var ended []*strm
	for _, st := range c.streams.slots {
		if st != nil {
			st.pins++
			ended = append(ended, st)
		}
	}
	c.streams.clear()
	for _, st := range ended {
		st.end(streamError(err, st))
	}
	c.wakeAll()
	c.out.stop()
	c.mu.Unlock()
	for _, st := range ended {
		st.cancelled(err)
	}
	if say == nil {
		_ = c.nc.SetReadDeadline(past) // whoever reads must notice
	}
}

// past is a deadline that has passed in any clock.
var past = time.Unix(1, 0)

// drainMost is how many bytes are read of a peer that was told that it is over.
const drainMost = 256 << 10

// drainInput reads what the peer still sends until it has closed or the linger
// is over, so that our GOAWAY is not overtaken by a reset of the connection. Who
// goes on sending is not listened to.
func (c *conn) drainInput() {
	for left := drainMost; left > 0; {
		b, n, err := netio.ReadBuf(c.nc)
		left -= n
		if n > 0 {
			netio.PutBuf(b)
		}
		if err != nil || n == 0 {
			return
		}
	}
}

// finish gives everything back when the reader has ended.
func (c *conn) finish() {
	c.mu.Lock()
	c.now = c.clock()
	c.closeAt = c.now + int64(linger)
	c.arm(c.closeAt)
	c.mu.Unlock()
	c.out.wait() // the writer ends with what is queued, or the tick closes under it
	_ = c.nc.Close()
	c.runs.close()
	c.mu.Lock()
	c.tickAt = -1 // no tick sets it again
	c.free = nil
	c.mu.Unlock()
	c.timer.Remove()
}

// goAway queues a GOAWAY; the caller holds mu.
func (c *conn) goAway(last uint32, code ErrCode, reason string) {
	if c.drain == drainFinal {
		last = min(last, c.drainLast) // it never grows (RFC 9113, section 6.8)
	}
	b := appendFrame(c.out.buf, 8+len(reason), frameGoAway, 0, 0)
	b = append(b, byte(last>>24), byte(last>>16), byte(last>>8), byte(last),
		byte(code>>24), byte(code>>16), byte(code>>8), byte(code))
	c.out.buf = append(b, reason...)
	c.out.kick()
}

// drainPayload marks the PING between the two GOAWAYs.
const (
	drainPayload = uint64(0x70617272_64726169)
	pingPayload  = uint64(0x70617272_616c6976)
)

// startDrain says the first GOAWAY: no new streams, please; those on their way
// are still taken (RFC 9113, section 6.8).
func (c *conn) startDrain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.drain != drainNone {
		return
	}
	c.now = c.clock()
	c.drain, c.drainAt = drainWarned, c.now
	c.goAway(maxInt31, NoError, "")
	c.out.ping(drainPayload, false)
	c.arm(c.now + int64(drainPing))
}

// drained says the second GOAWAY; the caller holds mu.
func (c *conn) drained() {
	c.drain, c.drainLast = drainFinal, c.lastPeer
	c.goAway(c.lastPeer, NoError, "")
	c.maybeDone()
}

// maybeDone ends a drained connection with its last stream; the caller holds mu.
func (c *conn) maybeDone() {
	if c.drain != drainFinal || c.streams.n > 0 || c.err != nil {
		return
	}
	c.err = io.EOF
	c.closeAt = c.now + int64(linger)
	c.arm(c.closeAt)
	c.out.stop()
}

// credit gives n consumed bytes back to the connection's window; the caller
// holds mu.
func (c *conn) credit(n int) {
	if n == 0 {
		return
	}
	if c.recvCredit += int64(n); c.recvCredit >= connWindow/8 && c.err == nil {
		c.out.windowUpdate(0, uint32(c.recvCredit))
		c.recvWindow += c.recvCredit
		c.recvCredit = 0
	}
}

// arm makes tick happen at the moment, or earlier; the caller holds mu.
func (c *conn) arm(at int64) {
	if c.tickAt == 0 || at < c.tickAt && c.tickAt > 0 {
		c.tickAt = at
		c.timer.SetAt(at)
	}
}

// remove takes a stream out of the table; the caller holds mu.
func (c *conn) remove(st *strm, ours bool) {
	if !st.open {
		return
	}
	st.open = false
	c.streams.del(st.id)
	c.closed.add(st.id, ours)
	c.side.removed()
	if c.streams.n == 0 {
		c.idleSince = c.now
		c.arm(c.now + int64(trimAfter))
		c.maybeDone()
	}
}

// tick looks at every time-out of the connection. It runs on the wheel.
func (c *conn) tick() {
	c.mu.Lock()
	if c.tickAt < 0 {
		c.mu.Unlock()
		return
	}
	c.tickAt = 0
	c.now = c.clock()
	now := c.now
	var failure error
	var say *connError
	due := func(at, after int64) bool { // since at, after so long; else it is armed
		if at == 0 || after == 0 {
			return false
		}
		if now >= at+after {
			return true
		}
		c.arm(at + after)
		return false
	}
	shut := false
	switch {
	case due(c.closeAt, 1):
		shut = true
	case c.err != nil:
		due(c.out.since, c.write)
	case due(c.out.since, c.write):
		failure = errors.New("h2: the peer takes nothing that is written")
		shut = true
	case due(c.blockAt, c.headers):
		say = &connError{EnhanceYourCalm, "a header block did not come to its end in time", stream.TooSlow}
		if !c.peerSettings {
			say = &connError{SettingsTimeout, "no settings came in time", stream.TooSlow}
		}
	case c.idleSince != 0 && due(c.idleSince, c.idle):
		say = &connError{code: NoError, reason: "idle"}
	case c.pingAt != 0 && due(c.pingAt, c.pingWithin):
		failure = errors.New("h2: the peer did not answer a PING")
		shut = true
	default:
		if c.idleSince != 0 && due(c.idleSince, int64(trimAfter)) {
			c.trim()
		}
		if c.pingAfter > 0 && c.pingAt == 0 && c.streams.n > 0 && due(c.lastRead, c.pingAfter) {
			c.pingAt = now
			c.out.ping(pingPayload, false)
			c.out.kick()
			c.arm(now + c.pingWithin)
		}
		if c.drain == drainWarned && due(c.drainAt, int64(drainPing)) {
			c.drained()
		}
		say = c.stuck(due)
	}
	c.mu.Unlock()
	switch {
	case say != nil:
		c.fail(say, say)
	case failure != nil:
		c.fail(failure, nil)
	}
	if shut {
		_ = c.nc.Close()
	}
}

// stuck resets streams whose peer opens no window. The caller holds mu.
func (c *conn) stuck(due func(at, after int64) bool) *connError {
	var err *connError
	for _, st := range c.streams.slots {
		if st == nil || st.blockedAt == 0 || !due(st.blockedAt, c.write) {
			continue
		}
		st.blockedAt = 0
		st.sendErr = errStuck
		st.wcond.Broadcast()
		if err == nil {
			err = c.charge(costZeroWindow, "windows that stay closed")
		}
	}
	return err
}

var errStuck = errors.New("h2: the peer opened no window for too long")

// trim gives back what an idle connection need not keep; the caller holds mu.
func (c *conn) trim() {
	clear(c.free)
	c.free = c.free[:0]
	c.runs.trim()
	c.out.trim()
	c.streams.slots = nil
	c.waiting = nil
}

// clock is the wheel's, never 0: that means "not".
func (c *conn) clock() int64 { return max(c.wheel.Now(), 1) }
