package attack

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// raw is a client that writes bytes.
type raw struct {
	t testing.TB
	net.Conn
	r *bufio.Reader
}

// connect opens a connection that is closed when the test ends, if not before.
// Everything on it is bounded by patience.
func connect(t testing.TB, address string) *raw {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return &raw{t: t, Conn: c, r: bufio.NewReader(c)}
}

// send writes the parts, each by itself. A connection that is gone is no error:
// what the sidecar says of it is read next.
func (c *raw) send(parts ...string) {
	for i, p := range parts {
		if i > 0 {
			time.Sleep(2 * time.Millisecond) // the parts are to arrive apart
		}
		if _, err := io.WriteString(c.Conn, p); err != nil {
			return
		}
	}
}

// reply is one response as a client reads it.
type reply struct {
	status int
	header http.Header
	body   string
	closes bool // the sender says that it closes, or the body ends with the connection
}

// read reads one final response to a request with that method.
func (c *raw) read(method string) (reply, error) {
	for {
		resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
		if err != nil {
			return reply{}, err
		}
		if resp.StatusCode < 200 && resp.StatusCode != 101 {
			continue
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		return reply{resp.StatusCode, resp.Header, string(b), resp.Close}, err
	}
}

// rest reads until the connection ends: all statuses that came, and how it
// ended: nil is an orderly end or a reset, an error is no end within the
// deadline.
func (c *raw) rest(method string) (statuses []int, err error) {
	for {
		r, err := c.read(method)
		if err == nil {
			statuses = append(statuses, r.status)
			continue
		}
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			return statuses, fmt.Errorf("the connection did not end: %w", err)
		}
		return statuses, nil
	}
}

// ask sends a well-formed request on a connection of its own and checks that its
// own answer comes back.
func ask(address, target string) error {
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n", target); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if want := "echo GET " + target + " 0"; resp.StatusCode != 200 || string(b) != want {
		return fmt.Errorf("status %d and %q, want %q", resp.StatusCode, b, want)
	}
	return nil
}
