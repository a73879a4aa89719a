package main

import (
	"os"
	"slices"
	"testing"
)

func TestBinaryMappings(t *testing.T) {
	got := binaryMappings([]byte(`00400000-00500000 r-xp 00000000 fe:00 1 /usr/bin/parrel
Size:               1024 kB
Rss:                 900 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me
00500000-00600000 r--p 00100000 fe:00 1 /usr/bin/parrel
Anonymous:             0 kB
00600000-00610000 rw-p 00200000 fe:00 1 /usr/bin/parrel
Anonymous:             4 kB
00610000-00620000 rw-p 00000000 00:00 0
Anonymous:             4 kB
00620000-00630000 r--p 00210000 fe:00 1 /lib/relocated.so
Anonymous:             8 kB
Swap:                  0 kB
00630000-00640000 r--p 00210000 fe:00 1 /lib/relocated-and-swapped.so
Anonymous:             0 kB
Swap:                  4 kB
c000000000-c000400000 rw-p 00000000 00:00 0 [anon: Go: heap]
7fff0000-7fff2000 r-xp 00000000 00:00 0 [vdso]
00700000-00800000 r--s 00000000 fe:00 2 /shared
Anonymous:             0 kB
`))
	want := []mapping{{0x400000, 0x500000}, {0x500000, 0x600000}}
	if !slices.Equal(got, want) {
		t.Errorf("mappings %x, want %x: only read-only pages that nobody wrote may be dropped", got, want)
	}
}

// TestUnmapUnused: the process goes on after it; a test binary may be linked
// dynamically, where the linker's own pages are read-only too.
func TestUnmapUnused(t *testing.T) {
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	if len(binaryMappings(smaps)) == 0 {
		t.Fatalf("nothing of the binary was found in:\n%s", smaps)
	}
	for range 3 {
		unmapUnused()
	}
}
