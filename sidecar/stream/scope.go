package stream

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Canceler is told when the exchange that it works for is over or given up. It
// must not block, nor detach itself from the scope that tells it, and may be
// called from any goroutine. It may detach others.
type Canceler interface{ Cancelled(cause error) }

// maxAttached is how many waits one exchange has at a time at the most: its own
// codec, the upstream connection, and two for filters.
const maxAttached = 4

// Scope is the life of one exchange, as a context.Context that costs nothing
// until somebody waits for it: no allocation, no goroutine, no timer. The codec
// that owns it calls Renew before each further exchange and Cancel when the
// client has gone or the exchange is over. The zero value is a live scope.
type Scope struct {
	state  atomic.Uint32 // fresh, touched or over; written with mu held
	parent *Scope        // see Within; its owner's
	moment int64         // see Mark

	mu       sync.Mutex
	joined   bool                  // guarded by mu: attached to parent
	renewed  uint32                // guarded by mu: how often
	telling  Canceler              // guarded by mu: is being told
	told     chan struct{}         // guarded by mu; closed when it has been; nil: nobody waits
	cause    error                 // guarded by mu; non-nil: over
	done     chan struct{}         // guarded by mu; nil: nobody asked
	attached [maxAttached]Canceler // guarded by mu
	after    map[*afterFunc]struct{}
}

// States of a scope. In a fresh one nobody has an interest, so that neither its
// end nor its renewal is anything to do.
const (
	fresh uint32 = iota
	touched
	over
)

var (
	_ context.Context = (*Scope)(nil)
	_ Canceler        = (*Scope)(nil)
)

// Within makes a live scope a part of parent, with which it ends; of parent
// nothing is asked before somebody waits for this one. Only the owner calls it,
// and Leave afterwards.
func (s *Scope) Within(parent *Scope) { s.parent = parent }

// Leave ends what Within began. When it returns, parent does not reach this scope.
func (s *Scope) Leave() {
	p := s.parent
	if p == nil {
		return
	}
	s.parent = nil
	if s.state.Load() == fresh {
		return
	}
	s.mu.Lock()
	joined := s.joined
	s.joined = false
	s.mu.Unlock()
	if joined {
		p.Detach(s)
	}
}

// join attaches the scope to its parent, for somebody is about to wait.
func (s *Scope) join() {
	p := s.parent
	if p == nil {
		return
	}
	s.mu.Lock()
	joined := s.joined
	s.joined = true
	s.touch()
	s.mu.Unlock()
	if !joined && !p.Attach(s) {
		s.Cancel(p.Cause())
	}
}

// touch notes that somebody has an interest; the caller holds mu.
func (s *Scope) touch() {
	if s.state.Load() == fresh {
		s.state.Store(touched)
	}
}

// Cancelled implements [Canceler]: the end of the scope that this one is within.
func (s *Scope) Cancelled(cause error) { s.Cancel(cause) }

// Mark keeps a moment of the process's wheel that the exchange's handler has
// read last, for the codec, which then needs no clock of its own. The handler's
// goroutine calls it.
func (s *Scope) Mark(at int64) { s.moment = at }

// Marked is what was marked since it was last asked, 0: nothing. Only the owner
// calls it, when the exchange is over.
func (s *Scope) Marked() int64 {
	at := s.moment
	s.moment = 0
	return at
}

// Retire ends the scope with its exchange: Cancel, where anybody could hear of
// it. Only the owner calls it.
func (s *Scope) Retire() {
	if s.state.Load() != fresh {
		s.Cancel(nil)
	}
}

// Renew gives a live scope for the next exchange: this one where nobody outside
// could still ask it about the exchange before, else a new one. Only the owner
// calls it, after Cancel or Retire. nil gives a new one.
func (s *Scope) Renew() *Scope {
	if s == nil {
		return new(Scope)
	}
	if s.state.Load() == fresh {
		return s
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done != nil {
		return new(Scope)
	}
	s.cause, s.after, s.joined = nil, nil, false
	s.state.Store(fresh)
	s.renewed++
	clear(s.attached[:])
	return s
}

// Cancel ends the scope; the first cause stays. nil means [context.Canceled].
func (s *Scope) Cancel(cause error) {
	if cause == nil {
		cause = context.Canceled
	}
	s.mu.Lock()
	if s.cause != nil {
		s.mu.Unlock()
		return
	}
	s.cause = cause
	s.state.Store(over)
	if s.done != nil {
		close(s.done)
	}
	for a := range s.after {
		go a.f()
	}
	s.after = nil
	for i, renewed := 0, s.renewed; i < len(s.attached) && s.renewed == renewed; i++ {
		if c := s.attached[i]; c != nil {
			s.attached[i] = nil
			s.tell(c, cause)
		}
	}
	s.mu.Unlock()
}

// tell tells one of those attached; the caller holds mu, which is let go
// meanwhile.
func (s *Scope) tell(c Canceler, cause error) {
	s.telling = c
	s.mu.Unlock()
	c.Cancelled(cause)
	s.mu.Lock()
	if s.telling == c {
		s.telling = nil
	}
	if s.told != nil {
		close(s.told)
		s.told = nil
	}
}

// Attach makes c hear of the end. It returns false, and c hears nothing, where
// the scope is over already. Detach it when the wait is over.
func (s *Scope) Attach(c Canceler) bool {
	s.join()
	s.mu.Lock()
	if s.cause != nil {
		s.mu.Unlock()
		return false
	}
	s.touch()
	for i := range s.attached {
		if s.attached[i] == nil {
			s.attached[i] = c
			s.mu.Unlock()
			return true
		}
	}
	f := &afterFunc{s: s, owner: c}
	f.f = func() { c.Cancelled(s.Cause()) }
	s.add(f)
	s.mu.Unlock()
	return true
}

// Detach takes c off. When it returns, c is not being told and will not be: c
// may serve another exchange.
func (s *Scope) Detach(c Canceler) {
	s.mu.Lock()
	for i := range s.attached {
		if s.attached[i] == c {
			s.attached[i] = nil
			s.mu.Unlock()
			return
		}
	}
	defer s.mu.Unlock()
	for f := range s.after {
		if f.owner == c {
			delete(s.after, f)
			return
		}
	}
	for s.telling == c {
		if s.told == nil {
			s.told = make(chan struct{})
		}
		told := s.told
		s.mu.Unlock()
		<-told
		s.mu.Lock()
	}
}

// Cause is why the scope is over; nil while it is not.
func (s *Scope) Cause() error {
	if s.state.Load() != over {
		if p := s.parent; p != nil {
			return p.Cause()
		}
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

// Done implements context.Context. The channel is made at the first call.
func (s *Scope) Done() <-chan struct{} {
	s.join()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.touch()
	if s.done == nil {
		s.done = make(chan struct{})
		if s.cause != nil {
			close(s.done)
		}
	}
	return s.done
}

// Err implements context.Context; Cause says more.
func (s *Scope) Err() error {
	if s.Cause() != nil {
		return context.Canceled
	}
	return nil
}

// Deadline implements context.Context: time-outs come by Cancel.
func (s *Scope) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value implements context.Context.
func (s *Scope) Value(any) any { return nil }

type afterFunc struct {
	s     *Scope
	f     func()
	owner Canceler
}

// AfterFunc is what package context looks for in a parent, so that a child of a
// Scope needs no goroutine.
func (s *Scope) AfterFunc(f func()) (stop func() bool) {
	s.join()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.touch()
	if s.cause != nil {
		go f()
		return func() bool { return false }
	}
	a := &afterFunc{s: s, f: f}
	s.add(a)
	return func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		_, ok := s.after[a]
		delete(s.after, a)
		return ok
	}
}

// add keeps a; the caller holds mu.
func (s *Scope) add(a *afterFunc) {
	if s.after == nil {
		s.after = make(map[*afterFunc]struct{}, 1)
	}
	s.after[a] = struct{}{}
}

// OnCancel makes c hear of the end of ctx: without cost where ctx is a [*Scope].
// It returns false, and c hears nothing, where ctx is over already. stop must be
// called when the wait is over.
func OnCancel(ctx context.Context, c Canceler) (stop Stop, ok bool) {
	if s, is := ctx.(*Scope); is {
		return Stop{scope: s, c: c}, s.Attach(c)
	}
	if ctx.Err() != nil {
		return Stop{}, false
	}
	if ctx.Done() == nil {
		return Stop{}, true
	}
	return Stop{stop: context.AfterFunc(ctx, func() { c.Cancelled(context.Cause(ctx)) })}, true
}

// Stop ends what OnCancel began. The zero value does nothing.
type Stop struct {
	scope *Scope
	c     Canceler
	stop  func() bool
}

// Stop takes the wait off. Of a [*Scope] see [Scope.Detach]; of another context
// an end that is under way may still be heard of.
func (s Stop) Stop() {
	switch {
	case s.scope != nil:
		s.scope.Detach(s.c)
	case s.stop != nil:
		s.stop()
	}
}

// CauseOf is why ctx is over, nil while it is not: [Scope.Cause] where it is one.
func CauseOf(ctx context.Context) error {
	if s, ok := ctx.(*Scope); ok {
		return s.Cause()
	}
	if ctx.Err() == nil {
		return nil
	}
	return context.Cause(ctx)
}
