package main

import (
	"os"
	"slices"
	"testing"
)

// TestBinaryMappings: text and constants are given back, and nothing that
// anybody wrote, though it is read-only by now.
func TestBinaryMappings(t *testing.T) {
	got := binaryMappings([]byte(`00400000-00c00000 r-xp 00000000 fe:00 11 /usr/bin/parrel
Rss:                 100 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
00c00000-00d00000 r--p 00800000 fe:00 11 /usr/bin/parrel
Anonymous:             0 kB
00d00000-00d10000 rw-p 00900000 fe:00 11 /usr/bin/parrel
Anonymous:             0 kB
7f0000000000-7f0000010000 r--p 00010000 fe:00 12 /lib/libc.so.6
Anonymous:            16 kB
7f0000010000-7f0000020000 r--p 00000000 00:00 0
Anonymous:             0 kB
7f0000020000-7f0000030000 r--s 00000000 fe:00 13 /usr/share/zone
Anonymous:             0 kB
7f0000030000-7f0000040000 r-xp 00000000 00:00 0 [vdso]
Anonymous:             0 kB
7f0000050000-7f0000060000 r--p 00010000 fe:00 12 /lib/swapped.so
Anonymous:             0 kB
Swap:                  4 kB
7f0000040000-7f0000050000 r--p 00000000 fe:00 14 /lib/unknown.so
`))
	want := []mapping{{0x400000, 0xc00000}, {0xc00000, 0xd00000}}
	if !slices.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

// TestUnmapUnused: the process goes on after it, linked dynamically or not.
func TestUnmapUnused(t *testing.T) {
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	if len(binaryMappings(smaps)) == 0 {
		t.Fatalf("nothing of the binary was found in:\n%s", smaps)
	}
	for range 3 {
		unmap(ownPages())
	}
}
