package main

import "testing"

func TestBinaryMappings(t *testing.T) {
	got := binaryMappings([]byte(`00400000-00500000 r-xp 00000000 fe:00 1 /usr/bin/parrel
00500000-00600000 r--p 00100000 fe:00 1 /usr/bin/parrel
00600000-00610000 rw-p 00200000 fe:00 1 /usr/bin/parrel
00610000-00620000 rw-p 00000000 00:00 0
c000000000-c000400000 rw-p 00000000 00:00 0 [anon: Go: heap]
7fff0000-7fff2000 r-xp 00000000 00:00 0 [vdso]
00700000-00800000 r--s 00000000 fe:00 2 /shared
`))
	want := []mapping{{0x400000, 0x500000}, {0x500000, 0x600000}}
	if len(got) != len(want) || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("mappings %x, want %x: only the binary's own read-only pages may be dropped", got, want)
	}
}
