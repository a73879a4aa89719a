package lifecycle

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/parrel-mesh/parrel/test/e2e/rig"
)

// ports at which web calls.
type ports struct{ http, grpc, tcp int }

// count is of one protocol.
type count struct{ sent, ok atomic.Int64 }

// load sends a request every 2 ms, of many kinds, short and long, until it is
// ended. Every one must succeed.
type load struct {
	http, grpc, tcp count

	at     ports
	h1, h2 *http.Client
	cc     *grpc.ClientConn
	stop   chan struct{}
	once   sync.Once
	wg     sync.WaitGroup
	begin  time.Time
	took   time.Duration

	mu   sync.Mutex
	errs []string // guarded by mu
}

// inHandMost bounds the requests under way, on a machine that does not keep up.
const inHandMost = 1000

func newLoad(t *testing.T, at ports) *load {
	t.Helper()
	l := &load{at: at, stop: make(chan struct{}), begin: time.Now()}
	var h2c http.Protocols
	h2c.SetUnencryptedHTTP2(true)
	l.h1 = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	l.h2 = &http.Client{Transport: &http.Transport{Protocols: &h2c}}
	var err error
	if l.cc, err = grpc.NewClient(rig.Addr(at.grpc), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.end()
		l.h1.CloseIdleConnections()
		l.h2.CloseIdleConnections()
		l.cc.Close()
	})
	l.wg.Go(l.run)
	return l
}

func (l *load) run() {
	room := make(chan struct{}, inHandMost)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-l.stop:
			return
		case <-tick.C:
		}
		room <- struct{}{}
		c, f := l.kind(i)
		c.sent.Add(1)
		l.wg.Go(func() {
			defer func() { <-room }()
			if err := f(); err != nil {
				l.mu.Lock()
				l.errs = append(l.errs, time.Now().UTC().Format("15:04:05.000 ")+err.Error())
				l.mu.Unlock()
				return
			}
			c.ok.Add(1)
		})
	}
}

// kind is what request number i is.
func (l *load) kind(i int) (*count, func() error) {
	switch {
	case i%50 == 0:
		return &l.http, func() error { return l.ask(l.h1, "GET", "/?sleep=2s") }
	case i%50 == 10:
		return &l.http, func() error { return l.ask(l.h2, "POST", "/?sleep=1500ms") }
	case i%50 == 20:
		return &l.grpc, func() error { return l.watch("2s") }
	case i%50 == 30:
		return &l.tcp, func() error { return l.session(15) }
	case i%10 == 1:
		return &l.grpc, l.check
	case i%10 == 2, i%10 == 3:
		return &l.http, func() error { return l.ask(l.h2, "GET", "/") }
	case i%10 == 4:
		return &l.http, func() error { return l.ask(l.h1, "POST", "/") }
	}
	return &l.http, func() error { return l.ask(l.h1, "GET", "/") }
}

func (l *load) ask(c *http.Client, method, path string) error {
	var body io.Reader
	want := "end\n"
	if method == http.MethodPost {
		body, want = strings.NewReader("body"), "bodyend\n"
	}
	if strings.Contains(path, "sleep") {
		want = "begin\n" + want
	}
	req, err := http.NewRequest(method, fmt.Sprintf("http://127.0.0.1:%d%s", l.at.http, path), body)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || string(got) != want {
		return fmt.Errorf("%s %s: %s %s %.200q %w", method, path, resp.Status, resp.Header.Get("Proxy-Status"), got, errors.Join(err))
	}
	return nil
}

func (l *load) check() error {
	_, err := healthpb.NewHealthClient(l.cc).Check(context.Background(), &healthpb.HealthCheckRequest{})
	return err
}

func (l *load) watch(d string) error {
	s, err := healthpb.NewHealthClient(l.cc).Watch(context.Background(), &healthpb.HealthCheckRequest{Service: d})
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		_, err := s.Recv()
		if errors.Is(err, io.EOF) && n == 10 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("stream after %d messages: %w", n, err)
		}
	}
}

// session is a TCP connection that says a line each 100 ms.
func (l *load) session(lines int) error {
	c, err := net.Dial("tcp", rig.Addr(l.at.tcp))
	if err != nil {
		return err
	}
	defer c.Close()
	in := bufio.NewReader(c)
	for i := range lines {
		line := fmt.Sprintf("line %d\n", i)
		if _, err := io.WriteString(c, line); err != nil {
			return fmt.Errorf("tcp line %d: %w", i, err)
		}
		if got, err := in.ReadString('\n'); err != nil || got != line {
			return fmt.Errorf("tcp line %d: %q %w", i, got, errors.Join(err))
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return fmt.Errorf("tcp end: %w", err)
	}
	if got, err := in.ReadString('\n'); !errors.Is(err, io.EOF) {
		return fmt.Errorf("tcp end: %q %w", got, errors.Join(err))
	}
	return nil
}

func (l *load) sent() int64 { return l.http.sent.Load() + l.grpc.sent.Load() + l.tcp.sent.Load() }

// more waits until n further requests were sent.
func (l *load) more(t *testing.T, n int64) {
	t.Helper()
	want, end := l.sent()+n, time.Now().Add(soon)
	for l.sent() < want {
		if time.Now().After(end) {
			t.Fatalf("the load does not get on: %d requests sent", l.sent())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// end ends the load and waits for what is in hand.
func (l *load) end() {
	l.once.Do(func() {
		close(l.stop)
		l.took = time.Since(l.begin)
	})
	l.wg.Wait()
}
