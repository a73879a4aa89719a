package attack

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// seen is one request as it arrived at a backend.
type seen struct {
	method, target string
	fields         [][2]string // name as it came, value
	body           string
	conn           int // which of the backend's connections
}

func (s seen) get(name string) (v string, n int) {
	for _, f := range s.fields {
		if strings.EqualFold(f[0], name) {
			v, n = f[1], n+1
		}
	}
	return v, n
}

func (s seen) String() string { return fmt.Sprintf("%s %s %q", s.method, s.target, s.body) }

// backend is a server of HTTP/1.1 that takes nothing but what can be read in one
// way: whatever else arrives is kept as garbage.
type backend struct {
	t    testing.TB
	ln   net.Listener
	wg   sync.WaitGroup
	mu   sync.Mutex
	open map[net.Conn]struct{} // guarded by mu
	got  []seen                // guarded by mu
	bad  []string              // guarded by mu
	n    int                   // guarded by mu: connections
	// answer, where set, takes the place of the usual answer: it says what is
	// written, and whether the connection goes on. Set before the first request.
	answer func(c net.Conn, s seen) (again bool)
	// slow, where set, is closed when bodies are to be read: until then the head of
	// a request is read and no more.
	slow chan struct{}
}

// newBackend listens until the test ends.
func newBackend(t testing.TB) *backend {
	t.Helper()
	ln := listen(t)
	b := &backend{t: t, ln: ln, open: map[net.Conn]struct{}{}}
	b.wg.Go(b.accept)
	t.Cleanup(func() {
		_ = ln.Close()
		b.cut()
		b.wg.Wait()
	})
	return b
}

func (b *backend) address() string { return b.ln.Addr().String() }

// cut closes every connection.
func (b *backend) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.open {
		_ = c.Close()
	}
}

// take gives what came since the last call.
func (b *backend) take() (got []seen, bad []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	got, bad = b.got, b.bad
	b.got, b.bad = nil, nil
	return got, bad
}

func (b *backend) accept() {
	for {
		c, err := b.ln.Accept()
		if err != nil {
			return
		}
		b.mu.Lock()
		b.open[c] = struct{}{}
		b.n++
		n := b.n
		b.mu.Unlock()
		b.wg.Go(func() {
			defer func() {
				_ = c.Close()
				b.mu.Lock()
				delete(b.open, c)
				b.mu.Unlock()
			}()
			b.serve(c, n)
		})
	}
}

func (b *backend) serve(c net.Conn, n int) {
	r := bufio.NewReader(c)
	for {
		if _, err := r.Peek(1); err != nil {
			return
		}
		s, err := readStrictly(r, b.slow)
		s.conn = n
		b.mu.Lock()
		if err != nil {
			if !errors.Is(err, errCut) {
				b.bad = append(b.bad, fmt.Sprintf("%v (after %v)", err, s))
			}
			b.mu.Unlock()
			return
		}
		b.got = append(b.got, s)
		b.mu.Unlock()
		if b.answer != nil {
			if !b.answer(c, s) {
				return
			}
			continue
		}
		text := "echo " + s.method + " " + s.target + " " + strconv.Itoa(len(s.body))
		if s.method == "HEAD" {
			_, err = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(text))
		} else {
			_, err = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
		}
		if err != nil {
			return
		}
	}
}

// errCut is the end of a connection within a request: nothing was smuggled, the
// request was given up.
var errCut = errors.New("cut off")

// readStrictly reads one request by the letter of RFC 9112, and stricter: one
// Host, either Content-Length or chunked, no extension, upper-case framing.
func readStrictly(r *bufio.Reader, slow <-chan struct{}) (s seen, err error) {
	line := func() (string, error) {
		l, err := r.ReadString('\n')
		if err != nil {
			return "", fmt.Errorf("%w: %q", errCut, l)
		}
		l, ok := strings.CutSuffix(l, "\r\n")
		if !ok || strings.ContainsAny(l, "\r\x00") {
			return "", fmt.Errorf("a line ends or holds what it may not: %q", l)
		}
		return l, nil
	}
	l, err := line()
	if err != nil {
		return s, err
	}
	parts := strings.Split(l, " ")
	if len(parts) != 3 || parts[2] != "HTTP/1.1" || !token(parts[0]) || parts[1] == "" {
		return s, fmt.Errorf("request line %q", l)
	}
	s.method, s.target = parts[0], parts[1]
	length, chunked := -1, false
	for {
		if l, err = line(); err != nil {
			return s, err
		}
		if l == "" {
			break
		}
		name, value, ok := strings.Cut(l, ":")
		if !ok || !token(name) {
			return s, fmt.Errorf("field line %q", l)
		}
		value = strings.Trim(value, " \t")
		s.fields = append(s.fields, [2]string{name, value})
		switch strings.ToLower(name) {
		case "content-length":
			if length >= 0 || value == "" || strings.Trim(value, "0123456789") != "" || len(value) > 9 {
				return s, fmt.Errorf("content-length %q", value)
			}
			length, _ = strconv.Atoi(value)
		case "transfer-encoding":
			if chunked || value != "chunked" {
				return s, fmt.Errorf("transfer-encoding %q", value)
			}
			chunked = true
		}
	}
	if _, n := s.get("host"); n != 1 {
		return s, fmt.Errorf("%d Host fields", n)
	}
	if chunked && length >= 0 {
		return s, errors.New("both framings")
	}
	if slow != nil && (chunked || length > 0) {
		<-slow
	}
	if !chunked {
		body := make([]byte, max(length, 0))
		if _, err := io.ReadFull(r, body); err != nil {
			return s, errCut
		}
		s.body = string(body)
		return s, nil
	}
	var body strings.Builder
	for {
		if l, err = line(); err != nil {
			return s, err
		}
		n, err := strconv.ParseUint(l, 16, 31)
		if err != nil {
			return s, fmt.Errorf("chunk size %q", l)
		}
		if n == 0 {
			break
		}
		if _, err := io.CopyN(&body, r, int64(n)); err != nil {
			return s, errCut
		}
		if l, err = line(); err != nil || l != "" {
			return s, fmt.Errorf("end of a chunk: %q, %w", l, err)
		}
	}
	s.body = body.String()
	for {
		if l, err = line(); err != nil {
			return s, err
		}
		if l == "" {
			return s, nil
		}
		if name, _, ok := strings.Cut(l, ":"); !ok || !token(name) {
			return s, fmt.Errorf("trailer %q", l)
		}
	}
}

// token is RFC 9110, section 5.6.2.
func token(s string) bool {
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return s != ""
}
