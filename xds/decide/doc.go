// Package decide is the meaning of the resources: which filter chain a
// connection takes, which route a request takes, whether it is authorised. Its
// functions are pure: what is not in the head comes as facts. The sidecar
// executes its verdicts; explain, analyze, plan and the simulator call the very
// same functions. There is no second implementation anywhere.
//
// Owns: chain match, route match, split, rewrite, authorisation; verdict and
// trace. Does not know: sockets, clocks, randomness, protos.
package decide
