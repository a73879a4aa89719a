package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestMain(m *testing.M) {
	stream.Poison = true
	goleak.VerifyTestMain(m)
}

// bench is a caller with a manager, and hosts to call.
type bench struct {
	t        *testing.T
	m        *netio.Memory
	caller   *netio.Host
	hosts    []*netio.Host
	identity *mtls.Cell
	*Manager
}

// inBubble runs a test with n hosts 10.0.1.1 … and a running manager.
func inBubble(t *testing.T, n int, f func(t *testing.T, b *bench)) {
	t.Helper()
	inBubbleWith(t, n, nil, nil, f)
}

func inBubbleWith(t *testing.T, n int, identity *mtls.Cell, r Resolver, f func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, m: netio.NewMemory(), identity: identity}
		b.caller = b.m.Host("caller", "10.0.0.1")
		for i := range n {
			b.hosts = append(b.hosts, b.m.Host(fmt.Sprintf("h%d", i+1), fmt.Sprintf("10.0.1.%d", i+1)))
		}
		var mu sync.Mutex
		rnd := rand.New(rand.NewPCG(3, 4))
		d := Deps{Net: b.caller, Resolver: r, Rand: func() uint64 { mu.Lock(); defer mu.Unlock(); return rnd.Uint64() }}
		if identity != nil {
			d.Identity = identity
		}
		b.Manager = NewManager(d)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); b.Run(ctx) }()
		f(t, b)
		cancel()
		<-done
		time.Sleep(time.Second) // net/http's server lingers before it closes
		if n := b.caller.Open(); n != 0 {
			t.Errorf("%d connections are open after Run returned", n)
		}
		for _, h := range b.hosts {
			h.Kill()
		}
		time.Sleep(time.Minute) // what net/http's server still waits for
	})
}

// serve runs an HTTP server on host i.
func (b *bench) serve(i int, h http.HandlerFunc, change ...func(*http.Server)) *http.Server {
	b.t.Helper()
	l, err := b.hosts[i].Listen(b.t.Context(), "tcp", ":80")
	if err != nil {
		b.t.Fatal(err)
	}
	s := &http.Server{Handler: h, Protocols: new(http.Protocols), ErrorLog: log.New(io.Discard, "", 0)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	for _, f := range change {
		f(s)
	}
	if s.TLSConfig != nil {
		s.Protocols.SetHTTP2(true)
		go s.ServeTLS(l, "", "")
	} else {
		go s.Serve(l)
	}
	b.t.Cleanup(func() { s.Close() })
	return s
}

// spec is an EDS cluster "web" of the first n hosts.
func (b *bench) spec(n int, change ...func(*resource.Cluster)) Spec {
	c := &resource.Cluster{Name: "web", Protocol: resource.ProtocolHTTP1, ConnectTimeout: time.Second,
		LB: resource.LBPolicy{RoundRobin: &resource.RoundRobin{}}}
	for _, f := range change {
		f(c)
	}
	e := &resource.Endpoints{Cluster: "web", Localities: []resource.Locality{{}}}
	for i := range n {
		e.Localities[0].Endpoints = append(e.Localities[0].Endpoints, resource.Endpoint{
			Address:  resource.Address{Host: b.hosts[i].Addr().String(), Port: 80},
			Metadata: resource.Metadata{resource.MetaWorkload: fmt.Sprintf("web-%d", i+1)},
		})
	}
	return Spec{Cluster: c, Endpoints: e}
}

func (b *bench) web() *Cluster {
	c, ok := b.Get("web")
	if !ok {
		b.t.Fatal("no cluster web")
	}
	return c
}

// body is a request body in memory.
type body struct {
	io.Reader
	trailers stream.Header
}

func (b *body) Trailers() stream.Header { return b.trailers }
func (b *body) Close() error            { return nil }

func text(s string) stream.Body { return &body{Reader: strings.NewReader(s)} }

func request(method string, b stream.Body) *stream.Request {
	return &stream.Request{Head: stream.RequestHead{Method: method, Scheme: "http", Authority: "web.test",
		Path: "/x?y=1", ContentLength: -1, Header: stream.Header{{Name: "x-a", Value: "1"}, {Name: "x-a", Value: "2"}}}, Body: b}
}

// call does one exchange and returns status and body.
func (b *bench) call(method string, reqBody stream.Body, o Options) (int, string, *Attempt, error) {
	resp, a, err := b.web().RoundTrip(b.t.Context(), request(method, reqBody), o)
	if err != nil {
		return 0, "", a, err
	}
	out, err := io.ReadAll(resp.Body)
	status, at := resp.Head.Status, *a // theirs no longer when the body is closed
	resp.End()
	return status, string(out), &at, err
}

func codeOf(err error) telemetry.Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return telemetry.OK
}

func name(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body); io.WriteString(w, s) }
}

func TestRequestArrivesAsSent(t *testing.T) {
	for _, proto := range []resource.Protocol{resource.ProtocolHTTP1, resource.ProtocolHTTP2} {
		inBubble(t, 1, func(t *testing.T, b *bench) {
			var got *http.Request
			b.serve(0, func(w http.ResponseWriter, r *http.Request) {
				data, _ := io.ReadAll(r.Body)
				got = r
				w.Header().Set("Trailer", "X-Sum")
				w.Header().Add("Set-Cookie", "a")
				w.Header().Add("Set-Cookie", "b")
				w.WriteHeader(201)
				w.Write(data)
				w.Header().Set("X-Sum", "7")
				w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
			})
			b.Update([]Spec{b.spec(1, func(c *resource.Cluster) { c.Protocol = proto })})
			req := request("POST", &body{strings.NewReader("hello"), stream.Header{{Name: "x-end", Value: "z"}}})
			req.Head.Header.Add("trailer", "x-end")
			resp, a, err := b.web().RoundTrip(t.Context(), req, Options{})
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(resp.Body)
			if resp.Head.Status != 201 || string(data) != "hello" || err != nil {
				t.Errorf("%d %q %v", resp.Head.Status, data, err)
			}
			tr := resp.Body.Trailers()
			at := *a
			defer func() {
				resp.End()
				if s := b.web().Status(); s.Requests != 0 || s.Endpoints[0].Active != 0 {
					t.Errorf("still counted: %+v", s)
				}
			}()
			if tr.Get("x-sum") != "7" || tr.Get("grpc-status") != "0" {
				t.Errorf("trailers %v", tr)
			}
			cookies := ""
			for _, f := range resp.Head.Header {
				if f.Name == "set-cookie" {
					cookies += f.Value
				}
			}
			if cookies != "ab" {
				t.Errorf("cookies %q", cookies)
			}
			if got.RequestURI != "/x?y=1" || got.Host != "web.test" || strings.Join(got.Header["X-A"], ",") != "1,2" || got.Trailer.Get("X-End") != "z" {
				t.Errorf("%s %s %v %v", got.Host, got.RequestURI, got.Header, got.Trailer)
			}
			for _, h := range []string{"User-Agent", "Accept-Encoding", "Connection"} {
				if v, ok := got.Header[h]; ok {
					t.Errorf("the pool added %s: %q", h, v)
				}
			}
			if want := map[resource.Protocol]int{resource.ProtocolHTTP1: 1, resource.ProtocolHTTP2: 2}[proto]; got.ProtoMajor != want {
				t.Errorf("spoken: %s", got.Proto)
			}
			if at.Host != "10.0.1.1:80" || at.Instance != "web-1" || at.Tries != 1 {
				t.Errorf("%+v", at)
			}
		})
	}
}

func TestDeadEndpointIsNotSeen(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, b *bench) {
		b.serve(0, name("a"))
		b.serve(2, name("c"))
		b.Update([]Spec{b.spec(3)})
		for i := range 40 {
			if _, _, _, err := b.call("POST", text("x"), Options{}); err != nil {
				t.Fatalf("request %d: %v", i, err)
			}
		}
		s := b.web().Status()
		if e := s.Endpoints[1]; e.Usable || !strings.Contains(e.Why, "ejected until") {
			t.Errorf("the dead endpoint: %+v", e)
		}
		if e := s.Endpoints[1]; e.Failures > 5 {
			t.Errorf("asked %d times in spite of ejection", e.Failures)
		}
		time.Sleep(11 * time.Second)
		if e := b.web().Status().Endpoints[1]; !e.Usable {
			t.Errorf("never let in again: %+v", e)
		}
	})
}

// All requests in hand at an instance that dies fail in one moment, more than
// the retry budget has room for.
func TestManyRequestsInHandAtADyingInstance(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, b *bench) {
		for i := range 3 {
			b.serve(i, func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(10 * time.Millisecond)
				io.WriteString(w, "ok")
			})
		}
		b.Update([]Spec{b.spec(3)})
		var wg sync.WaitGroup
		var failed atomic.Int64
		for range 90 {
			wg.Go(func() {
				if _, _, _, err := b.call("GET", nil, Options{}); err != nil {
					failed.Add(1)
					t.Log(err)
				}
			})
		}
		time.Sleep(5 * time.Millisecond)
		b.hosts[1].Kill()
		wg.Wait()
		for range 60 { // nobody is there any more: no call needs room
			wg.Go(func() {
				if _, _, _, err := b.call("POST", text("x"), Options{}); err != nil {
					failed.Add(1)
					t.Log(err)
				}
			})
		}
		wg.Wait()
		if n := failed.Load(); n > 0 {
			t.Errorf("%d requests failed", n)
		}
	})
}

func TestPostIsNeverSentTwice(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, b *bench) {
		var seen atomic.Int64
		for i := range 3 {
			b.serve(i, func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				seen.Add(1)
				panic(http.ErrAbortHandler)
			})
		}
		b.Update([]Spec{b.spec(3)})
		_, _, a, err := b.call("POST", text("x"), Options{})
		if seen.Load() != 1 || a.Tries != 1 || codeOf(err) != telemetry.UpstreamReset {
			t.Errorf("POST: seen %d times, %d tries, %v", seen.Load(), a.Tries, err)
		}
		seen.Store(0)
		_, _, a, err = b.call("GET", nil, Options{})
		if seen.Load() != 3 || a.Tries != 3 || codeOf(err) != telemetry.UpstreamReset {
			t.Errorf("GET: seen %d times, %d tries, %v", seen.Load(), a.Tries, err)
		}
	})
}

func TestRetryPolicyWords(t *testing.T) {
	for _, c := range []struct {
		name   string
		retry  resource.Retry
		status int
		grpc   string
		tries  int
	}{
		{"5xx", resource.Retry{On: []string{"5xx"}, NumRetries: 2}, 500, "", 3},
		{"gateway-error not on 500", resource.Retry{On: []string{"gateway-error"}, NumRetries: 2}, 500, "", 1},
		{"gateway-error on 503", resource.Retry{On: []string{"gateway-error"}, NumRetries: 1}, 503, "", 2},
		{"status codes", resource.Retry{On: []string{"retriable-status-codes"}, StatusCodes: []uint32{418}, NumRetries: 1}, 418, "", 2},
		{"409", resource.Retry{On: []string{"retriable-4xx"}, NumRetries: 1}, 409, "", 2},
		{"grpc unavailable", resource.Retry{On: []string{"unavailable"}, NumRetries: 1}, 200, "14", 2},
		{"grpc other", resource.Retry{On: []string{"cancelled"}, NumRetries: 1}, 200, "14", 1},
	} {
		inBubble(t, 3, func(t *testing.T, b *bench) {
			for i := range 3 {
				b.serve(i, func(w http.ResponseWriter, r *http.Request) {
					data, _ := io.ReadAll(r.Body)
					if string(data) != "body" {
						t.Errorf("%s: body %q", c.name, data)
					}
					if c.grpc != "" {
						w.Header().Set("Grpc-Status", c.grpc)
					}
					w.WriteHeader(c.status)
				})
			}
			b.Update([]Spec{b.spec(3)})
			status, _, a, err := b.call("POST", text("body"), Options{Retry: &c.retry})
			if status != c.status || a.Tries != c.tries || err != nil {
				t.Errorf("%s: %d, %d tries, want %d; %v", c.name, status, a.Tries, c.tries, err)
			}
			if s := b.web().Status(); s.Requests != 0 || s.Retries != 0 {
				t.Errorf("%s: still counted: %+v", c.name, s)
			}
		})
	}
}

func TestPerTryTimeoutGoesElsewhere(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, b *bench) {
		b.serve(0, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		b.serve(1, name("fast"))
		b.Update([]Spec{b.spec(2)})
		o := Options{Retry: &resource.Retry{On: []string{"5xx"}, NumRetries: 1}, PerTryTimeout: time.Second}
		for range 4 {
			if _, s, _, err := b.call("GET", nil, o); s != "fast" || err != nil {
				t.Errorf("%q %v", s, err)
			}
		}
		b.hosts[1].Kill()
		if _, _, _, err := b.call("GET", nil, o); codeOf(err) != telemetry.RetryLimit {
			t.Errorf("both attempts of a policy failed: %v", err)
		}
		b.serve(1, name("fast"))
		o.Retry = &resource.Retry{}
		codes := map[telemetry.Code]int{}
		for range 4 {
			_, _, _, err := b.call("GET", nil, o)
			codes[codeOf(err)]++
		}
		if codes[telemetry.UpstreamRequestTimeout] != 2 || codes[telemetry.OK] != 2 {
			t.Errorf("without retries: %v", codes)
		}
	})
}

// The server closes idle connections at the very instant that requests come.
func TestIdleRace(t *testing.T) {
	for _, proto := range []resource.Protocol{resource.ProtocolHTTP1, resource.ProtocolHTTP2} {
		inBubble(t, 1, func(t *testing.T, b *bench) {
			b.m.SetLatency(time.Millisecond)
			b.serve(0, name("ok"), func(s *http.Server) { s.IdleTimeout = 100 * time.Millisecond })
			b.Update([]Spec{b.spec(1, func(c *resource.Cluster) { c.Protocol = proto })})
			for i := range 300 {
				if status, _, _, err := b.call("GET", nil, Options{}); status != 200 {
					t.Fatalf("%v: request %d: %d %v", proto, i, status, err)
				}
				time.Sleep(96*time.Millisecond + time.Duration(i%60)*100*time.Microsecond)
			}
		})
	}
}

func TestBreakersAreExact(t *testing.T) {
	two := uint32(2)
	inBubble(t, 1, func(t *testing.T, b *bench) {
		release := make(chan struct{})
		var now, most atomic.Int64
		b.serve(0, func(w http.ResponseWriter, r *http.Request) {
			n := now.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			<-release
			now.Add(-1)
		})
		b.Update([]Spec{b.spec(1, func(c *resource.Cluster) { c.Breakers = &resource.Breakers{MaxRequests: &two} })})
		var over atomic.Int64
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, _, _, err := b.call("GET", nil, Options{}); codeOf(err) == telemetry.UpstreamOverflow {
					over.Add(1)
				} else if err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if over.Load() != 18 {
			t.Errorf("%d of 20 overflowed, want 18", over.Load())
		}
		close(release)
		wg.Wait()
		if most.Load() != 2 {
			t.Errorf("%d at a time", most.Load())
		}
	})
}

func TestConnectionLimitQueues(t *testing.T) {
	one, three := uint32(1), uint32(3)
	inBubble(t, 1, func(t *testing.T, b *bench) {
		b.serve(0, func(w http.ResponseWriter, r *http.Request) { time.Sleep(time.Second) })
		b.Update([]Spec{b.spec(1, func(c *resource.Cluster) {
			c.Breakers = &resource.Breakers{MaxConnections: &one, MaxPendingRequests: &three}
		})})
		var ok, over atomic.Int64
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				switch _, _, _, err := b.call("GET", nil, Options{}); {
				case err == nil:
					ok.Add(1)
				case codeOf(err) == telemetry.UpstreamOverflow:
					over.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if ok.Load() != 4 || over.Load() != 6 {
			t.Errorf("%d answered, %d overflowed; want one at work, three waiting, six refused", ok.Load(), over.Load())
		}
		if s := b.web().Status(); s.Connections != 1 || s.Pending != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestUpdateKeepsWhatItDoesNotTouch(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, b *bench) {
		b.serve(0, name("a"))
		b.serve(1, name("b"))
		b.Update([]Spec{b.spec(1)})
		c := b.web()
		b.call("GET", nil, Options{})
		open := b.caller.Open()
		for range 10 {
			b.Update([]Spec{b.spec(2, func(c *resource.Cluster) { c.PanicThreshold = rand.Float64() })})
			b.Update([]Spec{b.spec(1)})
		}
		if b.web() != c {
			t.Error("the handle changed")
		}
		b.call("GET", nil, Options{})
		if n := b.caller.Open(); n != open {
			t.Errorf("%d connections after %d", n, open)
		}
		if s := c.Status(); s.Endpoints[0].Requests != 2 {
			t.Errorf("%+v", s)
		}
	})
}

func TestRemovalDrains(t *testing.T) {
	for _, proto := range []resource.Protocol{resource.ProtocolHTTP1, resource.ProtocolHTTP2} {
		inBubble(t, 2, func(t *testing.T, b *bench) {
			slow := func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(200)
				w.(http.Flusher).Flush()
				time.Sleep(time.Minute)
				io.WriteString(w, "done")
			}
			b.serve(0, slow)
			b.serve(1, slow)
			b.Update([]Spec{b.spec(1, func(c *resource.Cluster) { c.Protocol = proto })})
			c := b.web()
			resp, _, err := c.RoundTrip(t.Context(), request("GET", nil), Options{})
			if err != nil {
				t.Fatal(err)
			}
			b.Update(nil)
			if _, _, err := c.RoundTrip(t.Context(), request("GET", nil), Options{}); codeOf(err) != telemetry.NoHealthyUpstream {
				t.Errorf("a removed cluster: %v", err)
			}
			if _, ok := b.Get("web"); ok {
				t.Error("still there")
			}
			if data, err := io.ReadAll(resp.Body); string(data) != "done" || err != nil {
				t.Errorf("the open stream was cut: %q %v", data, err)
			}
			resp.End()
			synctest.Wait()
			if n := b.caller.Open(); n != 0 {
				t.Errorf("%d connections open after the last stream", n)
			}
		})
	}
}

func TestNotUsableIsSaid(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, b *bench) {
		s := b.spec(1)
		s.Endpoints.Localities[0].Endpoints[0].Health = resource.Unhealthy
		b.serve(0, name("a"))
		b.Update([]Spec{s})
		_, _, _, err := b.call("GET", nil, Options{})
		if codeOf(err) != telemetry.NoHealthyUpstream || !strings.Contains(err.Error(), "unhealthy in the catalogue") {
			t.Error(err)
		}
		p := *s.Cluster
		p.PanicThreshold = 50
		b.Update([]Spec{{Cluster: &p, Endpoints: s.Endpoints}})
		if _, _, _, err := b.call("GET", nil, Options{}); err != nil {
			t.Errorf("below the panic threshold: %v", err)
		}
		b.Update([]Spec{b.spec(1, func(c *resource.Cluster) { c.Discovery = resource.DiscoveryOriginalDst })})
		if _, _, _, err := b.call("GET", nil, Options{}); codeOf(err) != telemetry.NotRedirected {
			t.Error(err)
		}
		if _, _, err := b.web().Connect(t.Context(), Options{}); codeOf(err) != telemetry.NotRedirected {
			t.Error(err)
		}
	})
}

func TestConnectTriesOthers(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, b *bench) {
		l, _ := b.hosts[2].Listen(t.Context(), "tcp", ":80")
		b.hosts[1].Unplug()
		b.Update([]Spec{b.spec(3)})
		for range 20 {
			c, a, err := b.web().Connect(t.Context(), Options{})
			if err != nil || a.Instance != "web-3" {
				t.Fatalf("%+v %v", a, err)
			}
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if n := b.web().Status().Endpoints[2].Active; n != 1 {
				t.Errorf("%d in hand", n)
			}
			c.Close()
			s.Close()
		}
		l.Close()
		_, _, err := b.web().Connect(t.Context(), Options{})
		if c := codeOf(err); c != telemetry.UpstreamConnectFailure && c != telemetry.UpstreamConnectTimeout {
			t.Error(err)
		}
	})
}

func TestCancelEndsTheExchange(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, b *bench) {
		gone := make(chan struct{})
		b.serve(0, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done(); close(gone) })
		b.Update([]Spec{b.spec(1)})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, a, err := b.web().RoundTrip(ctx, request("GET", nil), Options{})
		if codeOf(err) != telemetry.DownstreamReset || a.Tries != 1 {
			t.Errorf("%+v %v", a, err)
		}
		<-gone
	})
}

func TestFullDuplex(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, b *bench) {
		b.serve(0, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			buf := make([]byte, 16)
			for {
				n, err := r.Body.Read(buf)
				if n > 0 {
					w.Write(buf[:n])
					w.(http.Flusher).Flush()
				}
				if err != nil {
					return
				}
			}
		})
		b.Update([]Spec{b.spec(1, func(c *resource.Cluster) { c.Protocol = resource.ProtocolHTTP2 })})
		pr, pw := io.Pipe()
		resp, _, err := b.web().RoundTrip(t.Context(), request("POST", &body{Reader: pr}), Options{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			msg := fmt.Sprintf("message %d", i)
			io.WriteString(pw, msg)
			got := make([]byte, len(msg))
			if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != msg {
				t.Fatalf("%q %v", got, err)
			}
		}
		pw.Close()
		if rest, err := io.ReadAll(resp.Body); len(rest) != 0 || err != nil {
			t.Errorf("%q %v", rest, err)
		}
	})
}

func TestUpgrade(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, b *bench) {
		b.serve(0, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Upgrade") != "websocket" {
				w.WriteHeader(400)
				return
			}
			c, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Key: k\r\n\r\nhi ")
			data, _ := io.ReadAll(rw)
			c.Write(data)
		})
		b.Update([]Spec{b.spec(1)})
		req := request("GET", nil)
		req.Head.Upgrade = "websocket"
		resp, _, err := b.web().RoundTrip(t.Context(), req, Options{})
		if err != nil || resp.Tunnel == nil || resp.Head.Status != 101 || resp.Head.Header.Get("x-key") != "k" {
			t.Fatalf("%+v %v", resp, err)
		}
		io.WriteString(resp.Tunnel, "there")
		resp.Tunnel.CloseWrite()
		data, err := io.ReadAll(resp.Tunnel)
		if string(data) != "hi there" || err != nil {
			t.Errorf("%q %v", data, err)
		}
		resp.Tunnel.Close()
		req.Head.Upgrade = "other"
		resp, _, err = b.web().RoundTrip(t.Context(), req, Options{})
		if err != nil || resp.Tunnel != nil || resp.Head.Status != 400 {
			t.Fatalf("%+v %v", resp, err)
		}
	})
}

func TestEarlyResponseDuringUpload(t *testing.T) {
	for _, proto := range []resource.Protocol{resource.ProtocolHTTP1, resource.ProtocolHTTP2} {
		inBubble(t, 1, func(t *testing.T, b *bench) {
			b.serve(0, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(413) })
			b.Update([]Spec{b.spec(1, func(c *resource.Cluster) { c.Protocol = proto })})
			pr, pw := io.Pipe()
			go func() {
				for {
					if _, err := pw.Write(make([]byte, 4096)); err != nil {
						return
					}
				}
			}()
			resp, _, err := b.web().RoundTrip(t.Context(), request("POST", &body{Reader: pr}), Options{})
			if err != nil || resp.Head.Status != 413 {
				t.Errorf("%v: %+v %v", proto, resp, err)
			}
			resp.End()
			pr.Close()
		})
	}
}

// names is a resolver whose answers a test sets.
type names struct {
	mu sync.Mutex
	m  map[string][]netip.Addr
}

func (n *names) set(host string, ips ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.m[host] = nil
	for _, s := range ips {
		n.m[host] = append(n.m[host], netip.MustParseAddr(s))
	}
}

func (n *names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a := n.m[host]; len(a) > 0 {
		return a, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func TestDNS(t *testing.T) {
	r := &names{m: map[string][]netip.Addr{}}
	r.set("db.test", "10.0.1.2", "10.0.1.1")
	inBubbleWith(t, 2, nil, r, func(t *testing.T, b *bench) {
		b.serve(0, name("a"))
		b.serve(1, name("b"))
		static := func(k resource.DiscoveryKind) Spec {
			return b.spec(0, func(c *resource.Cluster) {
				c.Discovery = k
				c.Endpoints = &resource.Endpoints{Localities: []resource.Locality{{Endpoints: []resource.Endpoint{
					{Address: resource.Address{Host: "db.test", Port: 80}}}}}}
			})
		}
		hosts := func() (out []string) {
			for _, e := range b.web().Status().Endpoints {
				out = append(out, e.Address)
			}
			return out
		}
		b.Update([]Spec{static(resource.DiscoveryStrictDNS)})
		synctest.Wait()
		if got := fmt.Sprint(hosts()); got != "[10.0.1.1:80 10.0.1.2:80]" {
			t.Errorf("strict: %s", got)
		}
		r.set("db.test")
		time.Sleep(6 * time.Second)
		if n := len(hosts()); n != 2 {
			t.Errorf("a failed lookup left %d addresses", n)
		}
		r.set("db.test", "10.0.1.2")
		time.Sleep(6 * time.Second)
		if _, s, _, err := b.call("GET", nil, Options{}); s != "b" || err != nil || len(hosts()) != 1 {
			t.Errorf("%q %v %v", s, err, hosts())
		}
		r.set("db.test", "10.0.1.1", "10.0.1.2")
		b.Update([]Spec{static(resource.DiscoveryLogicalDNS)})
		synctest.Wait()
		if got := fmt.Sprint(hosts()); got != "[10.0.1.1:80]" {
			t.Errorf("logical: %s", got)
		}
	})
}

// authority is a CA of a trust domain.
type authority struct {
	td   spiffeid.TrustDomain
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, td string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{td: spiffeid.RequireTrustDomainFromString(td), key: key}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: td}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0), KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{{Scheme: "spiffe", Host: td}}}
	der, err := x509.CreateCertificate(crand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	a.cert, _ = x509.ParseCertificate(der)
	return a
}

func (a *authority) bundle() *x509bundle.Set {
	return x509bundle.NewSet(x509bundle.FromX509Authorities(a.td, []*x509.Certificate{a.cert}))
}

// identity issues an SVID.
func (a *authority) identity(t *testing.T, service string) *mtls.Snapshot {
	t.Helper()
	id, err := mtls.ServiceID(a.td, "default", "dc1", service)
	if err != nil {
		t.Fatal(err)
	}
	key, _ := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0),
		BasicConstraintsValid: true, URIs: []*url.URL{id.URL()}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(crand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	return &mtls.Snapshot{SVID: &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{leaf}, PrivateKey: key}, Bundles: a.bundle()}
}

func withTLS(san string) func(*resource.Cluster) {
	return func(c *resource.Cluster) {
		c.Protocol = resource.ProtocolAuto
		c.TLS = &resource.UpstreamTLS{TLSParams: resource.TLSParams{PeerSANs: []resource.StringMatch{{Value: san}}}}
	}
}

const webID = "spiffe://mesh.test/ns/default/dc/dc1/svc/web"

func TestMutualTLS(t *testing.T) {
	ca, other := newAuthority(t, "mesh.test"), newAuthority(t, "else.test")
	caller, web, foreign := ca.identity(t, "caller"), ca.identity(t, "web"), other.identity(t, "web")
	for _, c := range []struct {
		name   string
		own    *mtls.Snapshot
		server *mtls.Snapshot
		san    string
		alpn   []string
		code   telemetry.Code
		detail string
		proto  stream.Protocol
	}{
		{"h2 is preferred", caller, web, webID, []string{"h2", "http/1.1"}, telemetry.OK, "", stream.HTTP2},
		{"http/1.1 where that is all", caller, web, webID, []string{"http/1.1"}, telemetry.OK, "", stream.HTTP1},
		{"another service", caller, caller, webID, nil, telemetry.UpstreamTLSFailure, "unexpected_id", 0},
		{"another trust domain", caller, foreign, webID, nil, telemetry.UpstreamTLSFailure, "wrong_trust_domain", 0},
		{"no identity", &mtls.Snapshot{Err: mtls.ErrNoIdentity}, web, webID, nil, telemetry.NoIdentity, "own_certificate_missing", 0},
		{"plaintext", caller, nil, webID, nil, telemetry.UpstreamTLSFailure, "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubbleWith(t, 1, mtls.NewCell(c.own), nil, func(t *testing.T, b *bench) {
				var reached atomic.Bool
				b.serve(0, func(w http.ResponseWriter, r *http.Request) { reached.Store(true) }, func(s *http.Server) {
					if c.server != nil {
						s.TLSConfig = mtls.ServerConfig(mtls.ServerParams{Params: mtls.Params{Identity: mtls.NewCell(c.server),
							Trust: ca.bundle, ALPN: c.alpn}})
					}
				})
				b.Update([]Spec{b.spec(1, withTLS(c.san))})
				resp, a, err := b.web().RoundTrip(t.Context(), request("GET", nil), Options{})
				if codeOf(err) != c.code || c.detail != "" && !strings.Contains(err.Error(), c.detail) {
					t.Fatalf("%v, want %v %s", err, c.code, c.detail)
				}
				if c.code != telemetry.OK {
					if reached.Load() {
						t.Error("the request arrived all the same")
					}
					return
				}
				if resp.Head.Protocol != c.proto || a.Peer != webID || !a.TLS {
					t.Errorf("%v %+v", resp.Head.Protocol, a)
				}
				resp.End()
			})
		})
	}
}

func TestTrustChangeDrains(t *testing.T) {
	ca := newAuthority(t, "mesh.test")
	next := newAuthority(t, "mesh.test")
	caller, web := ca.identity(t, "caller"), ca.identity(t, "web")
	rotated := ca.identity(t, "caller")
	cell := mtls.NewCell(caller)
	inBubbleWith(t, 1, cell, nil, func(t *testing.T, b *bench) {
		b.serve(0, name("ok"), func(s *http.Server) {
			s.TLSConfig = mtls.ServerConfig(mtls.ServerParams{Params: mtls.Params{Identity: mtls.NewCell(web), ALPN: []string{"h2"}}})
		})
		b.Update([]Spec{b.spec(1, withTLS(webID))})
		must := func(want telemetry.Code) {
			t.Helper()
			if _, _, _, err := b.call("GET", nil, Options{}); codeOf(err) != want {
				t.Errorf("%v, want %v", err, want)
			}
		}
		must(telemetry.OK)
		cell.Set(rotated)
		synctest.Wait()
		if n := b.caller.Open(); n != 1 {
			t.Errorf("a rotated leaf left %d connections", n)
		}
		must(telemetry.OK)
		s := b.spec(1, withTLS(webID))
		s.Trust = next.bundle()
		b.Update([]Spec{s})
		synctest.Wait()
		if n := b.caller.Open(); n != 0 {
			t.Errorf("%d connections that were made with roots no longer trusted", n)
		}
		must(telemetry.UpstreamTLSFailure)
	})
}
