package pool

import (
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
)

// How long an idle connection is kept.
//
// Why: a server closes what was idle for its keep-alive time, which it does not
// tell. A request that meets that moment must be sent again, and one that may
// not be sent again fails; so a connection is not used when it is about to be
// closed.
//
// Conditions: the ages at which idle connections were found closed tell. Two
// finds at different moments and of about the same age (within likeAge) are a
// keep-alive time: connections are kept for keepPart of the smaller. Finds of
// one moment with different ages are a server that stopped, and tell nothing.
// Idle connections are looked at each sweepMin while some become idle, then each
// quarter of the age of the youngest of them up to sweepMax, so that a find is at
// most a quarter late and no socket stays half-closed for longer than that. When
// a connection became idle is known to one sweep, so that no request asks for the
// time.
//
// First start: the configured idle time-out.
//
// Recovery: what was learned grows by a quarter each forgetAfter without a find,
// until a find confirms it again or the idle time-out is reached.
const (
	sweepMin    = 100 * time.Millisecond
	sweepMax    = 10 * time.Second
	sweepBatch  = 64 // connections looked at in a row
	keepPart    = 0.75
	likeAge     = 0.3
	sameMoment  = 200 * time.Millisecond
	forgetAfter = 10 * time.Minute
)

// learned is what the closes of an endpoint told. The zero value is nothing.
type learned struct {
	limit    time.Duration // 0: none
	at       int64         // moment of the last find or growth, by the wheel's clock
	age      time.Duration // of the last find; 0: none
	counting bool          // age may be half of a pair
}

// find takes in that a connection was found closed at an age.
func (l *learned) find(now int64, age time.Duration) {
	like := func(a time.Duration) bool {
		return a > 0 && float64(max(a, age)-min(a, age)) <= likeAge*float64(max(a, age))
	}
	together := l.age > 0 && time.Duration(now-l.at) < sameMoment
	switch {
	case together && like(l.age): // the same find, seen twice
		l.age = min(l.age, age)
		return
	case together:
		l.counting = false
	case l.counting && like(l.age), l.limit > 0 && age <= 2*l.limit:
		l.limit = time.Duration(keepPart * float64(min(l.age, age)))
		if !like(l.age) {
			l.limit = time.Duration(keepPart * float64(age))
		}
		l.counting = true
	default:
		l.counting = true
	}
	l.at, l.age = now, age
}

// keep is how long a connection may be idle.
func (l *learned) keep(now int64, most time.Duration) time.Duration {
	if l.limit == 0 {
		return most
	}
	for time.Duration(now-l.at) >= forgetAfter && l.limit < most {
		l.at += int64(forgetAfter)
		l.limit += l.limit / 4
	}
	if l.limit >= most {
		*l = learned{}
		return most
	}
	return l.limit
}

// observe takes in that an idle connection was found closed.
func (p *Pool) observe(k *link) {
	now := p.d.Wheel.Now()
	p.mu.Lock()
	p.learned.find(now, time.Duration(now-k.since))
	p.mu.Unlock()
}

// wake makes sure that a sweep comes soon, because something becomes idle. The
// caller holds mu (the wheel's lock is a leaf).
func (p *Pool) wake() {
	if p.armed && !p.slow || p.closed {
		return
	}
	p.armed, p.slow = true, false
	p.epoch++
	p.epochAt = p.d.Wheel.Now()
	p.timer.Set(sweepMin)
}

// sweep closes what was idle for too long or was closed by the endpoint. It runs
// on the wheel's goroutine, and is the only one that looks at idle connections
// in numbers.
func (p *Pool) sweep() {
	now := p.d.Wheel.Now()
	var end []*link
	p.mu.Lock()
	p.epoch++
	p.epochAt = now
	keep := p.learned.keep(now, p.c.IdleTimeout)
	for _, l := range p.lanes() {
		n := 0
		for n < len(l.idle) && time.Duration(now-l.idle[n].since) >= keep {
			n++
		}
		end = append(end, l.idle[:n]...)
		l.idle = append(l.idle[:0], l.idle[n:]...)
		end = append(end, l.unusedShared(now, p.c.IdleTimeout)...)
	}
	p.mu.Unlock()
	for _, k := range end {
		k.close()
	}
	for _, l := range p.lanes() {
		l.look(now)
	}
	p.mu.Lock()
	next := p.nextSweep(p.d.Wheel.Now(), keep)
	p.armed, p.slow = next > 0 && !p.closed, next > sweepMin
	if p.armed {
		p.timer.Set(next)
	}
	p.mu.Unlock()
}

// nextSweep is the time until the next one; 0: nothing is idle. The caller holds
// mu.
func (p *Pool) nextSweep(now int64, keep time.Duration) time.Duration {
	next := time.Duration(0)
	soonest := func(d time.Duration) {
		if d = max(d, wheel.Tick); next == 0 || d < next {
			next = d
		}
	}
	for _, l := range p.lanes() {
		if n := len(l.idle); n > 0 {
			youngest := time.Duration(now - l.idle[n-1].since)
			soonest(min(max(youngest/4, sweepMin), sweepMax))
			soonest(keep - time.Duration(now-l.idle[0].since))
		}
		if len(l.shared) > 0 {
			soonest(min(max(p.c.IdleTimeout/60, sweepMin), sweepMax))
		}
	}
	return next
}

// look closes the idle connections of the lane that the endpoint has closed.
// They are looked at outside of the lock, a batch of the oldest at a time;
// meanwhile nobody can take them.
func (l *lane) look(now int64) {
	p := l.p
	var good []*link
	for {
		p.mu.Lock()
		n := 0
		for n < len(l.idle) && n < sweepBatch && time.Duration(now-l.idle[n].since) >= sweepMin {
			n++
		}
		batch := append([]*link(nil), l.idle[:n]...)
		l.idle = append(l.idle[:0], l.idle[n:]...)
		p.mu.Unlock()
		if n == 0 {
			break
		}
		for _, k := range batch {
			if netio.Alive(k.conn) {
				good = append(good, k)
				continue
			}
			p.observe(k)
			k.close()
		}
	}
	if len(good) == 0 {
		return
	}
	p.mu.Lock()
	var end []*link
	var ws []*waiter
	if ws = l.first(len(good)); len(ws) > 0 { // they came while nothing was idle
		for i, w := range ws {
			w.link = good[i]
		}
		good = good[len(ws):]
	}
	if p.draining {
		end, good = good, nil
	}
	l.idle = append(good, l.idle...)
	p.mu.Unlock()
	answer(ws)
	for _, k := range end {
		k.close()
	}
}

// unusedShared takes the HTTP/2 connections off that carried nothing for the
// idle time-out. The caller holds p.mu.
func (l *lane) unusedShared(now int64, most time.Duration) (end []*link) {
	for _, k := range l.shared {
		if since := k.h2.Unused(); since > 0 && (time.Duration(now-since) >= most || l.p.draining) {
			end = append(end, k)
		}
	}
	return end
}
