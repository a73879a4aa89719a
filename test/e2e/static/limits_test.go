package static

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/parrel-mesh/parrel/test/e2e/rig"
)

// send writes text on a new connection and reads what comes back until the end,
// or until the time is over.
func send(t *testing.T, address, text string, within time.Duration) (answer string, ended bool) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err == nil {
		defer c.Close()
		_, err = io.WriteString(c, text)
	}
	switch {
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "", true // closed before anything was sent
	case err != nil:
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(within))
	all, err := io.ReadAll(c)
	var late net.Error
	return string(all), !errors.As(err, &late) || !late.Timeout()
}

// TestLimits: each limit of the edge holds beside a client that keeps to them.
func TestLimits(t *testing.T) {
	r := rig.New(t, parrel)
	a := startApp(r)
	p := start(r, "limits.yaml", map[int]int{8000: a.port})
	edge := p.at(8080)
	const head = "GET /x HTTP/1.1\r\nHost: a\r\n"
	for name, c := range map[string]struct{ text, want string }{
		"good":        {head + "Connection: close\r\n\r\n", "HTTP/1.1 200"},
		"head's size": {head + "X-A: " + strings.Repeat("a", 9<<10) + "\r\n\r\n", "HTTP/1.1 431"},
		"fields":      {head + strings.Repeat("X-A: b\r\n", 30) + "\r\n", "HTTP/1.1 431"},
		"underscore":  {head + "X_A: b\r\n\r\n", "HTTP/1.1 400"},
		"slow head":   {head, "HTTP/1.1 408"},
		"slow body":   {"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab", "HTTP/1.1 408"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			answer, ended := send(t, edge, c.text, soon)
			if !strings.HasPrefix(answer, c.want) || !ended {
				t.Errorf("ended %v with %.200q; want %s", ended, answer, c.want)
			}
		})
	}
	t.Run("a connection's life", func(t *testing.T) {
		t.Parallel()
		c, err := net.Dial("tcp", edge)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		br := bufio.NewReader(c)
		began := time.Now()
		for {
			_ = c.SetDeadline(time.Now().Add(soon))
			if _, err := io.WriteString(c, head+"\r\n"); err != nil {
				break
			}
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				break
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.Close {
				break
			}
			if time.Since(began) > soon {
				t.Fatal("it goes on for ever")
			}
			time.Sleep(100 * time.Millisecond)
		}
		if d := time.Since(began); d < 2*time.Second {
			t.Errorf("it ended after %s", d)
		}
	})
	t.Run("streams", func(t *testing.T) {
		t.Parallel()
		c, err := net.Dial("tcp", edge)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, http2.ClientPreface)
		f := http2.NewFramer(c, c)
		_ = f.WriteSettings()
		_ = c.SetReadDeadline(time.Now().Add(soon))
		for {
			fr, err := f.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			s, ok := fr.(*http2.SettingsFrame)
			if !ok || s.IsAck() {
				continue
			}
			if v, ok := s.Value(http2.SettingMaxConcurrentStreams); !ok || v != 10 {
				t.Errorf("%d streams are announced", v)
			}
			return
		}
	})
}

// TestConnectionLimit: beyond the number of connections one is closed, and those
// that are open go on.
func TestConnectionLimit(t *testing.T) {
	r := rig.New(t, parrel)
	a := startApp(r)
	p := start(r, "limits.yaml", map[int]int{8000: a.port}, "max_connection_duration: 3s", "max_connection_duration: 60s")
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for range 20 {
		c, err := net.Dial("tcp", p.at(8080))
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	r.Eventually(soon, "one more is closed", func() error {
		if answer, ended := send(t, p.at(8080), "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 100*time.Millisecond); !ended || answer != "" {
			return fmt.Errorf("ended %v with %q", ended, answer)
		}
		return nil
	})
	_ = open[0].SetDeadline(time.Now().Add(soon))
	if _, err := io.WriteString(open[0], "GET /x HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(open[0]), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("an open connection gets %d", resp.StatusCode)
	}
}
