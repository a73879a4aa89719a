package l7

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/cluster"
	"github.com/parrel-mesh/parrel/sidecar/filter"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// forward sends the request to the route's cluster and waits for the
// response's head.
func (s *exchange) forward(v *decide.RouteVerdict) (*stream.Response, error) {
	s.rec.Cluster = v.Cluster
	up, ok := s.e.c.Clusters(v.Cluster)
	if !ok {
		return nil, &filter.Abort{Code: telemetry.NoCluster, Detail: "cluster " + v.Cluster}
	}
	fw, h := v.Route.Forward, &s.req.Head
	if fw.IdleTimeout != nil {
		s.watch.idleAfter(*fw.IdleTimeout)
	}
	s.deadlines(fw)
	if v.Path != h.Path {
		h.Header.Set(hOriginal, h.Path)
		h.Path = v.Path
	}
	if v.Authority != filter.NormaliseAuthority(h.Authority) {
		h.Authority = v.Authority
	}
	mutateRequest(h, v)
	o := cluster.Options{Retry: fw.Retry}
	if fw.Retry != nil {
		o.PerTryTimeout = fw.Retry.PerTryTimeout
	}
	o.Hash, o.HasHash = s.hash(fw.Hash)
	if s.req.Informational == nil {
		s.req.Informational = func(h *stream.ResponseHead) {
			s.writing.Store(true) // it may block as any write does: a time-out must end it
			defer s.writing.Store(false)
			if s.watch.fired() == telemetry.OK {
				_ = s.w.Informational(h)
			}
		}
	}
	if h.Upgrade != "" {
		s.watch.unbound()
	}
	resp, at, err := up.RoundTrip(s.ctx, s.req, o)
	if at != nil {
		s.rec.UpstreamHost, s.rec.UpstreamInstance, s.rec.Attempts = at.Host, at.Instance, at.Tries
		s.upstreamPeer(at)
	}
	if err != nil {
		return nil, err
	}
	s.watch.touch()
	s.rec.FirstByte = s.e.d.Now().Sub(s.rec.Start)
	return resp, nil
}

// deadlines sets the response's time-out, which begins when the request is
// complete (as Envoy's RouteAction.timeout does: a stream that the client keeps
// open is not cut), and the caller's own deadline, which shrinks on its way.
func (s *exchange) deadlines(fw *resource.Forward) {
	h := &s.req.Head.Header
	timeout := DefaultRouteTimeout
	if fw.Timeout != nil {
		timeout = *fw.Timeout
	}
	if ms, err := strconv.ParseInt(h.Get(hExpected), 10, 64); err == nil && ms > 0 && s.x.trusted && s.e.c.Inbound {
		if d := time.Duration(ms) * time.Millisecond; timeout == 0 || d < timeout {
			timeout = d
		}
	}
	if s.grpc {
		if d, ok := parseGRPCTimeout(h.Get(hGRPCTimeout)); ok {
			left := max(d-time.Duration(s.watch.now()), time.Nanosecond)
			s.watch.callerBy(left)
			h.Set(hGRPCTimeout, formatGRPCTimeout(left))
		}
	}
	h.Del(hExpected)
	if timeout <= 0 || s.req.Head.Upgrade != "" {
		return
	}
	h.Set(hExpected, strconv.FormatInt(max(timeout.Milliseconds(), 1), 10))
	if b, ok := s.req.Body.(*requestBody); ok && s.requestEnd.Load() == 0 {
		b.timeout.Store(int64(timeout))
		if s.requestEnd.Load() == 0 {
			return // begins at the request's end
		}
	}
	s.watch.responseBy(timeout)
}

// parseGRPCTimeout reads grpc-timeout: at most eight digits and a unit
// (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests).
func parseGRPCTimeout(v string) (time.Duration, bool) {
	if len(v) < 2 || len(v) > 9 {
		return 0, false
	}
	n, err := strconv.ParseUint(v[:len(v)-1], 10, 32)
	if err != nil {
		return 0, false
	}
	unit, ok := map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second,
		'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}[v[len(v)-1]]
	if !ok {
		return 0, false
	}
	if d := time.Duration(n) * unit; unit == 0 || n == 0 || d/unit == time.Duration(n) {
		return d, true
	}
	return 1<<63 - 1, true // longer than a Duration can say
}

func formatGRPCTimeout(d time.Duration) string {
	const most = 99_999_999
	for _, u := range []struct {
		d time.Duration
		c string
	}{{time.Nanosecond, "n"}, {time.Microsecond, "u"}, {time.Millisecond, "m"}, {time.Second, "S"}, {time.Minute, "M"}} {
		if d/u.d <= most {
			return strconv.FormatInt(int64(d/u.d), 10) + u.c
		}
	}
	return strconv.FormatInt(int64(d/time.Hour), 10) + "H"
}

// mutateRequest applies the mutations from the most specific to the least, as
// Envoy does: weighted cluster, route, virtual host.
func mutateRequest(h *stream.RequestHead, v *decide.RouteVerdict) {
	if v.Weighted != nil {
		mutate(&h.Header, &v.Weighted.RequestHeaders)
	}
	if v.Route != nil {
		mutate(&h.Header, &v.Route.RequestHeaders)
	}
	if v.Host != nil {
		mutate(&h.Header, &v.Host.RequestHeaders)
	}
}

// routed applies the mutations of responses.
func (s *exchange) routed(v *decide.RouteVerdict, resp *stream.Response) *stream.Response {
	h := &resp.Head.Header
	if v.Weighted != nil {
		mutate(h, &v.Weighted.ResponseHeaders)
	}
	if v.Route != nil {
		mutate(h, &v.Route.ResponseHeaders)
	}
	if v.Host != nil {
		mutate(h, &v.Host.ResponseHeaders)
	}
	if s.cookie != "" {
		h.Add("set-cookie", s.cookie)
	}
	return resp
}

func mutate(h *stream.Header, m *resource.HeaderMutations) {
	for _, n := range m.Remove {
		h.Del(strings.ToLower(n))
	}
	for _, f := range m.Set {
		h.Set(strings.ToLower(f.Name), f.Value)
	}
	for _, f := range m.Add {
		h.Add(strings.ToLower(f.Name), f.Value)
	}
}

// requestBody counts the request and says when it is complete.
type requestBody struct {
	stream.Body
	s       *exchange
	timeout atomic.Int64 // of the response, from the request's end
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.Body.Read(p)
	b.s.watch.touch()
	total := b.s.bytesIn.Add(int64(n))
	// A known length is complete with its last byte: not every sender reads on.
	if err == io.EOF || b.s.req.Head.ContentLength > 0 && total >= b.s.req.Head.ContentLength {
		b.done()
	}
	return n, err
}

func (b *requestBody) done() {
	if b.s.requestEnd.CompareAndSwap(0, max(b.s.watch.now(), 1)) {
		b.s.watch.requestDone()
		b.s.watch.responseBy(time.Duration(b.timeout.Load()))
	}
}

// noBody says whether a response to the method with that status has none
// (RFC 9110, section 6.4.1).
func noBody(method string, status int) bool {
	return method == http.MethodHead || status == http.StatusNoContent || status == http.StatusNotModified || status < 200
}
