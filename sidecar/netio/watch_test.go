package netio

import (
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSilence: whom the watch takes for gone. A row says what the kernel tells
// at each look, watchEvery apart, and at which look the connection is reset.
func TestSilence(t *testing.T) {
	const never = -1
	s := func(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }
	quiet := func(ages ...float64) (ls []look) { // with one more segment sent before each look
		for i, a := range ages {
			ls = append(ls, look{quiet: s(a), waiting: true, asked: asked{segments: uint32(i)}})
		}
		return ls
	}
	change := func(ls []look, f func(i int, l *look)) []look {
		for i := range ls {
			f(i, &ls[i])
		}
		return ls
	}
	for _, tt := range []struct {
		name  string
		looks []look
		gone  int // index of the look
	}{
		{"the peer answers", quiet(1, 2, 0.1, 3, 4, 0, 1, 2, 4.9), never},
		{"gone with data unacknowledged", quiet(1, 6, 11, 16, 21, 26), 5},
		{"the ACK came just before a look", quiet(0, 5, 10, 15, 20, 25), 5},
		{"gone, but nothing waits: keep-alive's to find",
			change(quiet(1, 6, 11, 16, 21, 26, 31), func(_ int, l *look) { l.waiting = false }), never},
		{"a pause whose probes are far apart: nothing was asked since the last answer",
			change(quiet(1, 6, 11, 16, 21, 26, 31, 36, 41, 46, 51), func(_ int, l *look) { l.asked.segments = 7 }), never},
		{"such a pause, the next probe is answered at once",
			change(quiet(1, 6, 11, 16, 21, 26, 31, 4, 9, 14, 19, 24), func(i int, l *look) { l.asked.segments = uint32(i / 7) }), never},
		{"such a pause, the next probe is not answered",
			change(quiet(1, 6, 11, 16, 21, 26, 31, 36, 41, 46), func(i int, l *look) { l.asked = asked{probes: uint8(i / 6)} }), 8},
		{"idle for long, then something is sent: it has time to answer",
			change(quiet(300, 305, 310, 315, 320, 1), func(i int, l *look) { l.asked.segments = uint32(i / 4) }), never},
		{"no route: nothing leaves, the attempts count",
			change(quiet(1, 6, 11, 16, 21, 26), func(i int, l *look) { l.asked = asked{retransmits: uint8(i)} }), 5},
		{"a kernel too old to count segments",
			change(quiet(1, 6, 11, 16, 21, 26, 31), func(_ int, l *look) { l.asked = asked{} }), never},
		{"asked, but it answered later", quiet(1, 6, 11, 16, 21, 2, 7, 12, 17, 22), never},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var sil silence
			at := time.Unix(1000, 0)
			got := never
			for i, l := range tt.looks {
				l.at = at.Add(time.Duration(i) * watchEvery)
				if sil.observe(l) {
					got = i
					break
				}
			}
			if got != tt.gone {
				t.Fatalf("taken for gone at look %d, want %d", got, tt.gone)
			}
		})
	}
}

// TestSilenceIsFoundInTime: whenever between two looks the last ACK came, and
// however late the next question, the reset comes within 30 s of that ACK.
func TestSilenceIsFoundInTime(t *testing.T) {
	for first := time.Duration(0); first < watchEvery; first += 100 * time.Millisecond {
		for question := time.Duration(0); question <= probesApart; question += 100 * time.Millisecond {
			var sil silence
			sil.observe(look{at: time.Unix(1000, 0).Add(first - watchEvery)})
			for age := first; ; age += watchEvery {
				l := look{at: time.Unix(1000, 0).Add(age), quiet: age, waiting: true}
				for q := question; q <= age; q += probesApart {
					l.asked.probes++
				}
				if sil.observe(l) {
					if age < silentAfter || age > 30*time.Second {
						t.Fatalf("looks at %s, asked at %s: reset after %s", first, question, age)
					}
					break
				}
			}
		}
	}
}

// TestSilentError: what ends reads and writes says why, and is a time-out to
// whoever sorts errors.
func TestSilentError(t *testing.T) {
	l, err := OS{}.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := OS{}.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	o := c.(*osConn)
	if o.watch != nil {
		t.Fatal("a connection on loopback is watched")
	}
	o.watch = &watch{c: o.kernelConn.(*net.TCPConn), rc: o.rc, owner: o, timer: time.NewTimer(time.Hour)}
	o.watch.gone.Store(&errSilent{26 * time.Second})
	o.shut()
	_, rerr := c.Read(make([]byte, 1))
	_, werr := c.Write(make([]byte, 1))
	for _, err := range []error{rerr, werr, c.WaitReadable(), c.CloseWrite(), c.SetDeadline(time.Time{})} {
		var ne net.Error
		if !errors.As(err, &ne) || !ne.Timeout() || !errors.Is(err, syscall.ETIMEDOUT) || errors.Is(err, net.ErrClosed) {
			t.Errorf("%v is not a time-out of the peer", err)
		}
		if err != nil && !strings.Contains(err.Error(), "acknowledged nothing for 26s") {
			t.Errorf("%v does not say why", err)
		}
	}
	if err := c.Close(); err != nil {
		t.Errorf("close after the watch: %v", err)
	}
}
