package main

import "testing"

func TestBytesOf(t *testing.T) {
	for in, want := range map[string]int64{"1": 1, "268435456": 256 << 20, "256M": 256 << 20, "256MiB": 256 << 20, "256MB": 256 << 20,
		"1G": 1 << 30, "2TiB": 2 << 40, "64K": 64 << 10, "7B": 7} {
		if got, err := bytesOf(in); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "M", "0", "-1M", "1.5G", "1X", "1GG", "1iM", "1BB", "99999999T", "0x10", "1 M"} {
		if got, err := bytesOf(in); err == nil {
			t.Errorf("%q is %d", in, got)
		}
	}
}

func TestLimitFlags(t *testing.T) {
	c, err := (&limitFlags{memory: "64MiB", connections: 5, perListener: 3, perSource: -1}).config()
	if err != nil || c.Memory != 64<<20 || c.Connections != 5 || c.PerListener != 3 || c.PerSource != -1 || c.Descriptors < 64 {
		t.Errorf("%+v, %v", c, err)
	}
	for _, bad := range []string{"1MiB", "lots"} {
		if _, err := (&limitFlags{memory: bad}).config(); err == nil {
			t.Errorf("--memory-limit %s is taken", bad)
		}
	}
	if c, err := (&limitFlags{memory: "off"}).config(); err != nil || c.Memory != 0 {
		t.Errorf("off: %+v, %v", c, err)
	}
}
