package attack

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// TestH2Injection: HG3. No field, pseudo-field or length of an HTTP/2 request
// can put anything into the HTTP/1.1 behind it: the request is refused, or it
// arrives as exactly one, and other streams and connections are as they were.
func TestH2Injection(t *testing.T) {
	type injection struct {
		name   string
		fields []string
		body   string // sent as one DATA frame; then END_STREAM comes with it
		want   string // as seen.String says it; "": refused
		either bool   // refused is as good
	}
	var all []injection
	refuse := func(name string, fields ...string) { all = append(all, injection{name: name, fields: fields}) }
	for _, bad := range []string{"\r", "\n", "\r\n", "\x00", "a\r\nb: c", "a\nb: c", "a\rb", "a\x00b", "\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n", "a\x01b", "a\x7fb"} {
		refuse(fmt.Sprintf("value %q", bad), request("GET", "/p", "x", bad)...)
		refuse(fmt.Sprintf("name %q", bad), request("GET", "/p", bad, "y")...)
		refuse(fmt.Sprintf("path %q", bad), request("GET", "/p"+bad)...)
		refuse(fmt.Sprintf("query %q", bad), request("GET", "/p?x="+bad)...)
		refuse(fmt.Sprintf("method %q", bad), request("GET"+bad, "/p")...)
		refuse(fmt.Sprintf("authority %q", bad), ":method", "GET", ":scheme", "http", ":authority", "a.example"+bad, ":path", "/p")
		refuse(fmt.Sprintf("scheme %q", bad), ":method", "GET", ":scheme", "http"+bad, ":authority", "a.example", ":path", "/p")
		refuse(fmt.Sprintf("cookie %q", bad), request("GET", "/p", "cookie", "a=1", "cookie", bad)...)
	}
	for _, bad := range []string{"", " ", "x y", "x:", "x:y", ":x", "X", "Transfer-Encoding", "x\t", " x", "x ", "x(", "x\"", "\x80", "x/y", "x,y"} {
		refuse(fmt.Sprintf("field name %q", bad), request("GET", "/p", bad, "y")...)
	}
	for _, bad := range []string{" /p", "/p HTTP/1.1", "/p x", "p", "", "*", "?x", "#f", "/p#f", "http://a.example/p", "http:/p", "/%", "/%zz", "/%00", "/a\\b", "/../x", "\\p", "a.example/p", "/\x80 x"} {
		refuse(fmt.Sprintf("path %q", bad), request("GET", bad)...)
	}
	for _, bad := range []string{"a.example/p", "a.example?x", "a.example#f", "u@a.example", "a.example:x", "a example", "[::1", "a.example, b.example", "a.example:80:80", "a\\b", " a.example"} {
		refuse(fmt.Sprintf("authority %q", bad), ":method", "GET", ":scheme", "http", ":authority", bad, ":path", "/p")
	}
	for _, bad := range []string{"", "GET /smuggled", "GE T", "GET:", "G(T"} {
		refuse(fmt.Sprintf("method %q", bad), request(bad, "/p")...)
	}
	for _, f := range []string{"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"} {
		for _, v := range []string{"x", "close", "chunked", "websocket", ""} {
			refuse("field "+f+" "+v, request("GET", "/p", f, v)...)
		}
	}
	refuse("te other than trailers", request("GET", "/p", "te", "gzip")...)
	refuse("te with more than trailers", request("GET", "/p", "te", "trailers, chunked")...)
	// Pseudo-fields: RFC 9113, section 8.3.
	refuse("no method", ":scheme", "http", ":authority", "a.example", ":path", "/p")
	refuse("no scheme", ":method", "GET", ":authority", "a.example", ":path", "/p")
	refuse("no path", ":method", "GET", ":scheme", "http", ":authority", "a.example")
	refuse("no authority and no host", ":method", "GET", ":scheme", "http", ":path", "/p")
	refuse("method twice", request("GET", "/p", ":method", "POST")...)
	refuse("path twice", ":method", "GET", ":scheme", "http", ":authority", "a.example", ":path", "/p", ":path", "/smuggled")
	refuse("authority twice", ":method", "GET", ":scheme", "http", ":authority", "a.example", ":authority", "b.example", ":path", "/p")
	refuse("scheme twice", ":method", "GET", ":scheme", "http", ":scheme", "https", ":authority", "a.example", ":path", "/p")
	refuse("pseudo-field after a field", ":method", "GET", ":scheme", "http", ":authority", "a.example", "x", "y", ":path", "/p")
	refuse("unknown pseudo-field", ":method", "GET", ":scheme", "http", ":authority", "a.example", ":path", "/p", ":x", "y")
	refuse("response's pseudo-field", ":method", "GET", ":scheme", "http", ":authority", "a.example", ":path", "/p", ":status", "200")
	refuse("protocol without CONNECT", request("GET", "/p", ":protocol", "websocket")...)
	refuse("host disagrees", request("GET", "/p", "host", "b.example")...)
	refuse("host twice", request("GET", "/p", "host", "a.example", "host", "b.example")...)
	refuse("CONNECT", ":method", "CONNECT", ":authority", "a.example:443")
	refuse("CONNECT with a path", request("CONNECT", "/p")...)
	refuse("extended CONNECT that nobody allows", ":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":authority", "a.example", ":path", "/p")
	// Content-Length against DATA (RFC 9113, section 8.1.1).
	for _, cl := range []string{"3", "5", "0", "+4", "-4", "4,4", "4, 4", "", "x", "4 ", " 4", "18446744073709551620", "0x4", "4\x00"} {
		either := cl == "4 " || cl == " 4" || cl == "4,4" || cl == "4, 4"
		all = append(all, injection{"length " + cl, request("POST", "/p", "content-length", cl), "body", map[bool]string{true: `POST /p "body"`}[either], either})
	}
	all = append(all,
		injection{"length twice", request("POST", "/p", "content-length", "4", "content-length", "5"), "body", "", false},
		injection{"length with a body that is none", request("GET", "/p", "content-length", "4"), "", "", false},
		injection{"a body that reads as a request", request("POST", "/p"), smuggled, fmt.Sprintf("POST /p %q", smuggled), false},
		injection{"a body that reads as a chunk", request("POST", "/p"), "0\r\n\r\n" + smuggled, fmt.Sprintf("POST /p %q", "0\r\n\r\n"+smuggled), false},
		injection{"a GET whose body reads as a request", request("GET", "/p"), smuggled, fmt.Sprintf("GET /p %q", smuggled), false},
		injection{"a body with its length", request("POST", "/p", "content-length", "4"), "body", `POST /p "body"`, false},
		injection{"te trailers", request("GET", "/p", "te", "trailers"), "", `GET /p ""`, false},
		injection{"host agrees", request("GET", "/p", "host", "a.example"), "", `GET /p ""`, false},
		injection{"host alone", []string{":method", "GET", ":scheme", "http", ":path", "/p", "host", "a.example"}, "", `GET /p ""`, false},
		injection{"cookie crumbs", request("GET", "/p", "cookie", "a=1", "cookie", "b=2"), "", `GET /p ""`, false},
		injection{"expect", request("POST", "/p", "expect", "100-continue"), "body", `POST /p "body"`, false},
	)
	if len(all) < 150 {
		t.Fatalf("%d injections", len(all))
	}
	e, free := lanes(t, 8, nil)
	t.Run("injections", func(t *testing.T) {
		for _, in := range all {
			t.Run(in.name, func(t *testing.T) {
				t.Parallel()
				l := <-free
				defer func() { free <- l }()
				l.b.take()
				c := connectH2(t, l.address)
				defer c.Close()
				c.headers(1, in.body == "", in.fields...)
				if in.body != "" {
					_ = c.f.WriteData(1, true, []byte(in.body))
				}
				o, err := c.wait(1)
				if err != nil {
					t.Error(err)
				}
				if !o.over { // a malformed request is an error of its stream, not of others
					if err := c.alone(3); err != nil {
						t.Error(err)
					}
				}
				if err := ask(l.address, "/canary"); err != nil {
					t.Errorf("somebody else's request afterwards: %v", err)
				}
				got, bad := l.b.take()
				if len(bad) > 0 {
					t.Errorf("garbage: %q", bad)
				}
				got = slices.DeleteFunc(got, func(s seen) bool { return s.target == "/canary" })
				if in.name == "length 0" && o.refused() {
					// The head alone is a whole request, which may have gone on before
					// the DATA came; that goes nowhere.
					got = slices.DeleteFunc(got, func(s seen) bool { return s.String() == `POST /p ""` })
				}
				switch {
				case len(got) == 0 && (in.want == "" || in.either):
					if !o.refused() {
						t.Errorf("refused by %+v", o)
					}
				case in.want == "", len(got) != 1, got[0].String() != in.want, o.status != "200":
					t.Errorf("the backend got %v, want %q; the client %+v", got, in.want, o)
				}
				for _, s := range got {
					if v, n := s.get("cookie"); strings.Contains(in.name, "crumbs") && (n != 1 || v != "a=1; b=2") {
						t.Errorf("%d cookie fields, %q", n, v)
					}
				}
			})
		}
	})
	if n := e.errorsOf("local_panic"); n != 0 {
		t.Errorf("%v panics", n)
	}
}

// TestH2Trailers: trailers cannot frame, route or identify, and cannot inject.
func TestH2Trailers(t *testing.T) {
	_, free := lanes(t, 4, nil)
	for _, tt := range []struct {
		name   string
		fields []string
		want   bool // the request arrives
	}{
		{"plain", []string{"x-sum", "1"}, true},
		{"framing and identity are left out", []string{"content-length", "9", "host", "b.example", "x-forwarded-for", "1.2.3.4"}, true},
		{"a new line", []string{"x-sum", "1\r\ny: z"}, false},
		{"a pseudo-field", []string{":path", "/smuggled"}, false},
		{"transfer-encoding", []string{"transfer-encoding", "chunked"}, false},
		{"an upper-case name", []string{"X-Sum", "1"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := <-free
			defer func() { free <- l }()
			l.b.take()
			c := connectH2(t, l.address)
			defer c.Close()
			c.headers(1, false, request("POST", "/p")...)
			_ = c.f.WriteData(1, false, []byte("body"))
			c.headers(1, true, tt.fields...)
			o, err := c.wait(1)
			if err != nil {
				t.Error(err)
			}
			if err := ask(l.address, "/canary"); err != nil {
				t.Error(err)
			}
			got, bad := l.b.take()
			got = slices.DeleteFunc(got, func(s seen) bool { return s.target == "/canary" })
			if len(bad) > 0 || tt.want != (len(got) == 1 && got[0].String() == `POST /p "body"` && o.status == "200") || !tt.want && (len(got) > 0 || !o.refused()) {
				t.Errorf("the backend got %v, garbage %q, the client %+v", got, bad, o)
			}
		})
	}
}

// TestH2Legal: HG2. What RFC 9113 allows is taken.
func TestH2Legal(t *testing.T) {
	_, free := lanes(t, 1, nil)
	l := <-free
	c := connectH2(t, l.address, http2.Setting{ID: 0x0a0a, Val: 7}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	defer c.Close()
	one := func(stream uint32, want string, send func()) {
		t.Helper()
		send()
		o, err := c.wait(stream)
		if err != nil || o.status != "200" || o.body != want {
			t.Errorf("stream %d: %+v, %v; want %q", stream, o, err, want)
		}
	}
	one(1, "echo GET /p 0", func() { // a head in many frames, one of them empty
		b := c.block(request("GET", "/p", "x", strings.Repeat("y", 3000))...)
		_ = c.f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:1], EndStream: true})
		_ = c.f.WriteContinuation(1, false, nil)
		for b = b[1:]; len(b) > 500; b = b[500:] {
			_ = c.f.WriteContinuation(1, false, b[:500])
		}
		_ = c.f.WriteContinuation(1, true, b)
	})
	one(3, "echo POST /p 8", func() { // padding, empty DATA, priority, unknown frames, pings
		_ = c.f.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: c.block(request("POST", "/p")...), EndHeaders: true, PadLength: 200,
			Priority: http2.PriorityParam{StreamDep: 1, Weight: 7}})
		_ = c.f.WriteRawFrame(0xee, 0xff, 3, []byte("unknown"))
		_ = c.f.WriteRawFrame(0xef, 0, 0, []byte("unknown"))
		_ = c.f.WriteData(3, false, nil)
		_ = c.f.WriteDataPadded(3, false, []byte("body"), bytes.Repeat([]byte{0}, 100))
		_ = c.f.WritePriority(9, http2.PriorityParam{StreamDep: 3, Weight: 1})
		_ = c.f.WritePing(false, [8]byte{1})
		_ = c.f.WriteData(3, true, []byte("more"))
	})
	one(5, "echo GET /p?- 0", func() { c.headers(5, true, request("GET", "/p?-")...) })
	one(101, "echo PROPFIND /p 0", func() {
		c.headers(101, true, request("PROPFIND", "/p", "x", "\xe4\xff", "y", "", "accept", "a", "accept", "b")...)
	})
	one(103, "echo GET /p 0", func() {
		c.headers(103, true, ":path", "/p", ":authority", "A.example:80", ":scheme", "https", ":method", "GET")
	})
	_, bad := l.b.take()
	if len(bad) > 0 {
		t.Errorf("garbage: %q", bad)
	}
}
