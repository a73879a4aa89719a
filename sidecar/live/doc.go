// Package live is the index of what is open: connections and streams by
// workload, peer and deciding policy. After a change of configuration it asks
// each of them again whether it is still allowed and ends those that are not.
//
// Owns: the index and re-authorisation. Does not know: engines' internals,
// how a decision is made.
//
// Entry points: [New], [Index.Add], [Index.Recheck].
//
// Invariants: nothing is called and nothing waits under a lock: entries come and
// go while a recheck runs; what was removed is not asked again.
//
// Test to read first: TestRecheckEndsWhatMayNotStay.
package live
