//go:build linux

package netio

import (
	"testing"
	"time"
)

// What reaches a socket that was closed before is not acknowledged, and the end
// that was there first can be seen afterwards.
func TestAckedAndFinished(t *testing.T) {
	a, b := osPair(t)
	a.Write([]byte("one"))
	b.Read(make([]byte, 10))
	b.Write([]byte("two"))
	a.Read(make([]byte, 10))
	before, ok := Acked(a)
	if !ok || Finished(a) {
		t.Fatalf("ok %v, finished %v", ok, Finished(a))
	}
	a.Write([]byte("read"))
	b.Read(make([]byte, 10))
	b.Write([]byte("answer"))
	a.Read(make([]byte, 10))
	taken, _ := Acked(a)
	if taken != before+4 {
		t.Errorf("%d bytes acknowledged of 4", taken-before)
	}
	b.Close()
	a.SetReadDeadline(time.Now().Add(10 * time.Second))
	_ = a.WaitReadable()
	a.Write([]byte("too late"))
	if after, _ := Acked(a); after != taken || !Finished(a) {
		t.Errorf("%d bytes acknowledged by nobody; finished %v", after-taken, Finished(a))
	}
}
