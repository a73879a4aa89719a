package h2

import (
	"encoding/binary"
	"io"
	"sync"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// input is what the reader of a connection keeps; nobody else looks at it.
type input struct {
	dec     decoder
	fields  []hfield
	preface int // bytes of the client's preface still to come
	// A header block that has not come to its end.
	inBlock   bool
	blockID   uint32
	blockEnd  bool // END_STREAM
	block     []byte
	fragments int
	// A DATA frame whose payload is under way.
	dataOn   bool
	dataID   uint32
	dataLeft int // of the payload, padding not included
	padLeft  int
	dataEnd  bool
}

// carrySize holds the largest frame and what a read brings with it.
const carrySize = 2 * netio.BufSize

type carryBuf [carrySize]byte

var carries = sync.Pool{New: func() any { return new(carryBuf) }}

// read is the reader: it takes frames as they come until the connection is over.
// While nothing is there it holds no buffer.
func (c *conn) read(first netio.Pending) error {
	if !c.client {
		c.in.preface = len(Preface)
	}
	buf, in := first.Buf, first.Bytes()
	var carry *carryBuf
	defer func() {
		if buf != nil {
			netio.PutBuf(buf)
		}
		if carry != nil {
			carries.Put(carry)
		}
	}()
	for {
		rest, err := c.batch(in)
		if err != nil {
			return err
		}
		var n int
		var rerr error
		if len(rest) == 0 {
			if carry != nil {
				carries.Put(carry)
				carry = nil
			}
			if buf != nil {
				netio.PutBuf(buf)
				buf = nil
			}
			buf, n, rerr = netio.ReadBuf(c.nc)
			if n > 0 {
				in = buf[:n]
			}
		} else { // a frame in the middle
			if carry == nil {
				carry = carries.Get().(*carryBuf)
			}
			have := copy(carry[:], rest)
			if buf != nil {
				netio.PutBuf(buf)
				buf = nil
			}
			n, rerr = c.nc.Read(carry[have:])
			in = carry[:have+n]
		}
		if n > 0 {
			continue // the error comes again
		}
		if rerr == nil {
			rerr = io.ErrNoProgress
		}
		return rerr
	}
}

// batch takes every complete frame of in and returns the rest. What the frames
// make others write leaves together, afterwards.
func (c *conn) batch(in []byte) (rest []byte, err error) {
	if len(in) == 0 {
		return nil, nil
	}
	c.mu.Lock()
	c.now = c.clock()
	c.lastRead = c.now
	if c.err != nil { // ending: nothing is taken any more
		c.mu.Unlock()
		return nil, nil
	}
	c.out.batch = true
	c.mu.Unlock()
	rest, broken := c.frames(in)
	c.mu.Lock()
	c.out.batch = false
	if broken == nil && c.out.control > maxControl {
		broken = &connError{EnhanceYourCalm, "answers that nobody reads", stream.Flooded}
	}
	c.out.kick()
	c.mu.Unlock()
	c.side.tell()
	if broken != nil {
		return nil, broken
	}
	return rest, nil
}

func (c *conn) frames(in []byte) (rest []byte, _ *connError) {
	i := &c.in
	if i.preface > 0 {
		n := min(i.preface, len(in))
		from := len(Preface) - i.preface
		if string(in[:n]) != Preface[from:from+n] {
			return nil, broken(ProtocolError, "the client's preface is not HTTP/2's (RFC 9113, section 3.4)")
		}
		i.preface -= n
		in = in[n:]
	}
	for {
		if i.dataOn {
			if in = c.dataPart(in); i.dataOn {
				return nil, nil
			}
		}
		if len(in) < headLen {
			return in, nil
		}
		n := int(in[0])<<16 | int(in[1])<<8 | int(in[2])
		t, flags, id := frameType(in[3]), in[4], binary.BigEndian.Uint32(in[5:])&maxInt31
		if n > maxFrame {
			return nil, broken(FrameSizeError, "a frame longer than SETTINGS_MAX_FRAME_SIZE (RFC 9113, section 4.2)")
		}
		if i.inBlock && (t != frameContinuation || id != i.blockID) {
			return nil, broken(ProtocolError, "another frame inside a header block (RFC 9113, section 6.10)")
		}
		if t == frameData {
			if flags&flagPadded != 0 && n > 0 && len(in) == headLen {
				return in, nil // the padding's length is needed
			}
			var err *connError
			if in, err = c.dataBegin(in, n, flags, id); err != nil {
				return nil, err
			}
			continue
		}
		if len(in) < headLen+n {
			return in, nil
		}
		if err := c.frame(t, flags, id, in[headLen:headLen+n]); err != nil {
			return nil, err
		}
		in = in[headLen+n:]
	}
}

// frame takes one frame other than DATA.
func (c *conn) frame(t frameType, flags byte, id uint32, p []byte) *connError {
	if !c.peerSettings && t != frameSettings { // only this goroutine sets it
		return broken(ProtocolError, "the first frame is not SETTINGS (RFC 9113, section 3.4)")
	}
	switch t {
	case frameHeaders:
		return c.onHeaders(flags, id, p)
	case frameContinuation:
		return c.onContinuation(flags, p)
	case frameSettings:
		return c.onSettings(flags, id, p)
	case frameWindowUpdate:
		return c.onWindowUpdate(id, p)
	case frameRSTStream:
		return c.onReset(id, p)
	case framePing:
		return c.onPing(flags, id, p)
	case frameGoAway:
		return c.onGoAway(id, p)
	case framePriority:
		return c.onPriority(id, p)
	case framePushPromise:
		return broken(ProtocolError, "PUSH_PROMISE, which nobody asked for (RFC 9113, section 8.4)")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.charge(costFrame, "frames of an unknown type") // ignored (RFC 9113, section 4.1)
}

// streamBroken resets a stream for what the peer did on it.
func (c *conn) streamBroken(id uint32, code ErrCode, reason string) *connError {
	c.mu.Lock()
	st := c.streams.get(id)
	err := c.charge(costMadeReset, "frames that make us reset streams")
	if st == nil {
		c.out.reset(id, code)
		c.mu.Unlock()
		return err
	}
	st.pins++
	cause := c.misdeed(code, reason)
	st.kill(code, cause)
	c.mu.Unlock()
	st.cancelled(cause)
	return err
}

// ---- DATA (RFC 9113, section 6.1)

func (c *conn) dataBegin(in []byte, n int, flags byte, id uint32) (rest []byte, _ *connError) {
	i := &c.in
	if !c.peerSettings {
		return nil, broken(ProtocolError, "the first frame is not SETTINGS (RFC 9113, section 3.4)")
	}
	if id == 0 {
		return nil, broken(ProtocolError, "DATA on stream 0 (RFC 9113, section 6.1)")
	}
	in = in[headLen:]
	pad, size := 0, n
	if flags&flagPadded != 0 {
		if n == 0 {
			return nil, broken(FrameSizeError, "padded DATA without a length of the padding (RFC 9113, section 6.1)")
		}
		pad = int(in[0])
		in = in[1:]
		if n--; pad > n {
			return nil, broken(ProtocolError, "padding longer than its DATA (RFC 9113, section 6.1)")
		}
	}
	i.dataOn, i.dataID, i.dataLeft, i.padLeft, i.dataEnd = true, id, n-pad, pad, flags&flagEndStream != 0
	c.mu.Lock()
	if c.recvWindow -= int64(size); c.recvWindow < 0 {
		c.mu.Unlock()
		return nil, broken(FlowControlError, "DATA beyond the connection's window (RFC 9113, section 6.9.1)")
	}
	c.credit(size - (n - pad)) // padding is nobody's to consume
	if n-pad == 0 && !i.dataEnd {
		if err := c.charge(costFrame, "DATA frames without data"); err != nil {
			c.mu.Unlock()
			return nil, err
		}
	}
	st := c.streams.get(id)
	if st == nil {
		err := c.dataNowhere(id)
		c.mu.Unlock()
		return in, err
	}
	if n-pad >= worthwhile {
		c.bucket.gain(gainGot)
	}
	st.recvOpen -= int64(size)
	st.recvBack += int64(size - (n - pad))
	code, reason := NoError, ""
	switch {
	case st.recvEnd:
		code, reason = StreamClosed, "DATA after the end of the stream (RFC 9113, section 5.1)"
	case st.recvOpen < 0:
		code, reason = FlowControlError, "DATA beyond the stream's window (RFC 9113, section 6.9.1)"
	case c.client && !st.headDone:
		code, reason = ProtocolError, "DATA before a response's head (RFC 9113, section 8.1)"
	case st.left >= 0 && int64(n-pad) > st.left, st.left > int64(n-pad) && i.dataEnd:
		code, reason = ProtocolError, "DATA that is not as long as its content-length (RFC 9113, section 8.1.1)"
	}
	if st.left >= 0 {
		st.left -= int64(n - pad)
	}
	c.mu.Unlock()
	if code != NoError {
		return in, c.streamBroken(id, code, reason)
	}
	return in, nil
}

// dataNowhere takes DATA of a stream that is not there; the caller holds mu.
func (c *conn) dataNowhere(id uint32) *connError {
	if c.unopened(id) {
		return broken(ProtocolError, "DATA on an idle stream (RFC 9113, section 5.1)")
	}
	if c.err != nil {
		return nil
	}
	if _, ours := c.closed.find(id); ours {
		// On its way when we reset the stream: no more than a window of it, so that
		// a sound peer can pay.
		return c.charge(costFrame, "DATA on streams that are over")
	}
	c.out.reset(id, StreamClosed)
	return c.charge(costMadeReset, "DATA on streams that are over")
}

// unopened says whether a stream has never been; the caller holds mu.
func (c *conn) unopened(id uint32) bool {
	if ours := (id&1 == 1) == c.client; ours {
		return id >= c.nextID
	}
	return id > c.lastPeer
}

// dataPart takes what is there of the payload under way.
func (c *conn) dataPart(in []byte) (rest []byte) {
	i := &c.in
	n := min(i.dataLeft, len(in))
	pad := min(i.padLeft, len(in)-n)
	i.dataLeft -= n
	i.padLeft -= pad
	over := i.dataLeft == 0 && i.padLeft == 0
	if n > 0 || over {
		c.mu.Lock()
		st := c.streams.get(i.dataID)
		switch {
		case st == nil:
			c.credit(n)
		default:
			if n > 0 {
				st.got(in[:n])
			}
			if over && i.dataEnd {
				st.closeRecv()
			}
		}
		c.mu.Unlock()
	}
	i.dataOn = !over
	return in[n+pad:]
}

// ---- HEADERS, CONTINUATION (RFC 9113, sections 6.2 and 6.10)

func (c *conn) onHeaders(flags byte, id uint32, p []byte) *connError {
	if id == 0 {
		return broken(ProtocolError, "HEADERS on stream 0 (RFC 9113, section 6.2)")
	}
	pad := 0
	if flags&flagPadded != 0 {
		if len(p) == 0 {
			return broken(FrameSizeError, "padded HEADERS without a length of the padding (RFC 9113, section 6.2)")
		}
		pad, p = int(p[0]), p[1:]
	}
	if flags&flagPriority != 0 {
		if len(p) < 5 {
			return broken(FrameSizeError, "HEADERS too short for their priority (RFC 9113, section 6.2)")
		}
		if binary.BigEndian.Uint32(p)&maxInt31 == id {
			return broken(ProtocolError, "a stream that depends on itself (RFC 9113, section 5.3.1 of RFC 7540)")
		}
		p = p[5:]
	}
	if pad > len(p) {
		return broken(ProtocolError, "padding longer than its HEADERS (RFC 9113, section 6.2)")
	}
	p = p[:len(p)-pad]
	if flags&flagEndHeaders != 0 {
		return c.side.message(id, flags&flagEndStream != 0, p)
	}
	i := &c.in
	i.inBlock, i.blockID, i.blockEnd, i.fragments = true, id, flags&flagEndStream != 0, 1
	i.block = append(i.block[:0], p...)
	c.mu.Lock()
	c.blockAt = c.now
	c.arm(c.now + c.headers)
	c.mu.Unlock()
	return nil
}

func (c *conn) onContinuation(flags byte, p []byte) *connError {
	i := &c.in
	if !i.inBlock {
		return broken(ProtocolError, "CONTINUATION outside a header block (RFC 9113, section 6.10)")
	}
	i.fragments++
	c.mu.Lock()
	err := c.charge(costFrame, "CONTINUATION frames")
	if err == nil && len(i.block)+len(p) > 2*c.limits.size+maxFrame {
		err = &connError{EnhanceYourCalm, "a header block without end", stream.Flooded}
	}
	if flags&flagEndHeaders != 0 {
		c.blockAt = 0
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	i.block = append(i.block, p...)
	if flags&flagEndHeaders == 0 {
		return nil
	}
	i.inBlock = false
	err = c.side.message(i.blockID, i.blockEnd, i.block)
	if cap(i.block) > maxFrame {
		i.block = nil
	}
	return err
}

// fields decodes a header block.
func (c *conn) fields(block, arena []byte) (_ []hfield, out []byte, over bool, _ *connError) {
	i := &c.in
	fields, out, over, err := i.dec.decode(block, i.fields[:0], arena, c.limits)
	i.fields = fields
	if err != nil {
		return nil, out, false, broken(CompressionError, "a header block that HPACK cannot read (RFC 9113, section 4.3)")
	}
	if over {
		c.mu.Lock()
		defer c.mu.Unlock()
		return fields, out, over, c.charge(costBomb, "header lists beyond the limit")
	}
	return fields, out, false, nil
}

// ---- SETTINGS (RFC 9113, section 6.5)

func (c *conn) onSettings(flags byte, id uint32, p []byte) *connError {
	if id != 0 {
		return broken(ProtocolError, "SETTINGS on a stream (RFC 9113, section 6.5)")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if flags&flagAck != 0 {
		if len(p) != 0 {
			return broken(FrameSizeError, "an acknowledgement of SETTINGS with a payload (RFC 9113, section 6.5)")
		}
		if !c.peerSettings {
			return broken(ProtocolError, "the first frame is not SETTINGS (RFC 9113, section 3.4)")
		}
		return c.charge(costFrame, "acknowledgements")
	}
	if len(p)%6 != 0 {
		return broken(FrameSizeError, "SETTINGS of a length that is no multiple of 6 (RFC 9113, section 6.5)")
	}
	if c.peerSettings {
		if err := c.charge(costSettings, "SETTINGS"); err != nil {
			return err
		}
	}
	for ; len(p) > 0; p = p[6:] {
		if err := c.setting(binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:])); err != nil {
			return err
		}
	}
	if !c.peerSettings {
		c.peerSettings = true
		c.blockAt = 0
	}
	c.out.settingsAck()
	c.wakeAll()
	for _, st := range c.streams.slots {
		if st != nil && st.blockedAt != 0 { // its window may have grown
			st.wcond.Broadcast()
		}
	}
	c.side.settings()
	return nil
}

// setting takes one; the caller holds mu.
func (c *conn) setting(id uint16, v uint32) *connError {
	switch id {
	case settingTableSize:
		c.enc.allow(v)
	case settingEnablePush:
		if v > 1 || c.client && v == 1 {
			return broken(ProtocolError, "SETTINGS_ENABLE_PUSH with a value that it cannot have (RFC 9113, section 6.5.2)")
		}
	case settingMaxStreams:
		c.peerStreams = v
	case settingInitialWindow:
		if v > maxInt31 {
			return broken(FlowControlError, "SETTINGS_INITIAL_WINDOW_SIZE above 2^31-1 (RFC 9113, section 6.5.2)")
		}
		change := int64(v) - c.peerWindow
		c.peerWindow = int64(v)
		for _, st := range c.streams.slots {
			if st == nil {
				continue
			}
			if st.sendOpen += change; st.sendOpen > maxInt31 {
				return broken(FlowControlError, "a window above 2^31-1 by SETTINGS (RFC 9113, section 6.9.2)")
			}
		}
	case settingMaxFrame:
		if v < maxFrame || v > 1<<24-1 {
			return broken(ProtocolError, "SETTINGS_MAX_FRAME_SIZE out of its range (RFC 9113, section 6.5.2)")
		}
		// Larger frames than the default are allowed, and never sent: they would
		// only make other streams wait.
	case settingConnectProtocol:
		if v > 1 || c.peerConnect && v == 0 {
			return broken(ProtocolError, "SETTINGS_ENABLE_CONNECT_PROTOCOL with a value that it cannot have (RFC 8441, section 3)")
		}
		c.peerConnect = v == 1
	}
	return nil
}

// ---- the small ones

func (c *conn) onWindowUpdate(id uint32, p []byte) *connError {
	if len(p) != 4 {
		return broken(FrameSizeError, "WINDOW_UPDATE of a length other than 4 (RFC 9113, section 6.9)")
	}
	n := int64(binary.BigEndian.Uint32(p) & maxInt31)
	c.mu.Lock()
	if err := c.charge(costFrame, "WINDOW_UPDATE"); err != nil {
		c.mu.Unlock()
		return err
	}
	if id == 0 {
		defer c.mu.Unlock()
		if n == 0 {
			return broken(ProtocolError, "WINDOW_UPDATE by 0 (RFC 9113, section 6.9)")
		}
		if c.sendWindow += n; c.sendWindow > maxInt31 {
			return broken(FlowControlError, "the connection's window above 2^31-1 (RFC 9113, section 6.9.1)")
		}
		c.wakeWaiting()
		return nil
	}
	st := c.streams.get(id)
	if st == nil {
		defer c.mu.Unlock()
		if c.unopened(id) {
			return broken(ProtocolError, "WINDOW_UPDATE on an idle stream (RFC 9113, section 5.1)")
		}
		return nil // it is over
	}
	if n == 0 {
		c.mu.Unlock()
		return c.streamBroken(id, ProtocolError, "WINDOW_UPDATE by 0 (RFC 9113, section 6.9)")
	}
	if st.sendOpen+n > maxInt31 {
		c.mu.Unlock()
		return c.streamBroken(id, FlowControlError, "the stream's window above 2^31-1 (RFC 9113, section 6.9.1)")
	}
	st.sendOpen += n
	st.wcond.Broadcast()
	c.mu.Unlock()
	return nil
}

func (c *conn) onReset(id uint32, p []byte) *connError {
	if len(p) != 4 {
		return broken(FrameSizeError, "RST_STREAM of a length other than 4 (RFC 9113, section 6.4)")
	}
	if id == 0 {
		return broken(ProtocolError, "RST_STREAM on stream 0 (RFC 9113, section 6.4)")
	}
	code := ErrCode(binary.BigEndian.Uint32(p))
	c.mu.Lock()
	st := c.streams.get(id)
	if st == nil {
		defer c.mu.Unlock()
		if c.unopened(id) {
			return broken(ProtocolError, "RST_STREAM on an idle stream (RFC 9113, section 5.1)")
		}
		return c.charge(costFrame, "RST_STREAM of streams that are over")
	}
	var err *connError
	if !c.client && !st.headSent && c.now-st.began < young {
		err = c.charge(costRapidReset, "streams that are reset at once")
	}
	if c.client && code == NoError && st.recvEnd {
		// The response is complete without the rest of the request (RFC 9113,
		// section 8.1).
		st.sendErr = errSendClosed
		c.remove(st, false)
		st.wcond.Broadcast()
		c.mu.Unlock()
		return err
	}
	st.pins++
	cause := c.resetBy(st, code)
	st.end(cause)
	c.mu.Unlock()
	st.cancelled(cause)
	return err
}

func (c *conn) onPing(flags byte, id uint32, p []byte) *connError {
	if len(p) != 8 {
		return broken(FrameSizeError, "PING of a length other than 8 (RFC 9113, section 6.7)")
	}
	if id != 0 {
		return broken(ProtocolError, "PING on a stream (RFC 9113, section 6.7)")
	}
	data := binary.BigEndian.Uint64(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if flags&flagAck == 0 {
		c.out.ping(data, true)
		return c.charge(costFrame, "PING")
	}
	switch {
	case data == drainPayload && c.drain == drainWarned:
		c.drained()
	case data == pingPayload && c.pingAt != 0:
		c.pingAt = 0
		c.arm(c.now + c.pingAfter)
	default:
		return c.charge(costFrame, "acknowledgements")
	}
	return nil
}

func (c *conn) onGoAway(id uint32, p []byte) *connError {
	if id != 0 {
		return broken(ProtocolError, "GOAWAY on a stream (RFC 9113, section 6.8)")
	}
	if len(p) < 8 {
		return broken(FrameSizeError, "GOAWAY shorter than 8 bytes (RFC 9113, section 6.8)")
	}
	c.mu.Lock()
	if err := c.charge(costSettings, "GOAWAY"); err != nil {
		c.mu.Unlock()
		return err
	}
	c.mu.Unlock()
	c.side.leaving(binary.BigEndian.Uint32(p)&maxInt31, ErrCode(binary.BigEndian.Uint32(p[4:])))
	return nil
}

func (c *conn) onPriority(id uint32, p []byte) *connError {
	if id == 0 {
		return broken(ProtocolError, "PRIORITY on stream 0 (RFC 9113, section 6.3)")
	}
	if len(p) != 5 {
		return c.streamBroken(id, FrameSizeError, "PRIORITY of a length other than 5 (RFC 9113, section 6.3)")
	}
	if binary.BigEndian.Uint32(p)&maxInt31 == id {
		return c.streamBroken(id, ProtocolError, "a stream that depends on itself (RFC 7540, section 5.3.1)")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.charge(costFrame, "PRIORITY")
}
