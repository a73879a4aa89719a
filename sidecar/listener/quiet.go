package listener

import (
	"sync"
	"time"
)

// A flood of probes must not become a flood of log lines: per listener at most
// refusalLines are written in each refusalWindow; the rest is counted and said
// in one line when the window ends. Metrics and access log know every one.
const (
	refusalLines  = 10
	refusalWindow = 10 * time.Second
)

// quiet is that limit for one listener.
type quiet struct {
	summary func(left int) // called without the lock

	mu    sync.Mutex
	timer *time.Timer // guarded by mu: runs while a window is open
	lines int         // guarded by mu: written in the window
	left  int         // guarded by mu: not written
}

// allow says whether a line may be written now.
func (q *quiet) allow() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.timer == nil {
		q.timer = time.AfterFunc(refusalWindow, q.end)
	}
	if q.lines < refusalLines {
		q.lines++
		return true
	}
	q.left++
	return false
}

// end ends the window and says what was left out in it.
func (q *quiet) end() {
	q.mu.Lock()
	left := q.left
	if q.timer != nil {
		q.timer.Stop()
	}
	q.timer, q.lines, q.left = nil, 0, 0
	q.mu.Unlock()
	if left > 0 {
		q.summary(left)
	}
}
