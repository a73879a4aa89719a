package listener

import (
	"bufio"
	"bytes"
	"net/http"
	"slices"
	"strings"
	"testing"
)

func TestMethodsAreSorted(t *testing.T) {
	if !slices.IsSorted(methods) {
		t.Fatal("beginsMethod searches: the list must be sorted")
	}
}

// classified has what each beginning is, with the shortest part of it that shows
// it: every shorter one has to be unclear.
var classified = []struct {
	name  string
	bytes string
	at    int // bytes after which it is clear
	want  speech
}{
	{"GET", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", len("GET / HTTP/1.1\r"), http11},
	{"a bare line feed", "GET / HTTP/1.1\nHost: a\n\n", len("GET / HTTP/1.1\n"), http11},
	{"HTTP/1.0", "GET /a?b=c HTTP/1.0\r\n\r\n", len("GET /a?b=c HTTP/1.0\r"), http10},
	{"OPTIONS *", "OPTIONS * HTTP/1.1\r\n", len("OPTIONS * HTTP/1.1\r"), http11},
	{"GET *", "GET * HTTP/1.1\r\n", len("GET *"), opaque},
	{"PROPFIND", "PROPFIND /dav HTTP/1.1\r\n", len("PROPFIND /dav HTTP/1.1\r"), http11},
	{"HTTP/2", preface + "\r\nSM\r\n\r\n", len(preface), h2c},
	{"not quite HTTP/2", "PRI * HTTP/1.1\r\n", len("PRI * HTTP/1"), opaque},
	{"HTTP/1.2", "GET / HTTP/1.2\r\n", len("GET / HTTP/1.2\r"), opaque},
	{"a version and more", "GET / HTTP/1.10\r\n", len("GET / HTTP/1.10"), opaque},
	{"HTTP/0.9", "GET /\r\n", len("GET /\r"), opaque},
	{"a proxy's CONNECT", "CONNECT a:443 HTTP/1.1\r\n", len("CON"), opaque},
	{"a proxy's GET", "GET http://a/ HTTP/1.1\r\n", len("GET h"), opaque},
	{"lower case", "get / HTTP/1.1\r\n", 1, opaque},
	{"a word of memcached", "get key\r\n", 1, opaque},
	{"Redis, in line", "PING\r\n", len("PI"), opaque},
	{"Redis, in line, with a key", "GET key\r\n", len("GET k"), opaque},
	{"Redis", "*1\r\n$4\r\nPING\r\n", 1, opaque},
	{"NATS", "CONNECT {\"verbose\":false}\r\nPING\r\n", len("CON"), opaque},
	{"AMQP", "AMQP\x00\x00\x09\x01", len("AM"), opaque},
	{"PostgreSQL", "\x00\x00\x00\x08\x04\xd2\x16\x2f", 1, opaque},
	{"MongoDB", "\x3a\x00\x00\x00\x01\x00\x00\x00", 1, opaque},
	{"SSH", "SSH-2.0-OpenSSH_9.2\r\n", len("SS"), opaque},
	{"SMTP", "EHLO a\r\n", 1, opaque},
	{"FTP", "USER a\r\n", len("US"), opaque},
	{"MySQL", "\x4a\x00\x00\x01\x8d\xa6\x0f\x00", 1, opaque},
	{"Cassandra", "\x04\x00\x00\x00\x05", 1, opaque},
	{"Kafka", "\x00\x00\x00\x2f\x00\x12", 1, opaque},
	{"MQTT", "\x10\x1f\x00\x04MQTT", 1, opaque},
	{"STOMP", "STOMP\naccept-version:1.2\n\n\x00", len("ST"), opaque},
	{"GIOP", "GIOP\x01\x02", len("GI"), opaque},
	{"SIP", "INVITE sip:a@b SIP/2.0\r\n", 1, opaque},
	{"RTSP", "OPTIONS rtsp://a RTSP/1.0\r\n", len("OPTIONS r"), opaque},
	{"RTSP with an asterisk", "OPTIONS * RTSP/1.0\r\n", len("OPTIONS * R"), opaque},
	{"TLS", "\x16\x03\x01\x02\x00", 1, tlsHello},
	{"a control byte in the target", "GET /a\x01b HTTP/1.1\r\n", len("GET /a\x01"), opaque},
	{"two spaces", "GET  / HTTP/1.1\r\n", len("GET  "), opaque},
}

func TestClassify(t *testing.T) {
	for _, c := range classified {
		for n := range len(c.bytes) + 1 {
			want := unclear
			if n >= c.at {
				want = c.want
			}
			if got := classify([]byte(c.bytes[:n])); got != want {
				t.Errorf("%s: after %d bytes (%q): %d, not %d", c.name, n, c.bytes[:n], got, want)
			}
		}
	}
}

func TestClassifyLongTarget(t *testing.T) {
	b := []byte("GET /" + strings.Repeat("a", maxFirstLine))
	if got := classify(b); got != http11 {
		t.Errorf("a target without end: %d", got)
	}
	if got := classify(b[:maxFirstLine]); got != unclear {
		t.Errorf("a long target: %d", got)
	}
}

// FuzzClassify holds the verdict against net/http's reading of the same bytes,
// and against itself: more bytes never change what was clear.
func FuzzClassify(f *testing.F) {
	for _, c := range classified {
		f.Add([]byte(c.bytes))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > maxFirstLine {
			b = b[:maxFirstLine]
		}
		clear := unclear
		for n := range len(b) + 1 {
			got := classify(b[:n])
			if clear != unclear && got != clear {
				t.Fatalf("%q was %d and is %d with one byte more", b[:n], clear, got)
			}
			clear = got
		}
		if clear != http10 && clear != http11 {
			return
		}
		line, _, _ := bytes.Cut(b, []byte{'\n'})
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(strings.TrimSuffix(string(line), "\r") + "\r\nHost: a\r\n\r\n")))
		if err != nil {
			return // a bad request of HTTP is HTTP: its engine says what is wrong
		}
		if r.ProtoMajor != 1 || (r.ProtoMinor == 0) != (clear == http10) || r.Method == http.MethodConnect {
			t.Fatalf("%q is taken for %v, net/http reads %s %s", b, clear.protocols(), r.Method, r.Proto)
		}
	})
}
