package lifecycle

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// stats are what one life of an application has to tell, a line of its file.
type stats struct {
	Served int64 `json:"served"`  // whole requests, or TCP sessions that the client ended
	InHand int64 `json:"in_hand"` // when SIGTERM came
	Calls  int64 `json:"calls"`   // to the upstream while it shut down
	Failed int64 `json:"failed"`  // of these and of the calls within requests
	Reason string
}

// service is the application of a rolling restart: it does not drain anything
// itself. At SIGTERM it makes calls to its upstream, writes what it counted, and
// is gone.
type service struct {
	upstream              string
	served, inHand, wrong atomic.Int64
	reason                atomic.Pointer[string]
}

// application serves http, grpc or tcp at APP_PORT once APP_GATE exists.
func application(protocol string) int {
	for gate := os.Getenv("APP_GATE"); gate != ""; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(gate); err == nil {
			break
		}
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	s := &service{}
	if p := os.Getenv("APP_UPSTREAM"); p != "" {
		s.upstream = "http://127.0.0.1:" + p + "/"
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("APP_PORT"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "application:", err)
		return 1
	}
	switch protocol {
	case "http":
		go func() { _ = http.Serve(l, s) }() // lives as long as the process
	case "grpc":
		g := grpc.NewServer()
		healthpb.RegisterHealthServer(g, &rpc{service: s})
		go func() { _ = g.Serve(l) }()
	case "tcp":
		go s.lines(l)
	}
	<-term
	out := stats{InHand: s.inHand.Load()}
	for range 10 {
		if s.upstream != "" {
			out.Calls++
			s.call()
			time.Sleep(30 * time.Millisecond)
		}
	}
	out.Served, out.Failed = s.served.Load(), s.wrong.Load()
	if r := s.reason.Load(); r != nil {
		out.Reason = *r
	}
	f, err := os.OpenFile(os.Getenv("APP_STATS"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 1
	}
	if json.NewEncoder(f).Encode(out) != nil || f.Close() != nil {
		return 1
	}
	return 0
}

// call asks the upstream; a failure is counted.
func (s *service) call() {
	if s.upstream == "" {
		return
	}
	resp, err := http.Get(s.upstream)
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s %s", resp.Status, resp.Header.Get("Proxy-Status"))
		}
	}
	if err != nil {
		text := err.Error()
		s.reason.Store(&text)
		s.wrong.Add(1)
	}
}

// work is one request: it takes a while, calls the upstream at its end, and is
// served when its answer was written.
func (s *service) work(d time.Duration, answer func() error) error {
	s.inHand.Add(1)
	defer s.inHand.Add(-1)
	if d > 0 {
		time.Sleep(d)
		s.call()
	}
	err := answer()
	if err == nil {
		s.served.Add(1)
	}
	return err
}

// ServeHTTP answers in two parts, with the request's body between them.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	d, _ := time.ParseDuration(r.URL.Query().Get("sleep"))
	if d > 0 {
		_, _ = io.WriteString(w, "begin\n")
		_ = http.NewResponseController(w).Flush()
	}
	_ = s.work(d, func() error {
		_, err := fmt.Fprintf(w, "%send\n", body)
		return err
	})
}

// rpc is the service over gRPC: what the health service is asked for is how long
// an answer takes.
type rpc struct {
	healthpb.UnimplementedHealthServer
	*service
}

func (s *rpc) Check(_ context.Context, r *healthpb.HealthCheckRequest) (out *healthpb.HealthCheckResponse, err error) {
	d, _ := time.ParseDuration(r.Service)
	err = s.work(d, func() error { return nil })
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, err
}

// Watch sends ten messages over the time and ends well.
func (s *rpc) Watch(r *healthpb.HealthCheckRequest, out grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	d, _ := time.ParseDuration(r.Service)
	return s.work(0, func() error {
		for range 10 {
			time.Sleep(d / 10)
			if err := out.Send(&healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}); err != nil {
				return err
			}
		}
		s.call()
		return nil
	})
}

// lines echoes until the client ends.
func (s *service) lines(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			s.inHand.Add(1)
			defer s.inHand.Add(-1)
			if n, err := io.Copy(c, c); err == nil && n > 0 {
				s.served.Add(1)
			}
		}()
	}
}

// readStats sums up what all lives of an application told.
func readStats(path string) (sum stats, lives int, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return sum, 0, err
	}
	for line := range strings.Lines(string(b)) {
		var one stats
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			return sum, lives, fmt.Errorf("%s: %w", strconv.Quote(line), err)
		}
		sum.Served += one.Served
		sum.InHand += one.InHand
		sum.Calls += one.Calls
		sum.Failed += one.Failed
		if one.Reason != "" {
			sum.Reason = one.Reason
		}
		lives++
	}
	return sum, lives, nil
}
