package h2

import "sync"

// workers runs the work of streams on goroutines that are kept: the one that
// rested last has the stack that is warm.
type workers struct {
	c       *conn
	resting []*worker // guarded by c.mu; last in, first out
	closed  bool      // guarded by c.mu
	all     sync.WaitGroup
}

type worker struct{ next chan *strm }

func (w *workers) init(c *conn) { w.c = c }

// run makes st.work() happen. The caller holds mu.
func (w *workers) run(st *strm) {
	if n := len(w.resting); n > 0 {
		k := w.resting[n-1]
		w.resting = w.resting[:n-1]
		k.next <- st // has room: a resting worker has nothing else to do
		return
	}
	w.all.Add(1)
	go w.work(&worker{make(chan *strm, 1)}, st)
}

func (w *workers) work(k *worker, st *strm) {
	defer w.all.Done()
	for st != nil {
		st.work()
		w.c.mu.Lock()
		if w.closed {
			w.c.mu.Unlock()
			return
		}
		w.resting = append(w.resting, k)
		w.c.mu.Unlock()
		st = <-k.next
	}
}

// trim ends those that rest; the caller holds mu.
func (w *workers) trim() {
	for _, k := range w.resting {
		close(k.next)
	}
	w.resting = nil
}

// close waits until every worker has ended.
func (w *workers) close() {
	w.c.mu.Lock()
	w.closed = true
	w.trim()
	w.c.mu.Unlock()
	w.all.Wait()
}
