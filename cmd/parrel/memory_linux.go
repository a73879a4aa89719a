package main

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// settleAfter is when a process that runs for long has done its start.
const settleAfter = 3 * time.Second

// settle gives back what only starting needed: heap that is free, and the pages
// of the binary that were read once, by the initialisation of packages. They
// stay in the page cache and are mapped again where they are used, so that the
// resident set becomes what the process works with. It does so now and once
// more when the command has started, and ends with ctx.
func settle(ctx context.Context) {
	unmapUnused()
	go func() {
		select {
		case <-ctx.Done():
		case <-time.After(settleAfter):
			debug.FreeOSMemory()
			unmapUnused()
		}
	}()
}

// staySmall is settle over and over, for processes of which a demo has many and
// which have next to nothing to do.
func staySmall(ctx context.Context) {
	unmapUnused()
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				unmapUnused()
			}
		}
	}()
}

// unmapUnused drops the pages of read-only private file mappings. They hold
// nothing of their own, which makes MADV_DONTNEED lossless for them
// (madvise(2)). An error leaves the pages where they are.
func unmapUnused() {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return // no /proc: nothing is lost but memory
	}
	for _, m := range binaryMappings(maps) {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED)
	}
}

type mapping struct{ start, end uintptr }

// binaryMappings returns the read-only private file mappings of /proc/self/maps
// (proc_pid_maps(5)).
func binaryMappings(maps []byte) []mapping {
	var out []mapping
	sc := bufio.NewScanner(bytes.NewReader(maps))
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 6 || !strings.HasPrefix(f[5], "/") || (f[1] != "r-xp" && f[1] != "r--p") {
			continue
		}
		from, to, ok := strings.Cut(f[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if ok && err1 == nil && err2 == nil && end > start {
			out = append(out, mapping{uintptr(start), uintptr(end)})
		}
	}
	return out
}
