package h2

import (
	"encoding/binary"
	"runtime"
	"sync"
)

const (
	// outBound is how many bytes may wait for the writer before DATA has to.
	outBound = 64 << 10
	// outEager is how many make the writer start although nobody asked to flush.
	outEager = 32 << 10
	// yields is how often the writer lets others run before it writes, at the most.
	yields = 8
	// outKeep is the largest buffer that is kept.
	outKeep = 256 << 10
)

// outbox holds the frames that wait to be written. Whoever has frames appends
// them under the connection's mu; one goroutine writes, started when there is
// something. What comes meanwhile leaves with its next write, so under load many
// streams' frames share a system call and a TLS record.
type outbox struct {
	c *conn
	// Guarded by c.mu.
	buf     []byte
	spare   []byte
	gen     uint64 // counts buffers: an offset into buf is good while it stays
	control int    // bytes of answers in buf
	batch   bool   // the reader is at work: what it wakes may add to buf
	busy    bool   // the writer was told
	ending  bool   // it ends when buf is empty
	over    bool   // it has ended for good
	writer  uint64 // the one that there is; 0: none
	writers uint64 // that there were
	since   int64  // when the write under way began; 0: none
	cond    sync.Cond
	done    sync.WaitGroup
}

func (o *outbox) init(c *conn) {
	o.c = c
	o.cond.L = &c.mu
}

// kick makes the writer write what there is; the caller holds mu.
func (o *outbox) kick() {
	if !o.busy && !o.batch && len(o.buf) > 0 {
		o.wake()
	}
}

func (o *outbox) wake() {
	if o.over {
		return
	}
	o.busy = true
	if o.writer != 0 {
		o.cond.Signal()
		return
	}
	o.writers++
	o.writer = o.writers
	o.done.Add(1)
	go o.run(o.writer)
}

// stop makes the writer end when everything is written, and with it our side of
// the connection; the caller holds mu.
func (o *outbox) stop() {
	if o.ending {
		return
	}
	o.ending, o.batch = true, false
	if !o.busy {
		o.wake()
	}
}

// wait waits until the writer has ended.
func (o *outbox) wait() { o.done.Wait() }

// trim ends the idle writer; the caller holds mu.
func (o *outbox) trim() {
	if o.busy || o.ending || len(o.buf) > 0 {
		return
	}
	o.buf, o.spare = nil, nil
	if o.writer != 0 {
		o.writer = 0
		o.cond.Signal()
	}
}

// run is the writer. Another may have taken its place when it wakes up.
func (o *outbox) run(me uint64) {
	defer o.done.Done()
	c := o.c
	c.mu.Lock()
	for o.writer == me {
		if o.busy {
			o.flush()
			continue
		}
		if o.ending {
			o.over, o.writer = true, 0
			c.mu.Unlock()
			_ = c.nc.CloseWrite()
			return
		}
		o.cond.Wait()
	}
	c.mu.Unlock()
}

// flush writes until nothing is left. It is called with mu held and lets go of
// it meanwhile.
func (o *outbox) flush() {
	c := o.c
	// Whoever is about to run may have frames for the same write; while some come,
	// so may those that they wake.
	for n, rounds := -1, 0; n != len(o.buf) && n < outEager && rounds < yields; rounds++ {
		n = len(o.buf)
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
	}
	for len(o.buf) > 0 {
		o.since = c.clock()
		if c.now = o.since; c.idleSince != 0 {
			c.idleSince = c.now // the last stream's end is not older than its last frame
		}
		c.arm(o.since + c.write)
		b := o.buf
		o.buf, o.spare = o.spare[:0], nil
		o.gen++
		o.control = 0
		c.mu.Unlock()
		_, err := c.nc.Write(b)
		if err != nil {
			c.fail(err, nil)
		}
		c.mu.Lock()
		if cap(b) <= outKeep {
			o.spare = b[:0]
		}
		if err != nil {
			o.buf = o.buf[:0]
		}
		c.wakeWaiting()
	}
	o.since = 0
	o.busy = false
}

// wakeWaiting lets as many writers go on as there is room for, in the order in
// which they came; each lets the next one go on when it is done. The caller holds
// mu.
func (c *conn) wakeWaiting() {
	for room := min(int64(outBound-len(c.out.buf)), c.sendWindow); room > 0 && len(c.waiting) > 0; room -= maxFrame {
		c.wakeFirst()
	}
}

func (c *conn) wakeFirst() {
	st := c.waiting[0]
	n := copy(c.waiting, c.waiting[1:])
	c.waiting[n] = nil
	c.waiting = c.waiting[:n]
	st.inWaiting = false
	st.wcond.Broadcast()
}

// wakeAll lets every writer see that something else has changed; the caller
// holds mu.
func (c *conn) wakeAll() {
	for len(c.waiting) > 0 {
		c.wakeFirst()
	}
}

// All below: the caller holds mu.

func (o *outbox) reset(id uint32, code ErrCode) {
	b := appendFrame(o.buf, 4, frameRSTStream, 0, id)
	o.buf = binary.BigEndian.AppendUint32(b, uint32(code))
	o.control += headLen + 4
}

func (o *outbox) windowUpdate(id, n uint32) {
	b := appendFrame(o.buf, 4, frameWindowUpdate, 0, id)
	o.buf = binary.BigEndian.AppendUint32(b, n)
	o.kick()
}

func (o *outbox) ping(data uint64, ack bool) {
	flags := byte(0)
	if ack {
		flags = flagAck
		o.control += headLen + 8
	}
	o.buf = binary.BigEndian.AppendUint64(appendFrame(o.buf, 8, framePing, flags, 0), data)
}

func (o *outbox) settingsAck() {
	o.buf = appendFrame(o.buf, 0, frameSettings, flagAck, 0)
	o.control += headLen
}

// beginBlock starts a HEADERS frame; endBlock ends it. at is its offset.
func (o *outbox) beginBlock(id uint32, flags byte) (at int) {
	at = len(o.buf)
	o.buf = appendFrame(o.buf, 0, frameHeaders, flags|flagEndHeaders, id)
	o.buf = o.c.enc.begin(o.buf)
	return at
}

// endBlock writes the length, and cuts the block into CONTINUATION frames where
// it is longer than the peer takes in one.
func (o *outbox) endBlock(at int) {
	n := len(o.buf) - at - headLen
	most := o.c.peerFrame
	if n <= most {
		putLength(o.buf[at:], n)
		return
	}
	block := append([]byte(nil), o.buf[at+headLen:]...)
	id := binary.BigEndian.Uint32(o.buf[at+5:])
	putLength(o.buf[at:], most)
	o.buf[at+4] &^= flagEndHeaders
	o.buf = o.buf[:at+headLen+most]
	for block = block[most:]; len(block) > 0; {
		m := min(len(block), most)
		flags := byte(0)
		if m == len(block) {
			flags = flagEndHeaders
		}
		o.buf = append(appendFrame(o.buf, m, frameContinuation, flags, id), block[:m]...)
		block = block[m:]
	}
}
