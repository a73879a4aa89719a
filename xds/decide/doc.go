// Package decide is the meaning of the resources: which filter chain a
// connection takes, which route a request takes, whether it is authorised. Its
// functions are pure: what is not in the head comes as facts. The sidecar
// executes its verdicts; explain, analyze, plan and the simulator call the very
// same functions. There is no second implementation anywhere.
//
// Owns: chain match, route match, split, rewrite, authorisation; verdict and
// trace. Does not know: sockets, clocks, randomness, protos.
//
// Entry points: [CompileListener], [CompileRoutes] and [CompileRBAC] compile a
// valid resource once; [Chains.Match], [Routes.Route] and [RBAC.Authorise]
// decide, concurrently, without allocating where no trace is asked for and
// nothing is rewritten.
//
// Invariants: a trace never changes a verdict; routing and authorisation look
// at the same path ([PathOf]); in authorisation what cannot be told never opens
// a door (see truth). Read first: TestUnknownNeverOpensADoor,
// TestIndexAgainstLinear, TestChainsAgainstNarrowing.
package decide
