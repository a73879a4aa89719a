package wheel

import (
	"sync"
	"sync/atomic"
	"time"
)

// Tick is the wheel's granularity: how late a time-out may be.
const Tick = 10 * time.Millisecond

// slots is the number of slots: what lies further ahead than slots ticks (10 s)
// waits in the last one and is looked at again.
const slots = 1024

// Wheel holds timers. Make it by New; safe for concurrent use.
type Wheel struct {
	began time.Time

	mu    sync.Mutex
	alarm *time.Timer        // guarded by mu; nil before the first Set
	armed int64              // guarded by mu: tick that alarm waits for; 0: not armed
	at    int64              // guarded by mu: last tick that was looked at
	count int                // guarded by mu: timers in slots
	ring  [slots + 1]*Timer  // guarded by mu: heads of doubly linked lists; index tick % slots + 1, so that 0 is "none"
	bits  [slots / 64]uint64 // guarded by mu: slots that hold something
}

// New makes a wheel. It costs nothing until a timer is set.
func New() *Wheel { return &Wheel{began: time.Now()} }

// Timer is one time-out. The zero value must be given to Init; it is not to be
// copied afterwards. Its owner may be reused from request to request without
// taking the timer off.
type Timer struct {
	w  *Wheel
	fn func()
	// at is the moment, nanoseconds of the wheel; 0: not set.
	at atomic.Int64
	// looked is the tick at which the wheel will look at the timer; 0: it is not
	// in the wheel. Written with w.mu held.
	looked     atomic.Int64
	slot       int // guarded by w.mu
	next, prev *Timer
}

// Init ties the timer to a wheel. fn is called on a goroutine of the wheel's and
// must not block.
func (t *Timer) Init(w *Wheel, fn func()) { t.w, t.fn = w, fn }

// Now is the wheel's clock: nanoseconds since it was made.
func (w *Wheel) Now() int64 { return int64(time.Since(w.began)) }

// At is a moment of [time.Now] in the wheel's time, without reading the clock.
func (w *Wheel) At(t time.Time) int64 { return int64(t.Sub(w.began)) }

// Set makes the timer go off d from now, whatever it was set to before. d at or
// below zero goes off at the next tick.
func (t *Timer) Set(d time.Duration) { t.SetAt(t.w.Now() + int64(d)) }

// SetAt is Set for a moment of [Wheel.Now].
func (t *Timer) SetAt(at int64) {
	at = max(at, 1)
	t.at.Store(at)
	if l := t.looked.Load(); l != 0 && l <= tickOf(at) {
		return // it will be looked at in time
	}
	t.w.enter(t)
}

// Stop takes the time-out back. It does not wait for a call under way, and it
// leaves the timer in the wheel, where it costs one look.
func (t *Timer) Stop() { t.at.Store(0) }

// Remove takes the timer out of the wheel, so that nothing refers to its owner.
func (t *Timer) Remove() {
	t.at.Store(0)
	if t.w == nil {
		return
	}
	t.w.mu.Lock()
	t.w.unlink(t)
	if t.w.count == 0 && t.w.alarm != nil {
		t.w.alarm.Stop()
		t.w.armed = 0
	}
	t.w.mu.Unlock()
}

// tickOf is the first tick at or after the moment.
func tickOf(at int64) int64 { return (at + int64(Tick) - 1) / int64(Tick) }

func (w *Wheel) enter(t *Timer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := t.at.Load()
	if at == 0 {
		return
	}
	w.unlink(t)
	if w.count == 0 { // nothing was missed while it stood still
		w.at = max(w.at, w.Now()/int64(Tick))
	}
	w.link(t, at)
	w.arm()
}

// link puts the timer where it is to be looked at; the caller holds mu.
func (w *Wheel) link(t *Timer, at int64) {
	tick := min(max(tickOf(at), w.at+1), w.at+slots-1)
	i := int(tick % slots)
	t.looked.Store(tick)
	t.slot = i + 1
	t.prev, t.next = nil, w.ring[t.slot]
	if t.next != nil {
		t.next.prev = t
	}
	w.ring[t.slot] = t
	w.bits[i/64] |= 1 << (i % 64)
	w.count++
}

// unlink takes it out; the caller holds mu.
func (w *Wheel) unlink(t *Timer) {
	if t.slot == 0 {
		return
	}
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		w.ring[t.slot] = t.next
	}
	if t.next != nil {
		t.next.prev = t.prev
	}
	if i := t.slot - 1; w.ring[t.slot] == nil {
		w.bits[i/64] &^= 1 << (i % 64)
	}
	t.slot, t.next, t.prev = 0, nil, nil
	t.looked.Store(0)
	w.count--
}

// arm sets the alarm for the next slot that holds something; the caller holds mu.
func (w *Wheel) arm() {
	next := w.nextTick()
	if next == 0 || w.armed != 0 && w.armed <= next {
		return
	}
	w.armed = next
	d := time.Duration(next*int64(Tick) - w.Now())
	if w.alarm == nil {
		w.alarm = time.AfterFunc(d, w.turn)
		return
	}
	w.alarm.Reset(d)
}

// nextTick is the first tick after at whose slot holds something, 0: none.
func (w *Wheel) nextTick() int64 {
	if w.count == 0 {
		return 0
	}
	for k := int64(1); k < slots; {
		i := int((w.at + k) % slots)
		if word := w.bits[i/64] >> (i % 64); word == 0 {
			k += int64(64 - i%64)
			continue
		} else if word&1 != 0 {
			return w.at + k
		}
		k++
	}
	return 0
}

// turn looks at every slot that has come.
func (w *Wheel) turn() {
	var due []*Timer
	w.mu.Lock()
	w.armed = 0
	now := w.Now()
	for last := now / int64(Tick); w.at < last; {
		next := w.nextTick()
		if next == 0 || next > last {
			w.at = last
			break
		}
		w.at = next
		for t := w.ring[int(next%slots)+1]; t != nil; {
			after := t.next
			w.unlink(t)
			switch at := t.at.Load(); {
			case at == 0:
			case at > now:
				w.link(t, at)
			case t.at.CompareAndSwap(at, 0):
				due = append(due, t)
			default: // set anew in this moment
				if at := t.at.Load(); at != 0 {
					w.link(t, at)
				}
			}
			t = after
		}
	}
	w.arm()
	w.mu.Unlock()
	for _, t := range due {
		t.fn()
	}
}
