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

	"github.com/parrel-mesh/parrel/deploy/demo"
)

// settleAfter is when a process that runs for long has done its start.
const settleAfter = time.Second

// settle gives back what only starting needed: heap that is free, and the pages
// of the binary that were read once, by the initialisation of packages. They
// stay in the page cache and are mapped again where they are used, so that the
// resident set becomes what the process works with. It does so now and once
// more when the command has started, then whenever a burst has left much of
// either, and ends with ctx; once started, the collector is paced. In a demo, which runs a
// whole mesh on one machine, it stays at it.
func settle(ctx context.Context) {
	if os.Getenv(demo.StaySmall) != "" {
		staySmall(ctx)
		return
	}
	binary := ownPages()
	unmap(binary)
	go func() {
		select {
		case <-ctx.Done():
		case <-time.After(settleAfter):
			debug.FreeOSMemory()
			unmap(binary)
		}
		pace(ctx)
		giveBack(ctx, func() { unmap(binary) })
	}()
}

// staySmall is settle over and over, for processes of which a demo has many and
// which have next to nothing to do.
func staySmall(ctx context.Context) {
	binary := ownPages()
	unmap(binary)
	go func() {
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				unmap(binary)
			}
		}
	}()
}

// ownPages lists the mappings that unmap may be given. They do not change while
// the process lives: a Go program loads nothing later.
func ownPages() []mapping {
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return nil // no /proc: nothing is lost but memory
	}
	return binaryMappings(smaps)
}

// unmap drops the pages of read-only private file mappings that hold nothing of
// their own, for which MADV_DONTNEED is lossless (madvise(2)). An error leaves
// the pages where they are.
func unmap(mappings []mapping) {
	for _, m := range mappings {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED)
	}
}

type mapping struct{ start, end uintptr }

// binaryMappings returns the read-only private file mappings of
// /proc/self/smaps (proc_pid_smaps(5)) of which no page was ever written. What
// a dynamic loader relocated and then made read-only (RELRO) looks the same in
// /proc/self/maps, and would come back as it is in the file.
func binaryMappings(smaps []byte) []mapping {
	var out []mapping
	var m mapping // zero: none that is wanted
	var clean bool
	take := func() {
		if clean && m.end > m.start {
			out = append(out, m)
		}
		m, clean = mapping{}, false
	}
	sc := bufio.NewScanner(bytes.NewReader(smaps))
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		switch {
		case len(f) == 3 && f[0] == "Anonymous:":
			clean = f[1] == "0"
			continue
		case len(f) == 3 && f[0] == "Swap:": // comes after Anonymous
			clean = clean && f[1] == "0"
			continue
		case len(f) == 0 || strings.HasSuffix(f[0], ":"):
			continue
		}
		take()
		if len(f) < 6 || !strings.HasPrefix(f[5], "/") || (f[1] != "r-xp" && f[1] != "r--p") {
			continue
		}
		from, to, ok := strings.Cut(f[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if ok && err1 == nil && err2 == nil {
			m = mapping{uintptr(start), uintptr(end)}
		}
	}
	take()
	return out
}
