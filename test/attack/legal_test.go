package attack

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// TestLegalRequests: HG2. What is odd and legal arrives, once and unharmed.
func TestLegalRequests(t *testing.T) {
	get := func(lines ...string) string {
		return strings.Join(append([]string{"GET /p HTTP/1.1", "Host: a.example"}, lines...), "\r\n") + "\r\n\r\n"
	}
	type field = [2]string
	for _, tt := range []struct {
		name, sent string
		want       []string // as seen.String says it
		fields     []field  // of the first; a value "-" is absent
	}{
		{"plain", get(), []string{`GET /p ""`}, []field{{"host", "a.example"}}},
		{"unknown methods", "PROPFIND /p HTTP/1.1\r\nHost: a.example\r\n\r\nM-SEARCH /p HTTP/1.1\r\nHost: a.example\r\n\r\n!#$%&'*+-.^_`|~ /p HTTP/1.1\r\nHost: a.example\r\n\r\n",
			[]string{`PROPFIND /p ""`, `M-SEARCH /p ""`, "!#$%&'*+-.^_`|~ /p \"\""}, nil},
		{"lower-case method", "get /p HTTP/1.1\r\nHost: a.example\r\n\r\n", []string{`get /p ""`}, nil},
		{"empty lines first", "\r\n" + get(), []string{`GET /p ""`}, nil},
		{"empty line between", get() + "\r\n" + get(), []string{`GET /p ""`, `GET /p ""`}, nil},
		{"no space after the colon", get("X:y"), []string{`GET /p ""`}, []field{{"x", "y"}}},
		{"white space around a value", get("X: \t y z\t "), []string{`GET /p ""`}, []field{{"x", "y z"}}},
		{"empty value", get("X:", "Y: "), []string{`GET /p ""`}, []field{{"x", ""}, {"y", ""}}},
		{"tab within a value", get("X: a\tb"), []string{`GET /p ""`}, []field{{"x", "a\tb"}}},
		{"bytes above 127", get("X: \xe4\xff\x80"), []string{`GET /p ""`}, []field{{"x", "\xe4\xff\x80"}}},
		{"every token character in a name", get("!#$%&'*+-.^_`|~09azAZ: y"), []string{`GET /p ""`}, []field{{"!#$%&'*+-.^_`|~09azAZ", "y"}}},
		{"names in capitals", "GET /p HTTP/1.1\r\nHOST: a.example\r\nX-A: 1\r\n\r\n", []string{`GET /p ""`}, []field{{"host", "a.example"}, {"x-a", "1"}}},
		{"values with every visible character", get("X: !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"), []string{`GET /p ""`}, []field{{"x", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"}}},
		{"repeated fields", get("Accept: a", "Accept: b", "Cookie: a=1", "Cookie: b=2"), []string{`GET /p ""`}, nil},
		{"host with a port", strings.Replace(get(), "a.example", "a.example:8080", 1), []string{`GET /p ""`}, nil},
		{"host is an address", strings.Replace(get(), "a.example", "127.0.0.1:80", 1), []string{`GET /p ""`}, nil},
		{"host is an IPv6 address", strings.Replace(get(), "a.example", "[2001:db8::1]:80", 1), []string{`GET /p ""`}, nil},
		{"host with a trailing dot", strings.Replace(get(), "a.example", "a.example.", 1), []string{`GET /p ""`}, nil},
		{"host with an underscore", strings.Replace(get(), "a.example", "a_b.example", 1), []string{`GET /p ""`}, nil},
		{"absolute form", strings.Replace(get(), "/p", "http://a.example/p", 1), []string{`GET /p ""`}, []field{{"host", "a.example"}}},
		{"absolute form in capitals", strings.Replace(get(), "/p", "HTTP://A.EXAMPLE/p", 1), []string{`GET /p ""`}, nil},
		{"absolute form without a path", strings.Replace(get(), "/p", "http://a.example", 1), []string{`GET / ""`}, nil},
		{"absolute form with a query only", strings.Replace(get(), "/p", "http://a.example?x=y", 1), []string{`GET /?x=y ""`}, nil},
		{"path with every character", strings.Replace(get(), "/p", "/-._~!$&'()*+,;=:@aZ9/%20%C3%A4", 1), []string{`GET /-._~!$&'()*+,;=:@aZ9/%20%C3%A4 ""`}, nil},
		{"query with every character", strings.Replace(get(), "/p", "/p?-._~!$&'()*+,;=:@/?aZ9%20%00%2F%2e%2E//..", 1), []string{`GET /p?-._~!$&'()*+,;=:@/?aZ9%20%00%2F%2e%2E//.. ""`}, nil},
		{"long target", strings.Replace(get(), "/p", "/p?"+strings.Repeat("x", 8000), 1), []string{`GET /p?` + strings.Repeat("x", 8000) + ` ""`}, nil},
		{"long value", get("X: " + strings.Repeat("y", 30_000)), []string{`GET /p ""`}, []field{{"x", strings.Repeat("y", 30_000)}}},
		{"ninety fields", get(slices.Repeat([]string{"X: y"}, 90)...), []string{`GET /p ""`}, nil},
		{"GET with a body", get("Content-Length: 4") + "body", []string{`GET /p "body"`}, nil},
		{"DELETE with chunks", "DELETE /p HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", []string{`DELETE /p "body"`}, nil},
		{"no body and a length", get("Content-Length: 0"), []string{`GET /p ""`}, nil},
		{"chunks of one byte", "POST /p HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1\r\nx\r\n", 300) + "0\r\n\r\n", []string{`POST /p "` + strings.Repeat("x", 300) + `"`}, nil},
		{"chunk sizes in both cases, with zeros", "POST /p HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: Chunked\r\n\r\n0a\r\n0123456789\r\n000B\r\n01234567890\r\n000\r\n\r\n", []string{`POST /p "012345678901234567890"`}, nil},
		{"trailers", "POST /p HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nab\r\n0\r\nX-Sum: 1\r\n\r\n" + get(), []string{`POST /p "ab"`, `GET /p ""`}, nil},
		{"expects to go on", "POST /p HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nbody", []string{`POST /p "body"`}, nil},
		{"pipelined", get() + "POST /q HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\r\nab" + get(), []string{`GET /p ""`, `POST /q "ab"`, `GET /p ""`}, nil},
		{"hop-by-hop", get("Connection: keep-alive, X-A", "X-A: 1", "Keep-Alive: timeout=5", "TE: trailers", "Proxy-Connection: keep-alive"), []string{`GET /p ""`}, []field{{"x-a", "-"}, {"keep-alive", "-"}, {"proxy-connection", "-"}}},
		{"an upgrade that nobody takes", get("Connection: upgrade", "Upgrade: foo/2"), []string{`GET /p ""`}, []field{{"upgrade", "-"}}},
		{"HTTP/1.0 with a host", "GET /p HTTP/1.0\r\nHost: a.example\r\n\r\n", []string{`GET /p ""`}, nil},
		{"HTTP/1.0 kept alive", "GET /p HTTP/1.0\r\nHost: a.example\r\nConnection: keep-alive\r\n\r\nGET /q HTTP/1.0\r\nHost: a.example\r\n\r\n", []string{`GET /p ""`, `GET /q ""`}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			// Whole, and split at each byte where it is short.
			l := onlyLane(t)
			whole(t, l, tt.sent, tt.want, tt.fields)
			for i := 1; i < len(tt.sent) && len(tt.sent) < 400; i += 7 {
				whole(t, l, tt.sent[:i]+"\x00split"+tt.sent[i:], tt.want, nil)
			}
		})
	}
}

func onlyLane(t *testing.T) *lane {
	t.Helper()
	_, free := lanes(t, 1, nil)
	return <-free
}

// whole sends something legal and checks that it arrives as wanted, with as many
// answers, each its own.
func whole(t *testing.T, l *lane, sent string, want []string, fields [][2]string) {
	t.Helper()
	l.b.take()
	c := connect(t, l.address)
	defer c.Close()
	c.send(strings.Split(sent, "\x00split")...)
	for i, w := range want {
		method, rest, _ := strings.Cut(w, " ")
		r, err := c.read(method)
		target, body, _ := strings.Cut(rest, ` "`)
		if answer := fmt.Sprintf("echo %s %s %d", method, target, len(body)-1); err != nil || r.status != 200 || r.body != answer {
			t.Errorf("answer %d to %.200q: %d %.200q, %v; want %.200q", i, sent, r.status, r.body, err, answer)
			return
		}
	}
	got, bad := l.b.take()
	if len(bad) > 0 || !slices.EqualFunc(got, want, func(s seen, w string) bool { return s.String() == w }) {
		t.Errorf("%.200q arrived as %.500v, want %.500v; garbage: %q", sent, got, want, bad)
		return
	}
	for _, f := range fields {
		if v, n := got[0].get(f[0]); (f[1] == "-") != (n == 0) || n > 0 && v != f[1] {
			t.Errorf("field %s: %d times, %.100q; want %.100q", f[0], n, v, f[1])
		}
	}
}

// TestLegalResponses: HG2 for the other side: what a server may answer reaches
// the client, and the connection goes on where both sides say so.
func TestLegalResponses(t *testing.T) {
	for _, tt := range []struct {
		name, method, sent string
		ends               bool // the server closes after it
		status             int
		body               string
	}{
		{"length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody", false, 200, "body"},
		{"chunked", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2;x=y\r\ndy\r\n0\r\n\r\n", false, 200, "body"},
		{"trailers", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n4\r\nbody\r\n0\r\nX: y\r\n\r\n", false, 200, "body"},
		{"until it closes", "GET", "HTTP/1.1 200 OK\r\n\r\nbody", true, 200, "body"},
		{"HTTP/1.0", "GET", "HTTP/1.0 200 OK\r\n\r\nbody", true, 200, "body"},
		{"says that it closes", "GET", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody", true, 200, "body"},
		{"no reason", "GET", "HTTP/1.1 200 \r\nContent-Length: 4\r\n\r\nbody", false, 200, "body"},
		{"a long reason", "GET", "HTTP/1.1 200 as \xe4ny\tone may say\r\nContent-Length: 4\r\n\r\nbody", false, 200, "body"},
		{"204", "GET", "HTTP/1.1 204 No Content\r\n\r\n", false, 204, ""},
		{"304 with a length", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n", false, 304, ""},
		{"HEAD", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", false, 200, ""},
		{"HEAD with chunks", "HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, 200, ""},
		{"100 and 103 before", "GET", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody", false, 200, "body"},
		{"102 before", "GET", "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false, 200, ""},
		{"unknown status", "GET", "HTTP/1.1 299 Odd\r\nContent-Length: 4\r\n\r\nbody", false, 299, "body"},
		{"599", "GET", "HTTP/1.1 599 Odd\r\nContent-Length: 4\r\n\r\nbody", false, 599, "body"},
		{"bytes above 127", "GET", "HTTP/1.1 200 OK\r\nX: \xe4\xff\r\nContent-Length: 4\r\n\r\nbody", false, 200, "body"},
		{"a large field", "GET", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", 30_000) + "\r\nContent-Length: 4\r\n\r\nbody", false, 200, "body"},
		{"many fields", "GET", "HTTP/1.1 200 OK\r\n" + strings.Repeat("Set-Cookie: a=b\r\n", 80) + "Content-Length: 4\r\n\r\nbody", false, 200, "body"},
		{"the same length twice in one field is not needed", "GET", "HTTP/1.1 200 OK\r\ncontent-length:4\r\n\r\nbody", false, 200, "body"},
		{"413 before the request's end", "POST", "HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nbody", false, 413, "body"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := &lane{address: freeAddress(t), b: newBackend(t)}
			l.b.answer = func(c net.Conn, s seen) bool {
				if s.target == "/canary" {
					_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\necho GET /canary 0")
					return true
				}
				_, _ = c.Write([]byte(tt.sent))
				return !tt.ends
			}
			start(t, nil, cluster("x", l.b.address(), resource.ProtocolHTTP1), inbound("x", l.address, manager("x")))
			for range 3 {
				c := connect(t, l.address)
				length := ""
				if tt.method == "POST" {
					length = "Content-Length: 0\r\n"
				}
				c.send(tt.method + " /p HTTP/1.1\r\nHost: a.example\r\n" + length + "\r\n")
				r, err := c.read(tt.method)
				if err != nil || r.status != tt.status || r.body != tt.body {
					t.Errorf("%d %.100q, %v; want %d %q", r.status, r.body, err, tt.status, tt.body)
				}
				if !tt.ends { // the client's connection goes on
					c.send("GET /canary HTTP/1.1\r\nHost: a.example\r\n\r\n")
					if r, err := c.read("GET"); err != nil || r.body != "echo GET /canary 0" {
						t.Errorf("the next request on the connection: %d %q, %v", r.status, r.body, err)
					}
				}
				_ = c.Close()
			}
			if _, bad := l.b.take(); len(bad) > 0 {
				t.Errorf("garbage: %q", bad)
			}
		})
	}
}
