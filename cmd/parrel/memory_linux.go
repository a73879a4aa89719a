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

// unmapUnused drops the pages of read-only private file mappings of which no
// page was ever written: they hold nothing of their own, which makes
// MADV_DONTNEED lossless for them (madvise(2)). A mapping that was written
// before it became read-only, such as what the dynamic linker relocated in a
// binary that is linked so, would lose that. An error leaves the pages where they
// are.
func unmapUnused() {
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return // no /proc: nothing is lost but memory
	}
	for _, m := range binaryMappings(maps) {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED)
	}
}

type mapping struct{ start, end uintptr }

// binaryMappings returns the read-only private file mappings of /proc/self/smaps
// (proc_pid_smaps(5)) that have no page of their own, in memory or swapped out.
func binaryMappings(smaps []byte) []mapping {
	var out []mapping
	open := false // the last of out is the mapping whose numbers are being read
	sc := bufio.NewScanner(bytes.NewReader(smaps))
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) >= 2 && strings.HasSuffix(f[0], ":") {
			if open && f[1] != "0" && (f[0] == "Anonymous:" || f[0] == "Swap:") {
				out, open = out[:len(out)-1], false
			}
			continue
		}
		open = false
		if len(f) < 6 || !strings.HasPrefix(f[5], "/") || (f[1] != "r-xp" && f[1] != "r--p") {
			continue
		}
		from, to, ok := strings.Cut(f[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if ok && err1 == nil && err2 == nil && end > start {
			out, open = append(out, mapping{uintptr(start), uintptr(end)}), true
		}
	}
	return out
}
