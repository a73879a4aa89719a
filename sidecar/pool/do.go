package pool

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// Exchange is what is known of one request's way beside its response.
type Exchange struct {
	Peer string // SPIFFE id that the endpoint proved
	TLS  bool
}

// Do implements [stream.Upstream].
func (p *Pool) Do(ctx context.Context, req *stream.Request) (*stream.Response, error) {
	resp, _, err := p.RoundTrip(ctx, req)
	return resp, err
}

// RoundTrip sends a request and returns when the response's head is there. ctx
// bounds the whole exchange; the error is an [*Error]. A request that met a
// pooled connection just as the endpoint closed it is sent again on another
// connection where that is safe (nothing was sent, or nothing came back and the
// method is safe and has no body).
func (p *Pool) RoundTrip(ctx context.Context, req *stream.Request) (*stream.Response, Exchange, error) {
	var x Exchange
	if !p.begin() {
		return nil, x, &Error{Kind: Gone, Detail: "the endpoint is being removed"}
	}
	// No context of our own to cancel at the end: net/http throws a connection
	// away whose request's context ends while it puts it back.
	over := sync.OnceFunc(p.end)
	wait := &waiter{got: make(chan struct{})}
	var sent atomic.Bool
	trace := &httptrace.ClientTrace{
		GotConn:      func(httptrace.GotConnInfo) { wait.done() },
		WroteHeaders: func() { sent.Store(true) },
	}
	if req.Informational != nil {
		early := &informational{tell: req.Informational}
		defer early.end()
		trace.Got1xxResponse = early.got
	}
	tctx := httptrace.WithClientTrace(context.WithValue(ctx, waiterKey{}, wait), trace)
	hreq, err := p.request(tctx, req)
	if err != nil {
		over()
		return nil, x, err
	}
	if req.Head.Upgrade != "" {
		return p.upgrade(hreq, over)
	}
	t := p.main
	if p.h2c != nil && req.Head.Protocol == stream.HTTP2 {
		t = p.h2c
	}
	hresp, err := t.RoundTrip(hreq)
	wait.done()
	if err != nil {
		e := *asError(ctx, err)
		e.Sent = sent.Load()
		over()
		return nil, x, &e
	}
	if hresp.TLS != nil {
		x.TLS, x.Peer = true, peerOf(*hresp.TLS)
	}
	resp, err := response(hresp, over)
	if err != nil {
		hresp.Body.Close()
		over()
		return nil, x, err
	}
	return resp, x, nil
}

// informational hands interim responses on (RFC 9110, section 15.2), from the
// goroutine that reads the connection and never after RoundTrip has returned:
// the final response is its caller's to write.
type informational struct {
	tell func(*stream.ResponseHead)
	mu   sync.Mutex // held while tell runs
	over bool       // guarded by mu
}

func (i *informational) got(status int, h textproto.MIMEHeader) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.over && status != http.StatusContinue { // 100 is each hop's own
		i.tell(&stream.ResponseHead{Status: status, Header: header(http.Header(h)), ContentLength: -1})
	}
	return nil
}

func (i *informational) end() {
	i.mu.Lock()
	i.over = true
	i.mu.Unlock()
}

// waiter is a request that may have to wait for room for a connection; it
// stops waiting when it got another one that became idle.
type waiter struct {
	got  chan struct{}
	once sync.Once
}

func (w *waiter) done() { w.once.Do(func() { close(w.got) }) }

type waiterKey struct{}

// errServed ends the wait of a request that got a pooled connection.
var errServed = errors.New("pool: another connection became free")

// waiting returns a context that also ends when the request behind ctx no
// longer needs the connection. net/http goes on dialling for a request that it
// could serve otherwise.
func waiting(ctx context.Context) context.Context {
	w, ok := ctx.Value(waiterKey{}).(*waiter)
	if !ok {
		return ctx
	}
	return servedContext{ctx, w.got}
}

type servedContext struct {
	context.Context
	got <-chan struct{}
}

// Served is closed when the request behind the context got a connection. The
// Slot hook asks for it by [Served].
func (c servedContext) served() <-chan struct{} { return c.got }

// Served returns the channel that ends a wait in Hooks.Slot without failure of
// anybody; nil where there is none.
func Served(ctx context.Context) <-chan struct{} {
	if s, ok := ctx.(servedContext); ok {
		return s.served()
	}
	return nil
}

// ErrServed is what Hooks.Slot returns when Served was closed.
func ErrServed() error { return &Error{Kind: Gone, Detail: errServed.Error(), Err: errServed} }

// endpointHost is the one host of a pool's transports: all connections of a
// pool are alike, whatever authority a request names.
const endpointHost = "endpoint"

// request makes net/http's form.
func (p *Pool) request(ctx context.Context, req *stream.Request) (*http.Request, error) {
	h := &req.Head
	u := &url.URL{Scheme: "http", Host: endpointHost, Opaque: h.Path}
	if p.c.TLS != nil {
		u.Scheme = "https"
	}
	if strings.HasPrefix(h.Path, "//") { // Opaque would read it as an authority
		path, query, has := strings.Cut(h.Path, "?")
		plain, err := url.PathUnescape(path)
		if err != nil {
			return nil, &Error{Kind: Protocol, Err: err, Detail: "the path cannot be sent: " + err.Error()}
		}
		u.Opaque, u.Path, u.RawPath, u.RawQuery, u.ForceQuery = "", plain, path, query, has && query == ""
	}
	if u.Opaque == "" && u.Path == "" {
		u.Opaque = "/"
	}
	hreq := (&http.Request{
		Method: h.Method, URL: u, Host: h.Authority, ContentLength: h.ContentLength,
		Header: make(http.Header, len(h.Header)+2), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(ctx)
	for _, f := range h.Header {
		switch f.Name {
		case "host", "content-length", "trailer":
		default:
			k := textproto.CanonicalMIMEHeaderKey(f.Name)
			hreq.Header[k] = append(hreq.Header[k], f.Value)
		}
	}
	if _, ok := hreq.Header["User-Agent"]; !ok {
		hreq.Header["User-Agent"] = nil // else net/http puts its own
	}
	if h.Upgrade != "" {
		hreq.Header["Connection"] = []string{"Upgrade"}
		hreq.Header["Upgrade"] = []string{h.Upgrade}
	}
	if req.Body == nil {
		hreq.ContentLength = 0
		return hreq, nil
	}
	if v, ok := h.Header.Lookup("trailer"); ok {
		hreq.Trailer = http.Header{}
		for name := range strings.SplitSeq(v, ",") {
			hreq.Trailer[textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name))] = nil
		}
	}
	if h.ContentLength == 0 {
		if hreq.Trailer == nil {
			return hreq, req.Body.Close()
		}
		hreq.ContentLength = -1 // a body may still carry trailers
	}
	hreq.Body = &requestBody{Body: req.Body, trailer: hreq.Trailer}
	return hreq, nil
}

// requestBody hands a stream.Body to net/http.
type requestBody struct {
	stream.Body
	trailer http.Header
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.Body.Read(p)
	if err == io.EOF && b.trailer != nil {
		for _, f := range b.Body.Trailers() {
			k := textproto.CanonicalMIMEHeaderKey(f.Name)
			if _, declared := b.trailer[k]; declared {
				b.trailer[k] = append(b.trailer[k], f.Value)
			}
		}
	}
	return n, err
}

// hopByHop are the fields that end with a connection (RFC 9110, 7.6.1).
var hopByHop = map[string]bool{
	"Connection": true, "Keep-Alive": true, "Proxy-Connection": true,
	"Transfer-Encoding": true, "Upgrade": true, "Te": true,
}

// header takes the connection's own fields off.
func header(h http.Header) stream.Header {
	named := map[string]bool{}
	for _, v := range h["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			named[textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name))] = true
		}
	}
	out := make(stream.Header, 0, len(h))
	for k, vs := range h {
		if hopByHop[k] || named[k] {
			continue
		}
		name := strings.ToLower(k)
		for _, v := range vs {
			out = append(out, stream.Field{Name: name, Value: v})
		}
	}
	sortFields(out)
	return out
}

// response makes stream's form; over is called when the exchange ended.
func response(h *http.Response, over func()) (*stream.Response, error) {
	r := &stream.Response{Head: stream.ResponseHead{
		Status: h.StatusCode, Header: header(h.Header), ContentLength: h.ContentLength, Protocol: stream.HTTP1,
	}}
	if h.ProtoMajor == 2 {
		r.Head.Protocol = stream.HTTP2
	}
	if h.StatusCode == http.StatusSwitchingProtocols {
		return nil, &Error{Kind: Protocol, Sent: true, Detail: "the endpoint switched protocols without being asked"}
	}
	if h.Body == nil || h.Body == http.NoBody {
		if len(h.Trailer) == 0 {
			over()
			return r, nil
		}
		h.Body = http.NoBody
	}
	r.Body = &responseBody{ReadCloser: h.Body, h: h, over: over}
	return r, nil
}

// responseBody is a response's body; the exchange ends with it.
type responseBody struct {
	io.ReadCloser
	h    *http.Response
	over func()
}

func (b *responseBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.over()
	}
	return n, err
}

func (b *responseBody) Close() error {
	err := b.ReadCloser.Close()
	b.over()
	return err
}

func (b *responseBody) Trailers() stream.Header { return header(b.h.Trailer) }
