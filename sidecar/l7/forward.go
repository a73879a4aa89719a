package l7

import (
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"strconv"
	"strings"
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
	now := s.began // what is unsent by now took no time worth telling
	if s.body != nil || !s.run.Over() {
		now = s.watch.wheel.Now()
	}
	if fw.IdleTimeout != nil {
		s.watch.idleAfter(now, *fw.IdleTimeout)
	}
	s.deadlines(fw, now)
	if v.Path != h.Path {
		h.Header.Set(hOriginal, h.Path)
		h.Path = v.Path
	}
	if v.Authority != s.fx.Head(s.req).Authority() {
		h.Authority = v.Authority
	}
	mutateRequest(h, v)
	o := cluster.Options{Retry: fw.Retry}
	if fw.Retry != nil {
		o.PerTryTimeout = fw.Retry.PerTryTimeout
		if !s.e.clocks {
			o.Now = s.rec.Start.Add(s.watch.since(now))
		}
	}
	if s.x.c.Redirected {
		o.Destination = s.x.c.Destination
	}
	o.Hash, o.HasHash = s.hash(fw.Hash)
	if s.req.Informational == nil {
		s.req.Informational = s.inform
	}
	if h.Upgrade != "" {
		s.watch.unbound()
		s.webSocketKey(h)
	}
	resp, at, err := up.RoundTrip(s.life, s.req, o)
	if at != nil {
		s.rec.UpstreamHost, s.rec.UpstreamInstance, s.rec.Attempts = at.Host, at.Instance, at.Tries
		s.upstreamPeer(at)
	}
	if err != nil {
		return nil, err
	}
	if h.Upgrade != "" && h.Protocol == stream.HTTP2 && resp.Tunnel == nil && resp.Head.Status/100 == 2 {
		// To this client 2xx would say that the tunnel is there (RFC 8441, section 5).
		resp.End()
		return nil, &filter.Abort{Code: telemetry.UpstreamProtocolError, Detail: "the application answered " + strconv.Itoa(resp.Head.Status) + " to an upgrade, which is neither acceptance nor refusal"}
	}
	s.watch.moved()
	return resp, nil
}

// webSocketKey makes the key that a WebSocket handshake of HTTP/1.1 needs and one
// of HTTP/2 has not (RFC 8441, section 5.1), for an endpoint that may speak the
// former.
func (s *exchange) webSocketKey(h *stream.RequestHead) {
	const name = "sec-websocket-key"
	if h.Protocol != stream.HTTP2 || h.Upgrade != "websocket" {
		return
	}
	if _, ok := h.Header.Lookup(name); ok {
		return
	}
	var key [16]byte
	binary.NativeEndian.PutUint64(key[:], s.e.d.Rand())
	binary.NativeEndian.PutUint64(key[8:], s.e.d.Rand())
	h.Header.Add(name, base64.StdEncoding.EncodeToString(key[:]))
}

// informational passes a 1xx head on.
func (s *exchange) informational(h *stream.ResponseHead) {
	s.watch.writing() // it may block as any write does: a time-out must end it
	defer s.watch.waiting()
	if s.watch.fired() == telemetry.OK {
		_ = s.w.Informational(h)
	}
}

// deadlines sets the response's time-out, which begins when the request is
// complete (as Envoy's RouteAction.timeout does: a stream that the client keeps
// open is not cut), and the caller's own deadline, which shrinks on its way.
func (s *exchange) deadlines(fw *resource.Forward, now int64) {
	h := &s.req.Head.Header
	timeout := DefaultRouteTimeout
	if fw.Timeout != nil {
		timeout = *fw.Timeout
	}
	told, at := h.Lookup(hExpected)
	if at {
		if ms, err := strconv.ParseInt(told, 10, 64); err == nil && ms > 0 && s.x.trusted && s.e.c.Inbound {
			if d := time.Duration(min(ms, int64(maxTimeout/time.Millisecond))) * time.Millisecond; timeout == 0 || d < timeout {
				timeout = d
			}
		}
		h.Del(hExpected)
	}
	if s.grpc {
		if d, ok := parseGRPCTimeout(h.Get(hGRPCTimeout)); ok {
			left := max(d-s.watch.since(now), time.Nanosecond)
			s.watch.callerBy(now, min(left, maxTimeout))
			h.Set(hGRPCTimeout, formatGRPCTimeout(left))
		}
	}
	if timeout <= 0 || s.req.Head.Upgrade != "" {
		return
	}
	timeout = min(timeout, maxTimeout)
	if s.timeout != timeout {
		s.timeout, s.timeText = timeout, strconv.FormatInt(max(timeout.Milliseconds(), 1), 10)
	}
	h.Add(hExpected, s.timeText)
	if s.body != nil && s.body.responseBy(timeout) {
		return // begins at the request's end
	}
	s.watch.responseBy(now, timeout)
}

// maxTimeout is the longest time-out that is kept; sums with it do not overflow.
const maxTimeout = 365 * 24 * time.Hour

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
	var unit time.Duration
	switch v[len(v)-1] {
	case 'H':
		unit = time.Hour
	case 'M':
		unit = time.Minute
	case 'S':
		unit = time.Second
	case 'm':
		unit = time.Millisecond
	case 'u':
		unit = time.Microsecond
	case 'n':
		unit = time.Nanosecond
	default:
		return 0, false
	}
	if d := time.Duration(n) * unit; n == 0 || d/unit == time.Duration(n) {
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

// noBody says whether a response to the method with that status has none
// (RFC 9110, section 6.4.1).
func noBody(method string, status int) bool {
	return method == http.MethodHead || status == http.StatusNoContent || status == http.StatusNotModified || status < 200
}
