//go:build !linux

package main

import (
	"fmt"
	"os"
)

// inside is set in the environment of a process that is apart.
const inside = "PARREL_BENCH_APART"

// apart says that there is no network namespace to be apart in.
func apart(bool) int {
	fmt.Fprintln(os.Stderr, "compare: the benchmark needs Linux: it runs in a network namespace of its own")
	return 1
}
