package cluster

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
)

var errPerTry = errors.New("cluster: the attempt ran out of its time")

// try bounds one attempt until its response's head is there. It is used for one
// attempt after another where each ended in order: the timer stays in the wheel,
// whose call may come late, and then finds that another attempt's time is not up.
type try struct {
	wheel *wheel.Wheel
	scope *stream.Scope // the attempt's
	timer wheel.Timer
	stop  stream.Stop
	own   bool // the caller's context is a scope, which says when it tells nobody any more
	once  bool // not to be used again
	// state is a generation above one of the three below.
	state atomic.Uint64
	due   atomic.Int64 // in the wheel's time; written before the state of its attempt
}

const (
	tryWaiting  = iota
	tryAnswered // the head came first
	tryLate     // the time was up first
	tryStates   = iota
)

// tries are those that no attempt holds.
var tries sync.Pool

// newTry bounds an attempt that begins at the moment; zero: now.
func newTry(ctx context.Context, w *wheel.Wheel, begin time.Time, d time.Duration) *try {
	t, _ := tries.Get().(*try)
	if t == nil || t.wheel != w {
		t = &try{wheel: w, scope: new(stream.Scope)}
		t.timer.Init(w, t.late)
	}
	var due int64
	if begin.IsZero() {
		due = w.Now() + int64(d)
	} else {
		due = w.At(begin) + int64(d)
	}
	t.due.Store(due)
	t.state.Store((t.state.Load()/tryStates+1)*tryStates + tryWaiting)
	var caller *stream.Scope
	caller, t.own = ctx.(*stream.Scope)
	t.once = false
	if t.own {
		t.scope.Within(caller)
		t.timer.SetAt(due)
		return t
	}
	var ok bool
	if t.stop, ok = stream.OnCancel(ctx, t); !ok {
		t.scope.Cancel(stream.CauseOf(ctx))
		return t
	}
	t.timer.SetAt(due)
	return t
}

// Cancelled implements [stream.Canceler].
func (t *try) Cancelled(cause error) { t.scope.Cancel(cause) }

// late is called by the wheel.
func (t *try) late() {
	state := t.state.Load()
	if state%tryStates != tryWaiting || t.wheel.Now() < t.due.Load() {
		return
	}
	if t.state.CompareAndSwap(state, state-tryWaiting+tryLate) {
		t.scope.Cancel(errPerTry)
	}
}

// answered ends the time-out and says whether the attempt came before it.
func (t *try) answered() bool {
	t.timer.Stop()
	state := t.state.Load()
	return state%tryStates == tryWaiting && t.state.CompareAndSwap(state, state-tryWaiting+tryAnswered)
}

// end lets the caller's scope go. t is not the attempt's any more.
func (t *try) end() {
	t.scope.Leave()
	t.stop.Stop()
	if t.once || !t.own || t.state.Load()%tryStates != tryAnswered || t.scope.Cause() != nil {
		return
	}
	t.stop = stream.Stop{}
	t.scope = t.scope.Renew()
	tries.Put(t)
}
