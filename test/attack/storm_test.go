package attack

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/parrel-mesh/parrel/sidecar/overload"
)

// rst ends a connection by a reset.
func rst(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
}

// TestResetStorm: DP9. 20,000 connections that are reset, at every point of
// their life, leave no descriptor, goroutine or memory behind.
func TestResetStorm(t *testing.T) {
	const storm = 20_000
	b := newBackend(t)
	p := spawn(t, childConfig{Backend: b.address()})
	for range 300 {
		if err := ask(p.Listen, "/canary"); err != nil {
			t.Fatal(err)
		}
	}
	b.take()
	fds, goroutines, memory := p.descriptors(), p.stat("launchgoroutines"), p.memory()
	var heads strings.Builder
	f := http2.NewFramer(&heads, nil)
	_ = f.WriteSettings()
	h := newH2(t, nil)
	block := h.block(request("POST", "/p")...)
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true})
	ways := []string{
		"", "G", "GET /p HTTP/1.1\r\nHost: a.exa", "GET /p HTTP/1.1\r\nHost: a.example\r\n\r\n", "POST /p HTTP/1.1\r\nHost: a.example\r\nContent-Length: 100\r\n\r\nabc",
		"POST /p HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "PRI * HT", http2.ClientPreface, http2.ClientPreface + heads.String(), "\x16\x03\x01",
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for n := next.Add(1); n <= storm; n = next.Add(1) {
				c, err := net.DialTimeout("tcp", p.Listen, patience)
				if err != nil {
					t.Errorf("connection %d: %v", n, err)
					return
				}
				_, _ = io.WriteString(c, ways[n%int64(len(ways))])
				if n%7 == 0 { // let it be served
					_ = c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
					_, _ = c.Read(make([]byte, 1))
				}
				rst(c)
			}
		})
	}
	wg.Wait()
	eventually(t, "everything is as before", func() error {
		b.take()
		b.cut() // connections to the backend may be kept: they are its to end
		if n := p.descriptors(); n > fds {
			return fmt.Errorf("%d descriptors, %d before", n, fds)
		}
		if n := p.stat("launchgoroutines"); n > goroutines+2 { // the page that says it
			return fmt.Errorf("%v goroutines, %v before", n, goroutines)
		}
		if n := p.stat("parrel_overload_descriptors{"); n > 0 {
			return fmt.Errorf("%v connections are still counted", n)
		}
		return nil
	})
	eventually(t, "memory is as before", func() error {
		p.collect()
		if n := p.memory(); n > memory+floodMemory { // what the runtime keeps of thousands of goroutines at once
			return fmt.Errorf("%s, %s before", mb(n), mb(memory))
		}
		return nil
	})
	if n := p.stat(`parrel_errors_total{code="local_panic"`); n != 0 {
		t.Errorf("%v panics", n)
	}
	if err := ask(p.Listen, "/canary"); err != nil {
		t.Error(err)
	}
}

// TestDescriptors: DP12. With 256 descriptors and far more clients, the admin
// API answers, new connections to the control plane can be made, requests that
// are taken are served, and nothing is left afterwards.
func TestDescriptors(t *testing.T) {
	const limit = 256
	control := listen(t)
	var dialled atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := control.Accept()
			if err != nil {
				return
			}
			dialled.Add(1)
			_ = c.Close()
		}
	})
	t.Cleanup(func() { _ = control.Close(); wg.Wait() })
	b := newBackend(t)
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(open) // whatever happens: who waits at it would wait for ever
	b.answer = func(c net.Conn, s seen) bool {
		if s.target == "/waits" {
			<-gate
		}
		text := fmt.Sprintf("echo %s %s %d", s.method, s.target, len(s.body))
		_, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
		return err == nil
	}
	p := spawn(t, childConfig{Backend: b.address(), Descriptors: limit, Control: control.Addr().String()})
	before := p.descriptors()
	var idle, waiting []*raw
	for i := range 400 {
		c := connect(t, p.Listen)
		_ = c.SetDeadline(time.Now().Add(4 * patience))
		if i%2 == 0 {
			c.send("GET /waits HTTP/1.1\r\nHost: a.example\r\n\r\n")
			waiting = append(waiting, c)
		} else {
			idle = append(idle, c)
		}
	}
	eventually(t, "accepting waits", func() error {
		if p.stat("parrel_overload_accept_paused") == 0 {
			return fmt.Errorf("%d descriptors", p.descriptors())
		}
		return nil
	})
	for range 5 {
		if status, body, err := get(p.Admin, "/ready"); err != nil || status != 200 {
			t.Errorf("/ready: %d %s %v", status, body, err)
		}
		n := dialled.Load()
		eventually(t, "a connection to the control plane is made", func() error {
			if dialled.Load() == n {
				return fmt.Errorf("%d descriptors", p.descriptors())
			}
			return nil
		})
	}
	if n := p.descriptors(); n > limit-10 {
		t.Errorf("%d descriptors of %d are in use", n, limit)
	}
	// The idle ones leave: those who wait come in and are served, all of them.
	for _, c := range idle {
		_ = c.Close()
	}
	open()
	for i, c := range waiting {
		if r, err := c.read("GET"); err != nil || r.status != 200 || r.body != "echo GET /waits 0" {
			t.Errorf("client %d: %d %q, %v", i, r.status, r.body, err)
			break
		}
		_ = c.Close()
	}
	b.cut()
	eventually(t, "everything is as before", func() error {
		if n := p.descriptors(); n > before+5 {
			return fmt.Errorf("%d descriptors, %d before", n, before)
		}
		return nil
	})
	if err := ask(p.Listen, "/canary"); err != nil {
		t.Error(err)
	}
}

// TestMemory: DP11. Far more than the cap is thrown at a sidecar, in uploads
// that nobody takes and responses that nobody reads: it stays below the cap and a
// tenth, says 503 or resets, and is well again afterwards.
func TestMemory(t *testing.T) {
	const limit = 64 << 20
	b := newBackend(t)
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(open) // whatever happens: who waits at it would wait for ever
	large := strings.Repeat("x", 1<<20)
	b.answer = func(c net.Conn, s seen) bool {
		if s.target == "/large" {
			_, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(large), large)
			return err == nil
		}
		text := fmt.Sprintf("echo %s %s %d", s.method, s.target, len(s.body))
		_, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
		return err == nil
	}
	b.slow = gate
	p := spawn(t, childConfig{Backend: b.address(), Limits: overload.Config{Memory: limit}})
	most := p.peak()
	a := &assault{over: make(chan struct{})}
	t.Cleanup(a.end)
	data := make([]byte, 16<<10)
	for i := range 60 {
		a.launch(p.Listen, func(c net.Conn) {
			h := newH2(t, c)
			_, _ = io.WriteString(c, http2.ClientPreface)
			_ = h.f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i % 2 * (1 << 30))})
			for n := range 200 {
				if n%2 == 0 {
					h.headers(id(n), true, request("GET", "/large")...)
					continue
				}
				h.headers(id(n), false, request("POST", "/upload")...)
				for range 4 {
					if err := h.f.WriteData(id(n), false, data); err != nil {
						return
					}
				}
			}
		})
	}
	for range 60 {
		a.launch(p.Listen, func(c net.Conn) {
			_, _ = io.WriteString(c, "POST /upload HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000000000\r\n\r\n")
			for {
				if _, err := c.Write(data); err != nil {
					return
				}
			}
		})
	}
	// Three seconds of it, and until it was felt.
	pressed, began := 0.0, time.Now()
	for pressed == 0 || time.Since(began) < 3*time.Second {
		state, err := stat(p.Admin, "parrel_overload_state")
		if time.Since(began) > patience {
			t.Fatalf("all this is no burden: state %v after %s, %v", pressed, patience, err)
		}
		pressed = max(pressed, state)
		time.Sleep(100 * time.Millisecond)
	}
	a.end()
	t.Logf("%d connections were made, %d refused", a.made.Load(), a.refused.Load())
	if n := most(); n > limit*11/10 {
		t.Errorf("memory grew to %s with a cap of %s", mb(n), mb(limit))
	} else {
		t.Logf("highest: %s of %s; state %v; %v requests refused, %v reads delayed, %v connections ended", mb(n), mb(limit), pressed,
			p.stat("parrel_overload_refused_requests_total"), p.stat("parrel_overload_delayed_reads_total"), p.stat("parrel_overload_refused_connections_total"))
	}
	open()
	b.take()
	eventually(t, "it serves again", func() error {
		if err := ask(p.Listen, "/canary"); err != nil {
			return err
		}
		if s := p.stat("parrel_overload_state"); s != 0 {
			return fmt.Errorf("state %v", s)
		}
		return nil
	})
}

// assault is many clients that attack until it ends.
type assault struct {
	wg            sync.WaitGroup
	made, refused atomic.Int64
	over          chan struct{}
	once          sync.Once
}

// launch attacks on a connection of its own. To be refused, by whatever and
// whenever, is what may happen to an attacker.
func (a *assault) launch(address string, attack func(net.Conn)) {
	a.wg.Go(func() {
		c, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			a.refused.Add(1)
			return
		}
		a.made.Add(1)
		done := make(chan struct{})
		go func() {
			defer close(done)
			attack(c)
		}()
		<-a.over
		rst(c) // whatever the attack waits for
		<-done
	})
}

// end resets every connection and waits until the attackers are gone.
func (a *assault) end() {
	a.once.Do(func() { close(a.over) })
	a.wg.Wait()
}
