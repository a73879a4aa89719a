package rig

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Answer is what an application says.
type Answer struct {
	Instance string `json:"instance"`
	Peer     string `json:"peer"` // x-forwarded-client-cert, as its sidecar wrote it
}

// App is an HTTP application in the test's process.
type App struct {
	ID   string
	Port int
	Hits atomic.Int64
}

// App starts an application that answers with its id.
func (r *Rig) App(id string) *App {
	r.T.Helper()
	l, port := Listen(r.T)
	return r.serve(id, l, port)
}

// AppAt is App at a port that Port gave.
func (r *Rig) AppAt(id string, port int) *App {
	r.T.Helper()
	l, err := net.Listen("tcp", Addr(port))
	if err != nil {
		r.T.Fatal(err)
	}
	return r.serve(id, l, port)
}

func (r *Rig) serve(id string, l net.Listener, port int) *App {
	a := &App{ID: id, Port: port}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		a.Hits.Add(1)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(Answer{Instance: id, Peer: req.Header.Get("X-Forwarded-Client-Cert")}) // the caller may have gone
	})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) }) // ends with Close
	r.T.Cleanup(func() { srv.Close(); wg.Wait() })
	return a
}

// TCPApp starts an application that greets with its id and echoes lines; it
// returns its port.
func (r *Rig) TCPApp(id string) int {
	r.T.Helper()
	l, port := Listen(r.T)
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				fmt.Fprintln(c, id)
				_, _ = io.Copy(c, c) // until one of the two goes
			})
		}
	})
	r.T.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return port
}

// Ask sends one request to a port of loopback. Any answer but 200 is an error.
// It may be called by any goroutine.
func Ask(port int) (Answer, error) { return ask(plain, port) }

func ask(c *http.Client, port int) (Answer, error) {
	var a Answer
	resp, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s %.200s", resp.Status, resp.Header.Get("Proxy-Status"), body)
	}
	if err == nil {
		err = json.Unmarshal(body, &a)
	}
	return a, err
}

// Status sends one request and gives the status and the proxy-status of the
// answer.
func Status(port int) (int, string, error) {
	resp, err := plain.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err != nil {
		return 0, "", err
	}
	resp.Body.Close()
	return resp.StatusCode, resp.Header.Get("Proxy-Status"), nil
}

// Answers sends n requests and counts the answers by instance.
func Answers(port, n int) (map[string]int, error) {
	c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{}}
	defer c.CloseIdleConnections()
	seen := map[string]int{}
	for range n {
		a, err := ask(c, port)
		if err != nil {
			return seen, err
		}
		seen[a.Instance]++
	}
	return seen, nil
}

// Only waits until n answers in a row come from exactly these instances.
func (r *Rig) Only(within time.Duration, port int, instances ...string) time.Duration {
	r.T.Helper()
	return r.Eventually(within, fmt.Sprintf("answers come from %v", instances), func() error {
		seen, err := Answers(port, 12*len(instances))
		if err != nil {
			return err
		}
		for _, i := range instances {
			if seen[i] == 0 {
				return fmt.Errorf("answers %v", seen)
			}
		}
		if len(seen) != len(instances) {
			return fmt.Errorf("answers %v", seen)
		}
		return nil
	})
}

// Load sends requests until it is ended.
type Load struct {
	Sent, Failed atomic.Int64

	mu     sync.Mutex
	errors []string // guarded by mu
	stop   chan struct{}
	wg     sync.WaitGroup
	once   sync.Once
}

// Load starts workers that each send one request after the other on keep-alive
// connections, with a short pause.
func (r *Rig) Load(workers int, ports ...int) *Load {
	l := &Load{stop: make(chan struct{})}
	for i := range workers {
		port := ports[i%len(ports)]
		l.wg.Go(func() {
			c := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{}}
			defer c.CloseIdleConnections()
			tick := time.NewTicker(8 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-l.stop:
					return
				case <-tick.C:
				}
				l.Sent.Add(1)
				if _, err := ask(c, port); err != nil {
					l.Failed.Add(1)
					l.mu.Lock()
					if len(l.errors) < 5 {
						l.errors = append(l.errors, time.Now().UTC().Format("15:04:05.000 ")+err.Error())
					}
					l.mu.Unlock()
				}
			}
		})
	}
	r.T.Cleanup(l.end)
	return l
}

func (l *Load) end() { l.once.Do(func() { close(l.stop) }); l.wg.Wait() }

// More waits until n further requests were sent.
func (l *Load) More(t testing.TB, n int64) {
	t.Helper()
	want, end := l.Sent.Load()+n, time.Now().Add(60*time.Second)
	for l.Sent.Load() < want {
		if time.Now().After(end) {
			t.Fatalf("the load does not get on: %d requests sent", l.Sent.Load())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Clean ends the load and wants no request of it failed.
func (l *Load) Clean(t testing.TB) {
	t.Helper()
	l.end()
	if n := l.Failed.Load(); n > 0 || l.Sent.Load() == 0 {
		t.Errorf("%d of %d requests failed: %q", n, l.Sent.Load(), l.errors)
	}
	t.Logf("load: %d requests, %d failed", l.Sent.Load(), l.Failed.Load())
}

// Line is an open TCP connection to an application that speaks lines.
type Line struct {
	net.Conn
	in *bufio.Reader
}

// DialLine opens one and reads the greeting.
func DialLine(port int) (*Line, string, error) {
	c, err := net.DialTimeout("tcp", Addr(port), 20*time.Second)
	if err != nil {
		return nil, "", err
	}
	l := &Line{c, bufio.NewReader(c)}
	greeting, err := l.Read(20 * time.Second)
	if err != nil {
		c.Close()
		return nil, "", err
	}
	return l, greeting, nil
}

// Read reads a line.
func (l *Line) Read(within time.Duration) (string, error) {
	if err := l.SetReadDeadline(time.Now().Add(within)); err != nil {
		return "", err
	}
	s, err := l.in.ReadString('\n')
	if err != nil {
		return "", err
	}
	return s[:len(s)-1], nil
}

// Echo sends a line and wants it back.
func (l *Line) Echo(s string) error {
	if _, err := fmt.Fprintln(l, s); err != nil {
		return err
	}
	got, err := l.Read(20 * time.Second)
	if err == nil && got != s {
		err = fmt.Errorf("%q came back as %q", s, got)
	}
	return err
}
