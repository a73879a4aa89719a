package nethttp

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// Serve runs one exchange with h. It panics with http.ErrAbortHandler, as
// net/http wants it, where the exchange ends in an abort. unread says that an
// HTTP/1.1 request was not read to its end: the connection must linger.
func Serve(ctx context.Context, h stream.Handler, p stream.Protocol, w http.ResponseWriter, r *http.Request) (unread bool) {
	rc := http.NewResponseController(w)
	if p == stream.HTTP1 {
		_ = rc.EnableFullDuplex() // only recorders in tests cannot
	}
	req := &stream.Request{Head: head(p, r)}
	var b *body
	if r.Body != nil && r.Body != http.NoBody && req.Head.Upgrade == "" {
		b = newBody(p, r, rc)
		req.Body = b
	}
	o := &responder{p: p, w: w, rc: rc, r: r, body: b}
	done := false
	defer func() {
		// Also where the handler panicked past its own guard: nobody may read on.
		if b != nil {
			unread = b.finish()
		}
		if !done || o.aborted {
			panic(http.ErrAbortHandler)
		}
	}()
	h.Exchange(ctx, req, o)
	done = true
	return unread
}

// head converts a request's head. Connection-specific fields are taken off.
func head(p stream.Protocol, r *http.Request) stream.RequestHead {
	hd := stream.RequestHead{
		Method: r.Method, Scheme: "http", Authority: r.Host, Path: target(r),
		ContentLength: r.ContentLength, Protocol: p,
	}
	hd.Header = Fields(r.Header)
	if len(r.Trailer) > 0 { // net/http has taken the announcement off the head
		names := slices.Sorted(maps.Keys(r.Trailer))
		hd.Header = append(hd.Header, stream.Field{Name: "trailer", Value: strings.Join(names, ", ")})
	}
	switch {
	case p == stream.HTTP1 && r.ProtoAtLeast(1, 1) && r.ContentLength == 0 && hd.Header.HasToken("connection", "upgrade"):
		// An upgrade together with a body is served as if it asked for none
		// (RFC 9110, section 7.8, allows to ignore it).
		hd.Upgrade = strings.ToLower(strings.TrimSpace(hd.Header.Get("upgrade")))
	case p == stream.HTTP2 && r.Method == http.MethodConnect:
		if proto := hd.Header.Get(":protocol"); proto != "" { // RFC 8441, section 4
			hd.Method, hd.Upgrade = http.MethodGet, strings.ToLower(proto)
			hd.ContentLength = -1
		}
	}
	hd.Header.Del(":protocol")
	hd.Header.StripHopByHop()
	return hd
}

// target is the request target in origin form. net/http has taken the host of
// an absolute form for Host already (RFC 9112, section 3.2.2).
func target(r *http.Request) string {
	t := r.RequestURI
	if t == "" || t[0] == '/' || t == "*" || r.Method == http.MethodConnect {
		return t
	}
	if i := strings.Index(t, "://"); i >= 0 {
		rest := t[i+3:]
		j := strings.IndexAny(rest, "/?")
		switch {
		case j < 0:
			return "/"
		case rest[j] == '?':
			return "/" + rest[j:]
		}
		return rest[j:]
	}
	return t
}

// Fields converts a header map; names become lower case, values keep their
// order within a name.
func Fields(h http.Header) stream.Header {
	if len(h) == 0 {
		return nil
	}
	n := 0
	for _, vs := range h {
		n += len(vs)
	}
	out := make(stream.Header, 0, n+4) // room for what the mesh adds
	for k, vs := range h {
		name := lower(k)
		for _, v := range vs {
			out = append(out, stream.Field{Name: name, Value: v})
		}
	}
	return out
}

// lowered are the names that nearly every message has, so that their lower
// case costs no allocation.
var lowered = func() map[string]string {
	m := map[string]string{}
	for _, n := range []string{"accept", "accept-encoding", "accept-language", "authorization", "cache-control",
		"connection", "content-encoding", "content-length", "content-type", "cookie", "date", "etag", "forwarded",
		"grpc-accept-encoding", "grpc-encoding", "grpc-timeout", "host", "if-modified-since", "if-none-match",
		"last-modified", "location", "origin", "referer", "server", "set-cookie", "te", "traceparent", "tracestate",
		"trailer", "transfer-encoding", "upgrade", "user-agent", "vary", "via", "x-forwarded-for",
		"x-forwarded-proto", "x-forwarded-client-cert", "x-request-id"} {
		m[http.CanonicalHeaderKey(n)] = n
	}
	return m
}()

func lower(k string) string {
	if n, ok := lowered[k]; ok {
		return n
	}
	return strings.ToLower(k)
}

// past is a deadline that has passed in any clock.
var past = time.Unix(1, 0)
