package sim

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/parrel-mesh/parrel/sidecar/netio"
)

// LoadConfig says what a [Load] sends.
type LoadConfig struct {
	Protocol Protocol
	Port     int           // of the upstream
	Host     string        // its address; "": loopback
	RPS      int           // requests a second at most; 0: 50
	Workers  int           // requests at the same time at most; 0: 4
	Timeout  time.Duration // of one request; 0: 10 s
	// Calm sends small requests that are answered at once, instead of a mixture
	// of methods, sizes and durations.
	Calm bool
}

func (c LoadConfig) at() string {
	return net.JoinHostPort(cmp.Or(c.Host, "127.0.0.1"), strconv.Itoa(c.Port))
}

// Load is an application that calls an upstream of its sidecar until it is
// stopped. Every worker draws from randomness of its own.
//
// HTTP: GET and POST (never repeated by its client), small and large, quick and
// slow, on connections that are kept and on new ones. GRPC: unary calls over
// one connection. TCP: connections of a few lines, some of them slow.
type Load struct {
	cfg  LoadConfig
	from *Instance
	stop context.CancelFunc
	wg   sync.WaitGroup
	once sync.Once

	mu sync.Mutex
	r  Report // guarded by mu
}

// Report is what a Load saw.
type Report struct {
	Sent, Failed int
	Failures     []string       // the first 20
	By           map[string]int // answers by instance
	Slowest      time.Duration
}

func (r Report) String() string {
	return fmt.Sprintf("%d sent, %d failed, slowest %s, by %v\n%s", r.Sent, r.Failed, r.Slowest, r.By, strings.Join(r.Failures, "\n"))
}

// Load starts one.
func (i *Instance) Load(c LoadConfig) *Load {
	c.RPS, c.Workers, c.Timeout = cmp.Or(c.RPS, 50), cmp.Or(c.Workers, 4), cmp.Or(c.Timeout, 10*time.Second)
	ctx, cancel := context.WithCancel(i.m.ctx)
	l := &Load{cfg: c, from: i, stop: cancel, r: Report{By: map[string]int{}}}
	i.m.loads = append(i.m.loads, l)
	shared := l.client()
	period := time.Duration(c.Workers) * time.Second / time.Duration(c.RPS)
	var workers sync.WaitGroup
	for w := range c.Workers {
		draw := i.m.Fork(fmt.Sprintf("load/%s/%s%d/%d", i.ID, c.Host, c.Port, w))
		workers.Go(func() {
			if !rest(ctx, time.Duration(w)*period/time.Duration(c.Workers)) {
				return
			}
			for next := time.Now(); ctx.Err() == nil; {
				l.one(shared, draw)
				next = next.Add(period)
				if late := time.Since(next); late > 0 {
					next = time.Now()
				}
				rest(ctx, time.Until(next))
			}
		})
	}
	l.wg.Go(func() { workers.Wait(); shared.close() })
	return l
}

// Stop lets requests in hand end and says what was seen.
func (l *Load) Stop() Report {
	l.once.Do(func() { l.stop(); l.wg.Wait() })
	return l.Report()
}

// Report says what was seen so far.
func (l *Load) Report() Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.r
	r.Failures = append([]string(nil), l.r.Failures...)
	r.By = map[string]int{}
	for k, v := range l.r.By {
		r.By[k] = v
	}
	return r
}

// Reset forgets what was seen so far, and returns it.
func (l *Load) Reset() Report {
	r := l.Report()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.r = Report{By: map[string]int{}}
	return r
}

func rest(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// clients is what the workers of a load share.
type clients struct {
	host        *netio.Host
	at          string // address and port
	kept, fresh *http.Client
	grpc        *grpc.ClientConn
}

func (l *Load) client() *clients {
	c := &clients{host: l.from.host, at: l.cfg.at()}
	switch l.cfg.Protocol {
	case HTTP:
		c.kept = &http.Client{Transport: &http.Transport{DialContext: dialer(c.host), MaxIdleConnsPerHost: l.cfg.Workers, DisableCompression: true}}
		c.fresh = &http.Client{Transport: &http.Transport{DialContext: dialer(c.host), DisableKeepAlives: true, DisableCompression: true}}
	case GRPC:
		c.grpc = l.from.channel(c.at)
	}
	return c
}

func (c *clients) close() {
	if c.kept != nil {
		c.kept.CloseIdleConnections()
	}
	if c.grpc != nil {
		_ = c.grpc.Close()
	}
}

func (l *Load) one(c *clients, draw *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.Background(), l.cfg.Timeout)
	defer cancel()
	start := time.Now()
	var by string
	var err error
	switch l.cfg.Protocol {
	case HTTP:
		by, err = l.http(ctx, c, draw)
	case GRPC:
		by, err = say(ctx, c.grpc, fmt.Sprint(draw.Uint64()))
	default:
		by, err = l.tcp(ctx, c, draw)
	}
	took := time.Since(start)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.r.Sent++
	l.r.Slowest = max(l.r.Slowest, took)
	if err == nil {
		l.r.By[by]++
		return
	}
	l.r.Failed++
	if len(l.r.Failures) < 20 {
		l.r.Failures = append(l.r.Failures, fmt.Sprintf("%s %s to %s, began %s, failed after %s: %v", l.from.ID, l.cfg.Protocol,
			l.cfg.at(), start.UTC().Format("15:04:05.000"), took, err))
	}
}

func (l *Load) http(ctx context.Context, c *clients, draw *rand.Rand) (string, error) {
	client, method, query, body := c.kept, http.MethodGet, "", []byte(nil)
	want := 0
	if !l.cfg.Calm {
		if draw.IntN(4) == 0 {
			client = c.fresh
		}
		if draw.IntN(2) == 0 {
			method, body = http.MethodPost, bytes.Repeat([]byte("b"), draw.IntN(3000))
			want = len(body)
		}
		switch draw.IntN(10) {
		case 0:
			query = fmt.Sprintf("?sleep=%dms", 1+draw.IntN(150))
		case 1:
			want = 1 + draw.IntN(100_000)
			query = fmt.Sprintf("?size=%d", want)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("http://%s/%s", c.at, query), bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	if method == http.MethodPost {
		req.GetBody = nil // a client that cannot send it again does not try to
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return "", fmt.Errorf("%s %s: body after %d bytes: %w", method, query, len(got), err)
	case resp.StatusCode != http.StatusOK:
		return "", fmt.Errorf("%s %s: %s %s %q", method, query, resp.Status, resp.Header.Get("Proxy-Status"), got)
	case len(got) != want:
		return "", fmt.Errorf("%s %s: %d bytes, want %d", method, query, len(got), want)
	}
	return resp.Header.Get("X-Instance"), nil
}

func (l *Load) tcp(ctx context.Context, c *clients, draw *rand.Rand) (string, error) {
	raw, err := c.host.Dial(ctx, "tcp", c.at)
	if err != nil {
		return "", err
	}
	s := &LineConn{Conn: raw, in: bufio.NewReader(raw)}
	defer s.Close()
	if d, ok := ctx.Deadline(); ok {
		_ = s.SetDeadline(d)
	}
	by, lines := "", 1
	if !l.cfg.Calm {
		lines += draw.IntN(6)
	}
	for range lines {
		if by, err = s.Say(fmt.Sprint(draw.Uint64())); err != nil {
			return "", err
		}
		if !l.cfg.Calm && draw.IntN(2) == 0 {
			time.Sleep(time.Duration(draw.IntN(40)) * time.Millisecond)
		}
	}
	return by, nil
}

// LineConn is a connection to a TCP application through the sidecar.
type LineConn struct {
	net.Conn
	in *bufio.Reader
}

// Line opens a connection to the upstream on a port.
func (i *Instance) Line(port int) (*LineConn, error) {
	return i.LineTo(fmt.Sprintf("127.0.0.1:%d", port))
}

// LineTo opens a connection to any address.
func (i *Instance) LineTo(address string) (*LineConn, error) {
	c, err := i.host.Dial(i.m.ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return &LineConn{Conn: c, in: bufio.NewReader(c)}, nil
}

// Say sends a line and says which instance answered.
func (c *LineConn) Say(line string) (by string, err error) {
	if _, err := fmt.Fprintln(c, line); err != nil {
		return "", err
	}
	got, err := c.in.ReadString('\n')
	if err != nil {
		return "", err
	}
	by, said, ok := strings.Cut(strings.TrimSuffix(got, "\n"), " ")
	if !ok || said != line {
		return "", fmt.Errorf("sim: said %q, heard %q", line, got)
	}
	return by, nil
}

// Get sends one GET on a connection of its own. err is nil for every answer,
// whatever its status.
func (i *Instance) Get(port int, path string) (status int, by, body string, err error) {
	return i.GetFrom(fmt.Sprintf("127.0.0.1:%d", port), path)
}

// GetFrom is Get from any address.
func (i *Instance) GetFrom(address, path string) (status int, by, body string, err error) {
	ctx, cancel := context.WithTimeout(i.m.ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return 0, "", "", err
	}
	resp, err := (&http.Client{Transport: &http.Transport{DialContext: dialer(i.host), DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return 0, "", "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header.Get("X-Instance"), strings.TrimSpace(resp.Header.Get("Proxy-Status") + " " + string(b)), err
}

// Channel is a gRPC channel to the upstream on a port. The caller closes it.
func (i *Instance) Channel(port int) *grpc.ClientConn {
	return i.channel(fmt.Sprintf("127.0.0.1:%d", port))
}

func (i *Instance) channel(address string) *grpc.ClientConn {
	i.m.T.Helper()
	cc, err := grpc.NewClient("passthrough:///upstream", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableServiceConfig(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return i.host.Dial(ctx, "tcp", address)
		}))
	if err != nil {
		i.m.T.Fatal(err)
	}
	return cc
}

func say(ctx context.Context, cc *grpc.ClientConn, text string) (by string, err error) {
	out := new(wrapperspb.StringValue)
	if err := cc.Invoke(ctx, sayMethod, wrapperspb.String(text), out); err != nil {
		return "", err
	}
	by, said, ok := strings.Cut(out.Value, " ")
	if !ok || said != text {
		return "", fmt.Errorf("sim: said %q, heard %q", text, out.Value)
	}
	return by, nil
}

// Talk is an open gRPC stream with an application.
type Talk struct{ s grpc.ClientStream }

// OpenTalk opens one; it ends with ctx.
func OpenTalk(ctx context.Context, cc *grpc.ClientConn) (*Talk, error) {
	s, err := cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, talkMethod)
	if err != nil {
		return nil, err
	}
	return &Talk{s}, nil
}

// Say sends a message and says which instance answered.
func (t *Talk) Say(text string) (by string, err error) {
	if err := t.s.SendMsg(wrapperspb.String(text)); err != nil {
		return "", errors.Join(err, t.s.RecvMsg(new(wrapperspb.StringValue)))
	}
	out := new(wrapperspb.StringValue)
	if err := t.s.RecvMsg(out); err != nil {
		return "", err
	}
	by, said, ok := strings.Cut(out.Value, " ")
	if !ok || said != text {
		return "", fmt.Errorf("sim: said %q, heard %q", text, out.Value)
	}
	return by, nil
}
