package stream

import (
	"context"
	"errors"
	"testing"
	"time"
)

var errEnd = errors.New("the end")

type heard struct {
	cause error
	enter chan struct{} // closed when it is told
	leave chan struct{} // it returns when this is closed
}

func (h *heard) Cancelled(cause error) {
	h.cause = cause
	if h.enter != nil {
		close(h.enter)
		<-h.leave
	}
}

func TestScopeTells(t *testing.T) {
	var s Scope
	var hs [maxAttached + 2]heard
	for i := range hs {
		if !s.Attach(&hs[i]) {
			t.Fatal("a live scope refuses")
		}
	}
	s.Detach(&hs[1])
	s.Detach(&hs[maxAttached+1]) // beyond the room
	called := make(chan struct{})
	stop := context.AfterFunc(&s, func() { close(called) })
	defer stop()
	child, cancel := context.WithCancel(&s)
	defer cancel()
	s.Cancel(errEnd)
	s.Cancel(nil)
	<-called
	<-child.Done()
	if s.Cause() != errEnd || s.Err() != context.Canceled || context.Cause(child) == nil || CauseOf(&s) != errEnd {
		t.Errorf("cause %v, err %v", s.Cause(), s.Err())
	}
	for i := range maxAttached {
		if got := hs[i].cause; (got == errEnd) == (i == 1) {
			t.Errorf("%d was told %v", i, got)
		}
	}
	if hs[maxAttached+1].cause != nil {
		t.Error("the detached one was told")
	}
	if s.Attach(&hs[0]) {
		t.Error("a scope that is over takes one")
	}
}

// Who asked a scope keeps its answer, though the owner goes on.
func TestScopeRenew(t *testing.T) {
	first := new(Scope)
	first.Cancel(errEnd)
	second := first.Renew()
	if second != first || second.Err() != nil {
		t.Fatal("a scope that nobody looked at is not used again")
	}
	child, cancel := context.WithCancel(second)
	defer cancel()
	second.Cancel(errEnd)
	third := second.Renew()
	if third == second || third.Err() != nil || second.Err() == nil {
		t.Fatal("a scope that has been looked at is used again")
	}
	<-child.Done()
	if child.Err() == nil {
		t.Error("the child lives")
	}
}

// Detach returns only when nothing is being told any more.
func TestScopeDetachWaits(t *testing.T) {
	var s Scope
	h := &heard{enter: make(chan struct{}), leave: make(chan struct{})}
	s.Attach(h)
	go s.Cancel(errEnd)
	<-h.enter
	detached := make(chan struct{})
	go func() { s.Detach(h); close(detached) }()
	select {
	case <-detached:
		t.Error("detached while it is being told")
	case <-time.After(20 * time.Millisecond):
	}
	close(h.leave)
	<-detached
}

// closer detaches another, and is waited for by it: as two ends of a tunnel do.
type closer struct {
	s     *Scope
	other Canceler
}

func (c *closer) Cancelled(error) { c.s.Detach(c.other) }

func TestScopeDetachesOthers(t *testing.T) {
	for _, first := range []bool{true, false} {
		var s Scope
		h := &heard{}
		c := &closer{&s, h}
		if first {
			s.Attach(c)
			s.Attach(h)
		} else {
			s.Attach(h)
			s.Attach(c)
		}
		s.Cancel(errEnd)
		if told := h.cause != nil; told == first {
			t.Errorf("detached first: %t, told: %t", first, told)
		}
	}
}

func TestScopeAllocatesNothing(t *testing.T) {
	s, h := new(Scope), &heard{}
	if n := testing.AllocsPerRun(100, func() {
		stop, _ := OnCancel(s, h)
		stop.Stop()
		s.Cancel(errEnd)
		s = s.Renew()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A scope within another ends with it, whether somebody waits already or not,
// and is out of its reach after Leave.
func TestScopeWithin(t *testing.T) {
	for _, waits := range []bool{false, true} {
		var parent Scope
		child := new(Scope)
		child.Within(&parent)
		var h heard
		if waits && !child.Attach(&h) {
			t.Fatal("a live scope refuses")
		}
		parent.Cancel(errEnd)
		if child.Cause() != errEnd || child.Err() != context.Canceled {
			t.Errorf("waits %v: cause %v", waits, child.Cause())
		}
		if waits && h.cause != errEnd {
			t.Errorf("was told %v", h.cause)
		}
		if child.Attach(&h) {
			t.Error("a scope whose parent is over takes one")
		}
		select {
		case <-child.Done():
		default:
			t.Error("the channel is open")
		}
		child.Leave()
		if child.Cause() != errEnd {
			t.Errorf("after Leave: cause %v", child.Cause())
		}
	}
	var parent Scope
	child := new(Scope)
	for range 2 {
		child.Within(&parent)
		var h heard
		child.Attach(&h)
		child.Detach(&h)
		child.Leave()
		parent.Cancel(errEnd)
		if child.Cause() != nil || h.cause != nil {
			t.Errorf("left, and ended all the same: %v, %v", child.Cause(), h.cause)
		}
		child.Cancel(nil)
		if again := child.Renew(); again != child || child.Cause() != nil {
			t.Fatalf("not renewed: %v", child.Cause())
		}
		parent.Renew()
	}
}

// A scope in which nobody had an interest is not touched from exchange to
// exchange; one in which somebody had ends.
func TestScopeRetire(t *testing.T) {
	s := new(Scope)
	s.Mark(7)
	s.Retire()
	if at, again := s.Marked(), s.Marked(); at != 7 || again != 0 {
		t.Errorf("marked %d, then %d", at, again)
	}
	if s.Renew() != s || s.Cause() != nil {
		t.Error("a scope that nobody asked is not the same again")
	}
	var h heard
	s.Attach(&h)
	s.Retire()
	if h.cause != context.Canceled || s.Cause() != context.Canceled {
		t.Errorf("told %v, cause %v", h.cause, s.Cause())
	}
	if s.Renew() != s || s.Cause() != nil {
		t.Error("not renewed")
	}
	done := s.Done()
	s.Retire()
	<-done
	if s.Renew() == s {
		t.Error("a scope whose channel is closed serves again")
	}
}
