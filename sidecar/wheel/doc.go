// Package wheel keeps many coarse time-outs with one timer of the runtime.
//
// A request has several time-outs and hardly ever meets one. So setting one is
// an atomic store: a [Timer] stays in the wheel from request to request, and
// only when its slot comes does the wheel look at what it was last set to.
//
// Owns: the wheel. Does not know: what a time-out means.
//
// Invariants: a function is called no earlier than its moment and about one
// [Tick] after it at the most; never under a lock; the wheel has no goroutine
// and no armed timer while nothing is set, so virtual time can stand still.
//
// Test to read first: TestSet.
package wheel
