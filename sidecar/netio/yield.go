package netio

// yield decides whether a reader lets others run before it asks the kernel.
//
// Why: who has just written and now waits for the answer finds nothing: the
// system call is wasted, and waking up by the poller costs as much again. Under
// load there are others to run, and when they have, the answer is there.
//
// Conditions: it pays while the first try after it finds something. Each time
// that it does not, twice as many reads go without it, up to yieldMost: an idle
// process pays nothing that could be measured.
//
// First start: with it. Recovery: one success.
type yield struct {
	skip, misses uint8 // one goroutine reads: not shared
}

const yieldMost = 6 // 2^6 reads

// likely says that it pays. A false one counts towards the next try.
func (y *yield) likely() bool {
	if y.skip > 0 {
		y.skip--
		return false
	}
	return true
}

// after is told whether the first try then found something.
func (y *yield) after(found bool) {
	if found {
		y.misses = 0
		return
	}
	y.misses = min(y.misses+1, yieldMost)
	y.skip = 1<<y.misses - 1
}
