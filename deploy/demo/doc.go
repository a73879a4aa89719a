// Package demo is the supervisor of `parrel demo`: it lays out a small mesh in
// a folder of its own, starts control plane, sidecars and the shop's programs
// as processes on loopback, tells what to try, or checks the mesh by itself,
// and takes everything down again.
//
// Owns: the demo's layout, its processes, its checks. Does not know: how either
// plane works; it uses the same commands, files and addresses as any user.
//
// Invariants: nothing is left behind, whichever way the demo ends: children die
// with the supervisor, its folder is removed. No network beyond loopback.
//
// Entry point: [Run]. Read layout_test.go first.
package demo
