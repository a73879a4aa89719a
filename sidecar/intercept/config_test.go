package intercept

import (
	"slices"
	"testing"
)

func TestPorts(t *testing.T) {
	for s, want := range map[string]PortRange{"80": {80, 80}, "8000-8010": {8000, 8010}, "1-65535": {1, 65535}} {
		got, err := ParsePorts(s)
		if err != nil || got != want || got.String() != s {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "0", "-1", "80-", "90-80", "65536", "http", "80,81", "0-5"} {
		if got, err := ParsePorts(s); err == nil {
			t.Errorf("%q is taken as %v", s, got)
		}
	}
	got := mergePorts(Ports(80, 22, 81, 65535), []PortRange{{8000, 8100}, {8050, 8200}, {65000, 65535}})
	want := []PortRange{{22, 22}, {80, 81}, {8000, 8200}, {65000, 65535}}
	if !slices.Equal(got, want) {
		t.Errorf("merged to %v, want %v", got, want)
	}
}
