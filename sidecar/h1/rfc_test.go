package h1

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
)

// seen is a handler that writes down what it is given, and answers 200 unless
// answer says otherwise.
type seen struct {
	requests []string
	heads    []stream.RequestHead
	refusals []stream.Refusal
	bodies   []error
	unread   bool // bodies are left alone
	answer   func(life *stream.Scope, req *stream.Request, w stream.Responder)
}

func (s *seen) Exchange(life *stream.Scope, req *stream.Request, w stream.Responder) {
	h := req.Head
	h.Header = h.Header.Clone()
	h.Path, h.Authority, h.Upgrade = strings.Clone(h.Path), strings.Clone(h.Authority), strings.Clone(h.Upgrade)
	s.heads = append(s.heads, h)
	line := strings.Clone(req.Head.Method) + " " + h.Authority + " " + h.Path
	if h.Upgrade != "" {
		line += " upgrade=" + h.Upgrade
	}
	if req.Body != nil && !s.unread {
		b, err := io.ReadAll(req.Body)
		line += " " + string(b)
		for _, f := range req.Body.Trailers() {
			line += " " + f.Name + "=" + f.Value
		}
		if err != nil {
			line += " broken"
			s.bodies = append(s.bodies, err)
		}
	}
	s.requests = append(s.requests, line)
	if s.answer != nil {
		s.answer(life, req, w)
		return
	}
	_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: 0}, true)
}

func (s *seen) Refused(r stream.Refusal) *stream.Response {
	r.Method, r.Path, r.Authority = strings.Clone(r.Method), strings.Clone(r.Path), strings.Clone(r.Authority)
	s.refusals = append(s.refusals, r)
	return &stream.Response{Head: stream.ResponseHead{Status: r.Status, ContentLength: 0}}
}

// near is a server whose client is the test.
type near struct {
	t    *testing.T
	c    netio.Conn
	br   *bufio.Reader
	h    *seen
	sc   *ServerConn
	over chan struct{}
}

func newServer(h stream.Handler) *Server {
	return &Server{Handler: h, Wheel: wheel.New(), IdleTimeout: time.Minute, HeaderTimeout: 10 * time.Second}
}

func newNear(t *testing.T, h *seen, drain *stream.Scope) *near {
	c, s := pair(t)
	n := &near{t: t, c: c, br: bufio.NewReader(c), h: h, over: make(chan struct{})}
	n.sc = newServer(h).NewConn(t.Context(), s, drain)
	go func() {
		defer close(n.over)
		n.sc.Serve(netio.Pending{})
	}()
	return n
}

func (n *near) send(s string) { _, _ = io.WriteString(n.c, s) }

// status reads one response to the method, and its body.
func (n *near) response(method string) (*http.Response, string) {
	n.t.Helper()
	r, err := http.ReadResponse(n.br, &http.Request{Method: method})
	if err != nil {
		n.t.Fatal(err)
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return r, string(b)
}

// end closes the client's side and waits for the server.
func (n *near) end() {
	_ = n.c.Close()
	<-n.over
}

// talk sends bytes, whole or one by one, ends the client's direction, and gives
// the statuses of what came back.
func talk(t *testing.T, h *seen, text string, single bool) (statuses []int) {
	n := newNear(t, h, nil)
	defer n.end()
	if single {
		for i := range len(text) {
			n.send(text[i : i+1])
			synctest.Wait()
		}
	} else {
		n.send(text)
	}
	_ = n.c.CloseWrite()
	for {
		r, err := http.ReadResponse(n.br, nil)
		if err != nil {
			return statuses
		}
		statuses = append(statuses, r.StatusCode)
	}
}

// What RFC 9110, 9112 and the promises about desynchronisation ask of a server:
// each row is sent whole and byte by byte. want are the requests that the
// handler sees; status is that of the refusal at the end, 0: none.
var serverRows = []struct {
	section, name, text string
	want                []string
	status              int
}{
	// RFC 9112, section 2.2: message parsing.
	{"2.2", "plain", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", []string{"GET a /"}, 0},
	{"2.2", "an empty line before", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", []string{"GET a /"}, 0},
	{"2.2", "two empty lines before", "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"2.2", "bare LF after the request line", "GET / HTTP/1.1\nHost: a\r\n\r\n", nil, 400},
	{"2.2", "bare LF after a field", "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", nil, 400},
	{"2.2", "bare LF at the end", "GET / HTTP/1.1\r\nHost: a\r\n\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"2.2", "bare CR in a field", "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb: c\r\n\r\n", nil, 400},
	{"2.2", "bare CR at the end", "GET / HTTP/1.1\r\nHost: a\r\n\rX", nil, 400},
	{"2.2", "CR CR LF", "GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", nil, 400},
	{"2.2", "white space after the request line", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", nil, 400},
	{"2.2", "LF alone before", "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"2.3", "HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", []string{"GET  /"}, 0},
	{"2.3", "HTTP/2.0", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", nil, 505},
	{"2.3", "HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", nil, 505},
	{"2.3", "HTTP/0.9", "GET / HTTP/0.9\r\nHost: a\r\n\r\n", nil, 505},
	{"2.3", "http/1.1", "GET / http/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"2.3", "HTTP/1.10", "GET / HTTP/1.10\r\nHost: a\r\n\r\n", nil, 400},
	{"2.3", "HTTP/01.1", "GET / HTTP/01.1\r\nHost: a\r\n\r\n", nil, 400},
	{"2.3", "HTTP/1,1", "GET / HTTP/1,1\r\nHost: a\r\n\r\n", nil, 400},
	{"2.3", "no version", "GET /\r\nHost: a\r\n\r\n", nil, 400},
	{"2.3", "TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", nil, 400},

	// Section 3: the request line.
	{"3", "two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"3", "two spaces before the version", "GET /  HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"3", "tab", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"3", "space at the end", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n", nil, 400},
	{"3", "space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"3", "space before", " GET / HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"3.1", "any token is a method", "M-SEARCH!#$%&'*+.^_`|~ / HTTP/1.1\r\nHost: a\r\n\r\n", []string{"M-SEARCH!#$%&'*+.^_`|~ a /"}, 0},
	{"3.1", "letter case of the method", "get / HTTP/1.1\r\nHost: a\r\n\r\n", []string{"get a /"}, 0},
	{"3.1", "no token", "G(T / HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"3.1", "PRI", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", nil, 505},
	{"3.1", "PRI in 1.1", "PRI / HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"3.2", "control character in the target", "GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"3.2", "NUL in the target", "GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"3.2", "DEL in the target", "GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"3.2", "no form", "GET a HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"3.2", "no Host", "GET / HTTP/1.1\r\n\r\n", nil, 400},
	{"3.2", "two Hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", nil, 400},
	{"3.2", "two Hosts in 1.0", "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", nil, 400},
	{"3.2", "empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", []string{"GET  /"}, 0},
	{"3.2.1", "query", "GET /a?b=c&d HTTP/1.1\r\nHost: a\r\n\r\n", []string{"GET a /a?b=c&d"}, 0},
	{"3.2.2", "absolute form", "GET http://a/b?c HTTP/1.1\r\nHost: a\r\n\r\n", []string{"GET a /b?c"}, 0},
	{"3.2.2", "absolute form, no path", "GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", []string{"GET a /"}, 0},
	{"3.2.2", "absolute form, query alone", "GET http://a?b HTTP/1.1\r\nHost: a\r\n\r\n", []string{"GET a /?b"}, 0},
	{"3.2.2", "absolute form, another host", "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"3.2.2", "absolute form, case, port and dot", "GET HTTP://A.:80/ HTTP/1.1\r\nHost: a\r\n\r\n", []string{"GET A.:80 /"}, 0},
	{"3.2.2", "absolute form, default port of https", "GET https://a:443/ HTTP/1.1\r\nHost: a\r\n\r\n", []string{"GET a:443 /"}, 0},
	{"3.2.2", "absolute form, another port", "GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"3.2.2", "absolute form, port of the other scheme", "GET http://a:443/ HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"3.2.2", "absolute form, IPv6", "GET http://[::1]/ HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", []string{"GET [::1] /"}, 0},
	{"3.2.2", "absolute form, no Host in 1.1", "GET http://a/ HTTP/1.1\r\n\r\n", nil, 400},
	{"3.2.2", "absolute form, no Host in 1.0", "GET http://a/ HTTP/1.0\r\n\r\n", []string{"GET a /"}, 0},
	{"3.2.2", "user information", "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"3.2.2", "no authority", "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"3.2.2", "no scheme", "GET ://a/ HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"3.2.3", "CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", []string{"CONNECT a:443 a:443"}, 0},
	{"3.2.3", "CONNECT, another Host", "CONNECT a:443 HTTP/1.1\r\nHost: b:443\r\n\r\n", nil, 400},
	{"3.2.3", "CONNECT with a path", "CONNECT /a HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"3.2.3", "CONNECT without a port", "CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"3.2.3", "CONNECT with a body", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nContent-Length: 3\r\n\r\nabc", nil, 400},
	{"3.2.3", "early data after CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", []string{"CONNECT a:443 a:443"}, 0},
	{"3.2.4", "asterisk form", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", []string{"OPTIONS a *"}, 0},
	{"3.2.4", "asterisk form, GET", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"3.2.4", "OPTIONS in absolute form", "OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", []string{"OPTIONS a *"}, 0},

	// Section 5: fields.
	{"5", "no colon", "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", nil, 400},
	{"5", "no name", "GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", nil, 400},
	{"5.1", "space before the colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", nil, 400},
	{"5.1", "tab before the colon", "GET / HTTP/1.1\r\nHost: a\r\nX\t: y\r\n\r\n", nil, 400},
	{"5.1", "space in a name", "GET / HTTP/1.1\r\nHost: a\r\nX y: z\r\n\r\n", nil, 400},
	{"5.1", "no token", "GET / HTTP/1.1\r\nHost: a\r\nX(: z\r\n\r\n", nil, 400},
	{"5.1", "NUL in a name", "GET / HTTP/1.1\r\nHost: a\r\nX\x00: z\r\n\r\n", nil, 400},
	{"5.1", "obs-text in a name", "GET / HTTP/1.1\r\nHost: a\r\nX\xe9: z\r\n\r\n", nil, 400},
	{"5.2", "obs-fold", "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", nil, 400},
	{"5.2", "obs-fold by tab", "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n\tb\r\n\r\n", nil, 400},
	{"5.2", "folded length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n 3\r\n\r\nabc", nil, 400},
	{"9110 5.5", "NUL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: a\x00\r\n\r\n", nil, 400},
	{"9110 5.5", "control character in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: a\x1bb\r\n\r\n", nil, 400},
	{"9110 5.5", "DEL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: 0123456\x7f89\r\n\r\n", nil, 400},

	// Section 6: bodies.
	{"6.2", "length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: a\r\n\r\n", []string{"POST a / abc", "GET a /b"}, 0},
	{"6.2", "length of nothing", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", []string{"POST a /"}, 0},
	{"6.2", "leading zeros", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0003\r\n\r\nabc", []string{"POST a / abc"}, 0},
	{"6.2", "GET with a body", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", []string{"GET a / abc"}, 0},
	{"6.2", "signed length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc", nil, 400},
	{"6.2", "negative length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -3\r\n\r\nabc", nil, 400},
	{"6.2", "empty length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\nabc", nil, 400},
	{"6.2", "hexadecimal length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\nabc", nil, 400},
	{"6.2", "length with a space", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3 3\r\n\r\nabc", nil, 400},
	{"6.2", "length as a list", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc", nil, 400},
	{"6.2", "fraction", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3.0\r\n\r\nabc", nil, 400},
	{"6.2", "two equal lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", nil, 400},
	{"6.2", "two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", nil, 400},
	{"6.2", "length of 2^63", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775808\r\n\r\nabc", nil, 400},
	{"6.2", "length of 2^64+3", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551619\r\n\r\nabc", nil, 400},
	{"6.2", "underscore is another field", "POST / HTTP/1.1\r\nHost: a\r\nContent_Length: 3\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n", []string{"POST a /", "GET a /b"}, 0},
	{"6.2", "a body that is cut short", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabc", []string{"POST a / abc broken"}, 0},
	{"6.1", "chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n", []string{"POST a / abc", "GET a /b"}, 0},
	{"6.1", "Chunked", "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding:\t Chunked \t\r\n\r\n3\r\nabc\r\n0\r\n\r\n", []string{"POST a / abc"}, 0},
	{"6.1", "TE and CL", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", nil, 400},
	{"6.1", "CL and TE", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", nil, 400},
	{"6.1", "CL of 0 and TE", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", nil, 400},
	{"6.1", "CL named away, and TE", "POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", nil, 400},
	{"6.1", "TE named away", "POST / HTTP/1.1\r\nHost: a\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", []string{"POST a / abc"}, 0},
	{"6.1", "TE in 1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", nil, 400},
	{"6.1", "TE twice", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", nil, 400},
	{"6.1", "TE twice, one unknown", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n", nil, 400},
	{"6.1", "chunked, chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", nil, 400},
	{"6.1", "empty TE", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n", nil, 400},
	{"6.1", ", chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n", nil, 400},
	{"6.1", "gzip, chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", nil, 501},
	{"6.1", "identity", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", nil, 501},
	{"6.1", "xchunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", nil, 501},
	{"6.1", "chunked with a parameter", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n", nil, 501},
	{"6.1", "chunked in quotes", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", nil, 501},
	{"6.1", "vertical tab before chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", nil, 400},
	{"6.1", "space before the colon of TE", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", nil, 400},

	// Section 7.1: chunks.
	{"7.1", "upper-case size", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n", []string{"POST a / 0123456789"}, 0},
	{"7.1", "leading zeros", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0003\r\nabc\r\n000\r\n\r\n", []string{"POST a / abc"}, 0},
	{"7.1", "several chunks", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n", []string{"POST a / abc"}, 0},
	{"7.1.1", "extensions", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b;c=\"d\"\r\nabc\r\n0 ;x\r\n\r\n", []string{"POST a / abc"}, 0},
	{"7.1.2", "trailers", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Sum: 1\r\nHost: evil\r\nContent-Length: 5\r\nTransfer-Encoding: x\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n", []string{"POST a /  x-sum=1", "GET a /b"}, 0},
	{"7.1", "no size", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\nabc\r\n0\r\n\r\n", []string{"POST a /  broken"}, 0},
	{"7.1", "signed size", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n", []string{"POST a /  broken"}, 0},
	{"7.1", "0x size", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", []string{"POST a /  broken"}, 0},
	{"7.1", "space before the size", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n 3\r\nabc\r\n0\r\n\r\n", []string{"POST a /  broken"}, 0},
	{"7.1", "space after the size", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n", []string{"POST a /  broken"}, 0},
	{"7.1", "size of 2^64+3", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\n", []string{"POST a /  broken"}, 0},
	{"7.1", "size of 2^63", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n8000000000000000\r\nabc\r\n0\r\n\r\n", []string{"POST a /  broken"}, 0},
	{"7.1", "bare LF after the size", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n", []string{"POST a /  broken"}, 0},
	{"7.1", "bare CR after the size", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\rabc\r\n0\r\n\r\n", []string{"POST a /  broken"}, 0},
	{"7.1", "bare LF in an extension", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;\nabc\r\n0\r\n\r\n", []string{"POST a /  broken"}, 0},
	{"7.1", "bare CR in an extension", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;a\rb\r\nabc\r\n0\r\n\r\n", []string{"POST a /  broken"}, 0},
	{"7.1", "NUL in an extension", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;\x00\r\nabc\r\n0\r\n\r\n", []string{"POST a /  broken"}, 0},
	{"7.1", "no CRLF after the data", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc0\r\n\r\n", []string{"POST a / abc broken"}, 0},
	{"7.1", "LF after the data", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\n0\r\n\r\n", []string{"POST a / abc broken"}, 0},
	{"7.1", "longer than its size", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", []string{"POST a / abc broken"}, 0},
	{"7.1", "no last chunk", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", []string{"POST a / abc broken"}, 0},
	{"7.1", "no empty line", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", []string{"POST a /  broken"}, 0},
	{"7.1.2", "bare LF after the last chunk", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n", []string{"POST a /  broken"}, 0},
	{"7.1.2", "obs-fold in a trailer", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: a\r\n b\r\n\r\n", []string{"POST a /  broken"}, 0},
	{"7.1.2", "trailer without a colon", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nGET /b HTTP/1.1\r\n\r\n", []string{"POST a /  broken"}, 0},

	// Section 9: connections.
	{"9.3", "pipelined", "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n", []string{"GET a /1", "GET a /2", "GET a /3"}, 0},
	{"9.3", "close", "GET /1 HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n", []string{"GET a /1"}, 0},
	{"9.3", "1.0 ends", "GET /1 HTTP/1.0\r\n\r\nGET /2 HTTP/1.0\r\n\r\n", []string{"GET  /1"}, 0},
	{"9.3", "1.0 keep-alive", "GET /1 HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\nGET /2 HTTP/1.0\r\n\r\n", []string{"GET  /1", "GET  /2"}, 0},
	{"9.3", "a refusal ends the connection", "GET / HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n", nil, 400},
	{"9.8", "half a head", "GET / HTTP/1.1\r\nHost: a\r\n", nil, 0},

	// RFC 9110, section 7.8: upgrades.
	{"9110 7.8", "upgrade", "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\n", []string{"GET a / upgrade=websocket"}, 0},
	{"9110 7.8", "upgrade without Connection", "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", []string{"GET a /"}, 0},
	{"9110 7.8", "upgrade in 1.0", "GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", []string{"GET  /"}, 0},
	{"9110 7.8", "upgrade with a body", "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: a\r\n\r\n", []string{"POST a / abc", "GET a /b"}, 0},
	{"9110 7.8", "upgrade with chunks", "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n", []string{"POST a / ", "GET a /b"}, 0},
	{"9110 7.8", "two upgrades", "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: a\r\nUpgrade: b\r\n\r\n", []string{"GET a /"}, 0},

	// RFC 9110, section 10.1.1: expectations.
	{"9110 10.1.1", "another expectation", "GET / HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\n\r\n", nil, 417},
	{"9110 10.1.1", "nothing to wait for", "GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n", []string{"GET a /"}, 0},
}

func TestServerRows(t *testing.T) {
	for _, tt := range serverRows {
		for _, single := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s %s single=%v", tt.section, tt.name, single), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					h := &seen{}
					statuses := talk(t, h, tt.text, single)
					want := make([]int, 0, 4)
					for range tt.want {
						want = append(want, 200)
					}
					if tt.status != 0 {
						want = append(want, tt.status)
					}
					if !slices.Equal(h.requests, tt.want) || !slices.Equal(statuses, want) {
						t.Errorf("requests %q, want %q; statuses %v, want %v", h.requests, tt.want, statuses, want)
					}
					if (tt.status != 0) != (len(h.refusals) == 1) {
						t.Errorf("refusals %+v", h.refusals)
					}
					for _, r := range h.refusals {
						if r.Status != tt.status || r.Reason == "" || r.Protocol != stream.HTTP1 {
							t.Errorf("refusal %+v", r)
						}
					}
				})
			})
		}
	}
}

// RFC 9110, section 5.5, 7.6.1: what reaches the handler of the fields.
func TestServerFields(t *testing.T) {
	for name, tt := range map[string]struct {
		fields string
		want   stream.Header
	}{
		"lower case, order":   {"B: 1\r\nA: 2\r\nb: 3\r\n", stream.Header{{Name: "b", Value: "1"}, {Name: "a", Value: "2"}, {Name: "b", Value: "3"}}},
		"white space":         {"A:1\r\nB: \t 2 3 \t \r\nC:\r\nD: \t \r\n", stream.Header{{Name: "a", Value: "1"}, {Name: "b", Value: "2 3"}, {Name: "c", Value: ""}, {Name: "d", Value: ""}}},
		"obs-text and tab":    {"A: caf\xe9 \xff\tx\r\n", stream.Header{{Name: "a", Value: "caf\xe9 \xff\tx"}}},
		"colons":              {"A: b: c: d\r\nE::\r\n", stream.Header{{Name: "a", Value: "b: c: d"}, {Name: "e", Value: ":"}}},
		"every token":         {"!#$%&'*+-.^_`|~09azAZ: 1\r\n", stream.Header{{Name: "!#$%&'*+-.^_`|~09azaz", Value: "1"}}},
		"connection-specific": {"Connection: close, X-A, Keep-Alive\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nUpgrade: x\r\nHTTP2-Settings: x\r\nX-A: 1\r\nX-B: 2\r\nX-a: 3\r\n", stream.Header{{Name: "x-b", Value: "2"}}},
		"named in two fields": {"X-A: 1\r\nConnection: x-a\r\nConnection: , X-B ,\r\nX-B: 2\r\nX-C: 3\r\n", stream.Header{{Name: "x-c", Value: "3"}}},
		"cannot name away":    {"Connection: authorization, x-forwarded-for, forwarded, cookie, host\r\nAuthorization: 1\r\nX-Forwarded-For: 2\r\nForwarded: 3\r\nCookie: 4\r\n", stream.Header{{Name: "authorization", Value: "1"}, {Name: "x-forwarded-for", Value: "2"}, {Name: "forwarded", Value: "3"}, {Name: "cookie", Value: "4"}}},
		"te trailers":         {"TE: gzip, Trailers\r\nConnection: TE\r\nA: 1\r\n", stream.Header{{Name: "a", Value: "1"}, {Name: "te", Value: "trailers"}}},
		"te alone":            {"TE: gzip\r\nA: 1\r\n", stream.Header{{Name: "a", Value: "1"}}},
		"many options":        {"Connection: a, b, c, d, e, f, g\r\nA: 1\r\nG: 1\r\nH: 1\r\n", stream.Header{{Name: "h", Value: "1"}}},
		"trailer":             {"Trailer: X-Sum\r\n", stream.Header{{Name: "trailer", Value: "X-Sum"}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &seen{}
				talk(t, h, "GET / HTTP/1.1\r\nHost: a\r\n"+tt.fields+"\r\n", false)
				if len(h.heads) != 1 || !slices.Equal(h.heads[0].Header, tt.want) {
					t.Errorf("%+v, want %q; refused %+v", h.heads, tt.want, h.refusals)
				}
			})
		})
	}
}

// Limits of a head: its size wherever it lies in the buffers, and its fields.
func TestServerLimits(t *testing.T) {
	field := func(n int) string { return "X: " + strings.Repeat("x", n) + "\r\n" }
	for name, tt := range map[string]struct {
		text   string
		status int
	}{
		"within":          {"GET / HTTP/1.1\r\nHost: a\r\n" + field(DefaultMaxHeader-100) + "\r\n", 200},
		"just beyond":     {"GET / HTTP/1.1\r\nHost: a\r\n" + field(DefaultMaxHeader) + "\r\n", 431},
		"far beyond":      {"GET / HTTP/1.1\r\nHost: a\r\n" + field(10*DefaultMaxHeader) + "\r\n", 431},
		"target":          {"GET /" + strings.Repeat("a", DefaultMaxHeader) + " HTTP/1.1\r\nHost: a\r\n\r\n", 414},
		"long target":     {"GET /" + strings.Repeat("a", 50<<10) + " HTTP/1.1\r\nHost: a\r\n\r\n", 200},
		"method":          {strings.Repeat("A", DefaultMaxHeader) + " / HTTP/1.1\r\nHost: a\r\n\r\n", 414},
		"fields":          {"GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", DefaultMaxFields-1) + "\r\n", 200},
		"too many fields": {"GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", DefaultMaxFields) + "\r\n", 431},
		"dropped fields":  {"GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("Keep-Alive: y\r\n", DefaultMaxFields) + "\r\n", 431},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &seen{}
				n := newNear(t, h, nil)
				defer n.end()
				go n.send(tt.text)
				r, _ := n.response("GET")
				if r.StatusCode != tt.status {
					t.Errorf("%d %+v", r.StatusCode, h.refusals)
				}
				if tt.status != 200 && (len(h.refusals) != 1 || h.refusals[0].Kind != stream.TooLarge) {
					t.Errorf("%+v", h.refusals)
				}
			})
		})
	}
}

// A head that lies across the end of a buffer, after others, at every offset.
func TestServerAcrossBuffers(t *testing.T) {
	for _, pad := range []int{0, 1, 100, netio.BufSize - 300, netio.BufSize - 200, netio.BufSize - 120, netio.BufSize - 90, netio.BufSize - 60, netio.BufSize, 20 << 10} {
		synctest.Test(t, func(t *testing.T) {
			h := &seen{}
			text := "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: " + fmt.Sprint(pad) + "\r\n\r\n" + strings.Repeat("p", pad) +
				"GET /2 HTTP/1.1\r\nHost: a\r\nX-One: 1\r\n\r\nPOST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 5\r\n\r\nGET /4 HTTP/1.1\r\nHost: a\r\n\r\n"
			got := talk(t, h, text, false)
			if len(got) != 4 || len(h.requests) != 4 || h.requests[1] != "GET a /2" || h.requests[2] != "POST a /3 hello x-sum=5" || h.requests[3] != "GET a /4" || h.heads[1].Header.Get("x-one") != "1" {
				t.Errorf("pad %d: %v %.200q", pad, got, h.requests)
			}
		})
	}
}

// CVE-2023-39326: extensions may not cost more than what they come with.
func TestServerChunkExtensions(t *testing.T) {
	head := "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
	for name, tt := range map[string]struct {
		body   string
		broken bool
	}{
		"one long":        {"1;" + strings.Repeat("x", maxExtensions) + "\r\na\r\n0\r\n\r\n", true},
		"many":            {strings.Repeat("1;xxxxxxxxx\r\na\r\n", 2000) + "0\r\n\r\n", true},
		"many, with data": {strings.Repeat("10;xxxxxxxxx\r\n0123456789abcdef\r\n", 2000) + "0\r\n\r\n", false},
		"trailers":        {"0\r\n" + strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 20) + "\r\n", true},
		"trailer fields":  {"0\r\n" + strings.Repeat("X: y\r\n", DefaultMaxFields+1) + "\r\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &seen{}
				n := newNear(t, h, nil)
				defer n.end()
				go n.send(head + tt.body)
				n.response("POST")
				if broken := len(h.bodies) == 1; broken != tt.broken {
					t.Errorf("%v", h.bodies)
				}
				for _, err := range h.bodies {
					var f *stream.Failure
					if !errors.As(err, &f) || f.Kind != stream.FailedProtocol {
						t.Errorf("%#v", err)
					}
				}
			})
		})
	}
}
