//go:build !race

package h1

import (
	"strings"
	"testing"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// Nothing is allocated for a request, on either side, beyond what a connection
// costs once. (Not with the race detector, under which pools forget.)
func TestAllocations(t *testing.T) {
	unpoisoned(t)
	const exchanges = 1000
	for name, text := range map[string][2]string{
		"small": {smallHead, usualResponse},
		"usual": {usualHead, usualResponse},
		"post":  {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1024\r\n\r\n" + strings.Repeat("x", 1024), usualResponse},
		"chunked": {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"},
		"absolute form": {"GET http://a/ HTTP/1.1\r\nHost: a\r\nConnection: x-a\r\nX-A: 1\r\n\r\n", usualResponse},
		"HTTP/1.0":      {"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", usualResponse},
	} {
		t.Run(name, func(t *testing.T) {
			once := testing.AllocsPerRun(5, func() { forward(1, text[0], text[1]) })
			many := testing.AllocsPerRun(5, func() { forward(exchanges, text[0], text[1]) })
			if per := (many - once) / exchanges; per > 0.02 { // a collection empties the pools
				t.Errorf("%.3f allocations for an exchange (%v for one, %v for %d)", per, once, many, exchanges)
			}
		})
	}
}

func TestScanAllocations(t *testing.T) {
	buf := make([]byte, len(usualHead))
	room := make(stream.Header, 0, 32)
	var m message
	var h stream.RequestHead
	if n := testing.AllocsPerRun(100, func() {
		copy(buf, usualHead)
		m.begin(aRequest, 128, room)
		if done, f := m.scan(buf); !done || f != nil || m.request(&h) != nil {
			t.Fatal("not scanned")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
