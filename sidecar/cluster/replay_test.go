package cluster

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// lent is a body that lends its parts, the last together with the end.
type lent struct {
	parts  [][]byte
	closed int
}

func (l *lent) Next() ([]byte, error) {
	if len(l.parts) == 0 {
		return nil, io.EOF
	}
	p := l.parts[0]
	if l.parts = l.parts[1:]; len(l.parts) == 0 {
		return p, io.EOF
	}
	return p, nil
}
func (l *lent) Ready() bool              { return true }
func (l *lent) Read([]byte) (int, error) { panic("a lender is not read") }
func (l *lent) Trailers() stream.Header  { return nil }
func (l *lent) Close() error             { l.closed++; return nil }

// readAll reads by Next, or by Read in odd pieces.
func readAll(b stream.Body, by string) (string, error) {
	var out bytes.Buffer
	if by == "next" {
		for {
			p, err := b.(stream.Chunks).Next()
			out.Write(p)
			if err != nil {
				return out.String(), err
			}
		}
	}
	p := make([]byte, 777)
	for {
		n, err := b.Read(p)
		out.Write(p[:n])
		if err != nil {
			return out.String(), err
		}
	}
}

// Each attempt reads the whole body, whichever way, up to maxReplay; beyond it
// only the first does.
func TestReplay(t *testing.T) {
	for _, size := range []int{0, 1, 100, 16 << 10, 16<<10 + 1, maxReplay - 1, maxReplay, maxReplay + 1, 200_000} {
		want := strings.Repeat("0123456789abcdef", size/16+1)[:size]
		for _, by := range []string{"next", "read"} {
			for _, part := range []int{0, 1000, 40_000} {
				var src stream.Body = text(want)
				var l *lent
				if part > 0 {
					l = &lent{}
					for at := 0; at < size; at += part {
						l.parts = append(l.parts, []byte(want[at:min(at+part, size)]))
					}
					src = l
				}
				var r replay
				r.begin(src)
				for i := range 3 {
					if !r.again() {
						if size <= maxReplay-1 || i == 0 {
							t.Errorf("%d bytes cannot be sent again", size)
						}
						break
					}
					got, err := readAll(r.view(), by)
					if got != want || err != io.EOF {
						t.Errorf("%d bytes by %s in %d: attempt %d got %d bytes, %v", size, by, part, i, len(got), err)
					}
				}
				if size > maxReplay && r.again() {
					t.Errorf("%d bytes are kept", size)
				}
				last := r.current
				r.final()
				last.Close()
				last.Close()
				if l != nil && l.closed != 1 {
					t.Errorf("closed %d times", l.closed)
				}
			}
		}
	}
}

// A body that comes whole is lent, not copied.
func TestWholeBodyIsNotCopied(t *testing.T) {
	whole := []byte("all of it")
	var r replay
	n := testing.AllocsPerRun(100, func() {
		r = replay{}
		l := lent{parts: [][]byte{whole}}
		r.begin(&l)
		b, err := r.view().(stream.Chunks).Next()
		if &b[0] != &whole[0] || err != io.EOF {
			t.Error("copied")
		}
	})
	if n > 2 { // the body of the test and its list
		t.Errorf("%v allocations", n)
	}
}

// An attempt that is superseded while it waits for bytes gets none of them: they
// are its successor's.
func TestSupersededAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pr, pw := io.Pipe()
		var r replay
		r.begin(&body{Reader: pr})
		first := r.view()
		var got string
		var err error
		done := make(chan struct{})
		go func() { defer close(done); got, err = readAll(first, "next") }()
		synctest.Wait()
		second := r.view()
		var all string
		var all2 error
		done2 := make(chan struct{})
		go func() { defer close(done2); all, all2 = readAll(second, "read") }()
		synctest.Wait()
		io.WriteString(pw, "hello ")
		io.WriteString(pw, "there")
		pw.Close()
		<-done
		<-done2
		if got != "" || err != errSuperseded || all != "hello there" || all2 != io.EOF {
			t.Errorf("first %q %v, second %q %v", got, err, all, all2)
		}
		if r.release() {
			t.Error("recycled though an attempt was superseded")
		}
	})
}
