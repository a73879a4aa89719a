package traffic

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tcpApp reads a line that says what it shall do.
func tcpApp(c *net.TCPConn) {
	io.WriteString(c, "220 ready\r\n") // the server speaks first
	br := bufio.NewReader(c)
	line, err := br.ReadString('\n')
	if err != nil {
		return
	}
	switch strings.TrimSpace(line) {
	case "sum": // everything up to the client's end, then its sum
		h := sha256.New()
		n, err := io.Copy(h, br)
		fmt.Fprintf(c, "%d %s %v", n, hex.EncodeToString(h.Sum(nil)), err)
	case "first": // ends its own half first, then reads
		io.WriteString(c, "done")
		c.CloseWrite()
		io.Copy(io.Discard, br)
	case "reset":
		c.SetLinger(0)
	case "stream":
		io.CopyN(c, zeros{}, 64<<20)
	case "report": // says how the client ended
		io.WriteString(c, "go\n")
		_, err := io.Copy(io.Discard, br)
		tcpEnds <- err
	}
}

var tcpEnds = make(chan error, 1) // how the connection of the command "report" ended

// command opens a connection, takes the greeting and sends a command.
func command(t *testing.T, w *world, cmd string) (*net.TCPConn, *bufio.Reader) {
	t.Helper()
	c := dial(t, w.upstream["tcp"])
	br := bufio.NewReader(c)
	if s, err := br.ReadString('\n'); err != nil || s != "220 ready\r\n" {
		t.Fatalf("greeting %q, %v", s, err)
	}
	say(t, c, cmd+"\n")
	return c, br
}

func testTCP(t *testing.T, w *world) {
	t.Run("half-close by the client", func(t *testing.T) {
		c, br := command(t, w, "sum")
		say(t, c, "abc")
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(br)
		want := sha256.Sum256([]byte("abc"))
		if err != nil || string(b) != "3 "+hex.EncodeToString(want[:])+" <nil>" {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("half-close by the server", func(t *testing.T) {
		c, br := command(t, w, "first")
		if b, err := io.ReadAll(br); string(b) != "done" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		say(t, c, strings.Repeat("still open", 1000))
	})
	t.Run("reset by the server", func(t *testing.T) {
		_, br := command(t, w, "reset")
		if _, err := io.ReadAll(br); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client sees %v", err)
		}
	})
	t.Run("reset by the client", func(t *testing.T) {
		c, br := command(t, w, "report")
		if s, err := br.ReadString('\n'); err != nil || s != "go\n" { // the command has to be there before the reset
			t.Fatalf("%q, %v", s, err)
		}
		c.SetLinger(0)
		c.Close()
		select {
		case err := <-tcpEnds:
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the application sees %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("the application does not see the end")
		}
	})
	t.Run("1 GB", func(t *testing.T) {
		before := w.resident(t, "web") + w.resident(t, "tcp")
		c, br := command(t, w, "sum")
		c.SetDeadline(time.Now().Add(3 * time.Minute))
		h, buf := sha256.New(), make([]byte, 1<<20)
		src := rand.NewChaCha8([32]byte{1})
		src.Read(buf)
		for range 1024 {
			h.Write(buf)
			if _, err := c.Write(buf); err != nil {
				t.Fatal(err)
			}
		}
		c.CloseWrite()
		b, err := io.ReadAll(br)
		if want := fmt.Sprintf("%d %x <nil>", 1<<30, h.Sum(nil)); string(b) != want || err != nil {
			t.Errorf("%q, %v, want %q", b, err, want)
		}
		if grown := w.resident(t, "web") + w.resident(t, "tcp") - before; grown > 32<<20 {
			t.Errorf("both sidecars grew by %d MB", grown>>20)
		}
	})
	t.Run("slow reader", func(t *testing.T) {
		before := w.resident(t, "web") + w.resident(t, "tcp")
		_, br := command(t, w, "stream")
		time.Sleep(time.Second)
		if grown := w.resident(t, "web") + w.resident(t, "tcp") - before; grown > 16<<20 {
			t.Errorf("both sidecars hold %d MB for a reader that pauses", grown>>20)
		}
		if n, err := io.Copy(io.Discard, br); n != 64<<20 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
}

// resident is a sidecar's resident set in bytes (proc(5), statm).
func (w *world) resident(t *testing.T, name string) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", w.sidecars[name].Pid()))
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * os.Getpagesize()
}
