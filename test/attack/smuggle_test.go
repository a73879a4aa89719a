package attack

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
)

// attempt is one thing that a client may send.
type attempt struct {
	name string
	sent []string // written apart; the connection stays open
	// want is what may arrive at the backend, as seen.String says it; "" is
	// nothing, and then the client must see a refusal and the end of the connection.
	want string
	// or is another outcome that is as good: want, or refused.
	orRefused bool
	// status is what a refusal has; 0: 400.
	status int
	// clear: the message ends without doubt, only what it says is refused. The
	// connection may go on, and the bytes behind it are then the next request.
	clear bool
	// silent: the connection may end without an answer.
	silent bool
}

func post(fields, rest string) []string {
	return []string{"POST /p HTTP/1.1\r\nHost: a.example\r\n" + fields + "\r\n" + rest}
}

func head(lines string) []string { return []string{lines + "\r\n\r\n" + smuggled} }

// TestSmuggling: HG1. Every published class of desync and smuggling is refused,
// with the end of the connection, or arrives as one unambiguous request;
// leftover bytes are never a second request; and the requests of others on the
// same listener, before and after, get their own answers.
func TestSmuggling(t *testing.T) {
	attempts := smugglingAttempts()
	if len(attempts) < 120 {
		t.Fatalf("%d attempts", len(attempts))
	}
	e, free := lanes(t, 16, nil)
	t.Run("attempts", func(t *testing.T) {
		for _, a := range attempts {
			t.Run(a.name, func(t *testing.T) {
				t.Parallel()
				l := <-free
				defer func() { free <- l }()
				try(t, l, a)
			})
		}
	})
	if n := e.errorsOf("local_panic"); n != 0 {
		t.Errorf("%v panics", n)
	}
}

// try makes one attempt on a lane.
func try(t *testing.T, l *lane, a attempt) {
	l.b.take()
	c := connect(t, l.address)
	c.send(a.sent...)
	method, _, _ := strings.Cut(a.sent[0], " ")
	if a.clear {
		_ = c.Conn.(*net.TCPConn).CloseWrite()
	}
	statuses, err := c.rest(method)
	if a.clear && len(statuses) == 2 {
		statuses = statuses[:1]
	}
	if err != nil {
		t.Errorf("%v", err)
	}
	_ = c.Close()
	for range 2 { // what came before is on the wire by the time that these are answered
		if err := ask(l.address, "/canary"); err != nil {
			t.Errorf("somebody else's request afterwards: %v", err)
		}
	}
	got, bad := l.b.take()
	for _, b := range bad {
		t.Errorf("the backend got what can be read in two ways: %s", b)
	}
	got = slices.DeleteFunc(got, func(s seen) bool { return s.target == "/canary" || a.clear && s.target == "/smuggled" })
	refused := len(statuses) <= 1 && (a.silent && len(statuses) == 0 || len(statuses) == 1 && statuses[0] == max(a.status, 400) ||
		len(statuses) == 1 && a.status == 0 && slices.Contains([]int{400, 413, 414, 431, 501, 505}, statuses[0]))
	switch {
	case len(got) == 0 && (a.want == "" || a.orRefused):
		if !refused {
			t.Errorf("refused with %v", statuses)
		}
	case a.want == "":
		t.Errorf("the backend got %v, and the client %v", got, statuses)
	case len(got) != 1 || got[0].String() != a.want || len(statuses) == 0 || statuses[0] != 200:
		t.Errorf("the backend got %v, want %s; the client got %v", got, a.want, statuses)
	}
	if len(statuses) > 2 {
		t.Errorf("the client got %d answers: %v", len(statuses), statuses)
	}
}

func smugglingAttempts() []attempt {
	var out []attempt
	refuse := func(name string, sent ...string) { out = append(out, attempt{name: name, sent: sent}) }
	one := func(name, want string, sent ...string) {
		out = append(out, attempt{name: name, sent: sent, want: want})
	}
	either := func(name, want string, sent ...string) {
		out = append(out, attempt{name: name, sent: sent, want: want, orRefused: true, silent: true})
	}
	chunk := "5\r\nhello\r\n0\r\n\r\n"

	// Content-Length and Transfer-Encoding together, in any order and spelling
	// (RFC 9112, section 6.1).
	refuse("CL.TE", post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"+smuggled)...)
	refuse("TE.CL", post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", chunk+smuggled)...)
	refuse("CL.0 with TE", post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", chunk+smuggled)...)
	for i, te := range []string{
		"transfer-encoding: chunked", "TRANSFER-ENCODING: CHUNKED", "Transfer-Encoding:chunked", "Transfer-Encoding:\tchunked", "Transfer-Encoding: chunked ",
		"Transfer-Encoding: xchunked", "Transfer-Encoding: chunked, identity", "Transfer-Encoding: identity, chunked", "Transfer-Encoding: gzip, chunked",
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
		"Transfer-Encoding : chunked", " Transfer-Encoding: chunked", "\tTransfer-Encoding: chunked", "X: y\r\n Transfer-Encoding: chunked",
		"X: y\nTransfer-Encoding: chunked", "X: y\rTransfer-Encoding: chunked", "X: y\r\rTransfer-Encoding: chunked", "Transfer-Encoding\r\n: chunked",
		"Transfer-Encoding:\r\n chunked", "Transfer-Encoding: \x0bchunked", "Transfer-Encoding: \x0cchunked", "Transfer-Encoding: chunked\x00", "Transfer-Encoding:\x00chunked",
		"Transfer-\x00Encoding: chunked", "Transfer-Encoding: \"chunked\"", "Transfer-Encoding: chunked;q=1", "Transfer-Encoding: chunked,", "Transfer-Encoding: ,chunked",
		"Transfer-Encoding: , chunked", "Transfer-Encoding:", "Transfer-Encoding: \x80chunked", "Transfer-Encoding: ch\xc5\xabnked", "Transfer-Encoding: chunked\r\nTransfer-Encoding:",
		"Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
	} {
		refuse(fmt.Sprintf("CL and TE spelling %d %q", i, te), post("Content-Length: 4\r\n"+te+"\r\n", "0\r\n\r\n"+smuggled)...)
	}
	// A field of another name is no framing: the length counts.
	for _, te := range []string{"Transfer_Encoding: chunked", "Transfer-Encodin: chunked", "X-Transfer-Encoding: chunked"} {
		either("not a framing "+te, `POST /p "0\r\n"`, "POST /p HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nContent-Length: 3\r\n"+te+"\r\n\r\n0\r\n")
	}

	// Transfer codings by themselves.
	for i, te := range []string{"identity", "gzip", "gzip, chunked", "chunked, gzip", "chunked, chunked", "chunked;a=b", "chunked\x0b", "\x0bchunked", "chun ked", "xchunked",
		"chunkedx", "cow", ", chunked", "chunked,", "", "'chunked'"} {
		refuse(fmt.Sprintf("TE alone %d %q", i, te), post("Transfer-Encoding: "+te+"\r\n", chunk+smuggled)...)
	}
	refuse("TE twice", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", chunk+smuggled)...)
	refuse("TE in HTTP/1.0", "POST /p HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n"+chunk+smuggled)
	one("TE in capitals", `POST /p "hello"`, "POST /p HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nTransfer-Encoding: CHUNKED\r\n\r\n"+chunk)

	// Content-Length.
	for i, cl := range []string{"+4", "-4", "-0", "+0", "", " ", "4 ", "4,4", "4, 4", "4,5", "4;", "4.0", "0x4", "4e0", "4_0", "\"4\"", "four", "4 4", "4\x00", "\x004", "4\x0b", "\x0c4", "٤",
		"18446744073709551616", "18446744073709551620", "9223372036854775808", "99999999999999999999999999999999", "-9223372036854775808", "4\r\n 5", "4\t5"} {
		if cl == "4 " {
			continue // OWS: legal
		}
		refuse(fmt.Sprintf("CL %d %q", i, cl), post("Content-Length: "+cl+"\r\n", "body"+smuggled)...)
	}
	refuse("CL twice, different", post("Content-Length: 4\r\nContent-Length: 5\r\n", "body"+smuggled)...)
	either("CL twice, the same", `POST /p "body"`, "POST /p HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nbody")
	refuse("CL twice, one empty", post("Content-Length: 4\r\nContent-Length:\r\n", "body"+smuggled)...)
	refuse("CL twice, one empty first", post("Content-Length:\r\nContent-Length: 4\r\n", "body"+smuggled)...)
	refuse("CL with a space before the colon", post("Content-Length : 4\r\n", "body"+smuggled)...)
	refuse("CL with a tab before the colon", post("Content-Length\t: 4\r\n", "body"+smuggled)...)
	refuse("CL with a NUL in its name", post("Content-\x00Length: 4\r\n", "body"+smuggled)...)
	refuse("CL folded", post("Content-Length:\r\n 4\r\n", "body"+smuggled)...)
	either("CL with leading zeros", `POST /p "body"`, "POST /p HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nContent-Length: 0000004\r\n\r\nbody")
	one("bytes after a GET with CL 0", "GET /p \"\"", "GET /p HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"+smuggled)
	one("bytes after Connection: close", `POST /p "body"`, "POST /p HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody"+smuggled)
	one("bytes after a HEAD", "HEAD /p \"\"", "HEAD /p HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n"+smuggled)

	// Lines.
	for i, h := range []string{
		"GET /p HTTP/1.1\nHost: a.example", "GET /p HTTP/1.1\r\nHost: a.example\nX: y", "GET /p HTTP/1.1\r\nX: y\nHost: a.example", "GET /p HTTP/1.1\rHost: a.example",
		"GET /p HTTP/1.1\r\nHost: a.example\rX: y", "GET /p HTTP/1.1\r\nHost: a.example\r\r\nX: y", "GET /p HTTP/1.1\r\nHost: a.example\r\nX: a\rb", "GET /p HTTP/1.1\r\r\nHost: a.example",
		"GET /p HTTP/1.1\r\nHost: a.example\r\nX: a\x00b", "GET /p HTTP/1.1\r\nHost: a.example\r\nX\x00: b", "GET /p\x00 HTTP/1.1\r\nHost: a.example", "GET /p HTTP/1.1\x00\r\nHost: a.example",
		"GET /p HTTP/1.1\r\nHost: a.example\r\nX: a\x7fb", "GET /p HTTP/1.1\r\nHost: a.example\r\nX: a\x01b", "GET /p HTTP/1.1\r\nHost: a.example\r\nX: a\x1bb",
		"GET /p HTTP/1.1\r\nHost: a.example\r\n: empty", "GET /p HTTP/1.1\r\nHost: a.example\r\n:", "GET /p HTTP/1.1\r\n: x\r\nHost: a.example", "GET /p HTTP/1.1\r\nHost: a.example\r\nX",
		"GET /p HTTP/1.1\r\nHost: a.example\r\nX y: z", "GET /p HTTP/1.1\r\nHost: a.example\r\nX : z", "GET /p HTTP/1.1\r\nHost: a.example\r\nX\t: z", "GET /p HTTP/1.1\r\nHost : a.example",
		"GET /p HTTP/1.1\r\n Host: a.example", "GET /p HTTP/1.1\r\nHost: a.example\r\nX: y\r\n folded: z", "GET /p HTTP/1.1\r\nHost: a.example\r\nX: y\r\n\tfolded",
		"GET /p HTTP/1.1\r\nHost: a.example\r\n folded", "GET /p HTTP/1.1\r\nHost: a.example\r\nX(y): z", "GET /p HTTP/1.1\r\nHost: a.example\r\nX\"y: z", "GET /p HTTP/1.1\r\nHost: a.example\r\n\x80: z",
		"GET /p HTTP/1.1\r\nHost: a.example\r\nX[]: z", "GET /p HTTP/1.1\r\nHost: a.example\r\nX{: z", "GET /p HTTP/1.1\r\nHost: a.example\r\nX@: z", "GET /p HTTP/1.1\r\nHost: a.example\r\nX/y: z",
	} {
		refuse(fmt.Sprintf("line %d %q", i, h), head(h)...)
	}
	refuse("bare LF ends the head", "GET /p HTTP/1.1\r\nHost: a.example\n\n"+smuggled)
	refuse("LF CR LF ends the head", "GET /p HTTP/1.1\r\nHost: a.example\n\r\n"+smuggled)
	refuse("CR LF LF ends the head", "GET /p HTTP/1.1\r\nHost: a.example\r\n\n"+smuggled)
	refuse("CR CR ends the head", "GET /p HTTP/1.1\r\nHost: a.example\r\r"+smuggled+"\r\n\r\n")
	refuse("everything by bare LF", strings.ReplaceAll("GET /p HTTP/1.1\r\nHost: a.example\r\n\r\n"+smuggled, "\r", ""))

	// Request lines.
	for i, l := range []string{
		"GET /p", "GET /p HTTP/1.1 HTTP/1.1", "GET  /p HTTP/1.1", "GET /p  HTTP/1.1", " GET /p HTTP/1.1", "GET /p HTTP/1.1 ", "GET\t/p HTTP/1.1", "GET /p\tHTTP/1.1", "GET /p\x0bHTTP/1.1",
		"GET /a b HTTP/1.1", "GET HTTP/1.1", "GET  HTTP/1.1", "/p HTTP/1.1", "G(T /p HTTP/1.1", "G\x80T /p HTTP/1.1", ": /p HTTP/1.1", "GET /p HTTP/1.2", "GET /p HTTP/2.0", "GET /p HTTP/0.9",
		"GET /p HTTP/01.1", "GET /p HTTP/1.01", "GET /p HTTP/11", "GET /p HTTP/1", "GET /p HTTP/1.", "GET /p http/1.1", "GET /p HTTPS/1.1", "GET /p HTTP/ 1.1", "GET /p HTTP/1,1", "GET /p HTTP/1.1x",
		"GET /p HTTP/-1.1", "GET p HTTP/1.1", "GET ?a HTTP/1.1", "GET #a HTTP/1.1", "GET * HTTP/1.1", "GET /p#f HTTP/1.1", "GET /\x80 HTTP/1.1 x", "GET /\x01 HTTP/1.1", "GET /\x7f HTTP/1.1",
		"GET a.example:80 HTTP/1.1", "GET http:///p HTTP/1.1", "GET http://a.example:x/p HTTP/1.1", "GET http://u@a.example/p HTTP/1.1", "GET ftp://a.example/p HTTP/1.1", "GET //a.example/p\r HTTP/1.1",
		"\x16\x03\x01 /p HTTP/1.1",
	} {
		out = append(out, attempt{name: fmt.Sprintf("request line %d %q", i, l), sent: head(l + "\r\nHost: a.example"), silent: l[0] == 0x16, clear: strings.Contains(l, "#")})
	}

	// Host.
	for i, h := range []string{"X: y", "Host: a.example\r\nHost: a.example", "Host: a.example\r\nHost: b.example", "Host: a.example, b.example", "Host: a.example/p", "Host: u@a.example",
		"Host: a.example:x", "Host: a.example:80:80", "Host: a .example", "Host: [::1", "Host: a.example\x00", "Host: a.example\r\n host: b.example", "Host: a.example?x", "Host: a.example#x", "Host: a\\b"} {
		out = append(out, attempt{name: fmt.Sprintf("host %d %q", i, h), sent: head("GET /p HTTP/1.1\r\n" + h), clear: true})
	}

	// Chunks.
	chunked := func(body string) string {
		return "POST /p HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n" + body + smuggled
	}
	for i, body := range []string{
		"5\nhello\r\n0\r\n\r\n", "5\r\nhello\n0\r\n\r\n", "5\r\nhello\r\n0\n\n", "5\r\nhello\r\n0\n\r\n", "5\r\nhello\r\n0\r\n\n", "5\rhello\r\n0\r\n\r\n", "5\r\nhello\r0\r\n\r\n", "5\r\nhelloX\r\n0\r\n\r\n",
		"5\r\nhello0\r\n\r\n", "6\r\nhello\r\n0\r\n\r\n", "4\r\nhello\r\n0\r\n\r\n", "+5\r\nhello\r\n0\r\n\r\n", "-5\r\nhello\r\n0\r\n\r\n", "0x5\r\nhello\r\n0\r\n\r\n", " 5\r\nhello\r\n0\r\n\r\n", "5 \r\nhello\r\n0\r\n\r\n",
		"5\t\r\nhello\r\n0\r\n\r\n", "5_\r\nhello\r\n0\r\n\r\n", "g\r\nhello\r\n0\r\n\r\n", "\r\nhello\r\n0\r\n\r\n", "5.\r\nhello\r\n0\r\n\r\n", "5,5\r\nhello\r\n0\r\n\r\n", "10000000000000005\r\nhello\r\n0\r\n\r\n",
		"ffffffffffffffff\r\nhello\r\n0\r\n\r\n", "fffffffffffffffff\r\nhello\r\n0\r\n\r\n", "8000000000000000\r\nhello\r\n0\r\n\r\n",
		"5;a\nb\r\nhello\r\n0\r\n\r\n", "5;a=\"\n\"\r\nhello\r\n0\r\n\r\n", "5;a\rb\r\nhello\r\n0\r\n\r\n", "5;a\x00b\r\nhello\r\n0\r\n\r\n", "5;\nx\r\n0\r\n\r\n", "5;\r\r\nhello\r\n0\r\n\r\n",
		"5\r\r\nhello\r\n0\r\n\r\n", "0;\n\r\n\r\n", "0\r\nX: y\n\r\n", "0\r\nX: y\r\n z\r\n\r\n", "0\r\nX : y\r\n\r\n", "0\r\n: y\r\n\r\n", "0\r\nX\x00: y\r\n\r\n", "0\r\nX: a\rb\r\n\r\n", "0\r\nX: y\n\n", "5\r\nhello\r\n\r\n0\r\n\r\n",
		"5\r\nhello\r\n00000000000000000\x00\r\n\r\n", "\x005\r\nhello\r\n0\r\n\r\n",
	} {
		out = append(out, attempt{name: fmt.Sprintf("chunk %d %q", i, body), sent: []string{chunked(body)}, silent: true})
	}
	out = append(out, attempt{name: "chunk extensions without end", silent: true, sent: []string{chunked(strings.Repeat("1;"+strings.Repeat("x", 1000)+"\r\na\r\n", 2000) + "0\r\n\r\n")}})
	out = append(out, attempt{name: "one endless chunk extension", silent: true, sent: []string{chunked("5;" + strings.Repeat("x", 1<<20) + "\r\nhello\r\n0\r\n\r\n")}})
	out = append(out, attempt{name: "endless trailers", silent: true, sent: []string{chunked("0\r\n" + strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 1000) + "\r\n")}})
	for i, c := range []string{"00000000000000000000000000000005\r\nhello\r\n0\r\n\r\n", "5;a\r\nhello\r\n0\r\n\r\n", "5;a=b;c=\"d\"\r\nhello\r\n0;x\r\n\r\n"} {
		either(fmt.Sprintf("chunk extension %d", i), `POST /p "hello"`, "POST /p HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"+c)
	}
	either("a trailer that frames", `POST /p "hello"`, "POST /p HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nContent-Length: 100\r\nTransfer-Encoding: chunked\r\nHost: b.example\r\n\r\n")

	// Upgrades and tunnels that nobody takes.
	one("upgrade with a body", `POST /p "body"`, "POST /p HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\nContent-Length: 4\r\n\r\nbody"+smuggled)
	either("upgrade with bytes behind", `GET /p ""`, "GET /p HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n"+smuggled)
	one("h2c upgrade", `GET /p ""`, "GET /p HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"+smuggled)
	one("h2c upgrade with a body", `POST /p "body"`, "POST /p HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nContent-Length: 4\r\n\r\nbody"+smuggled)
	out = append(out, attempt{name: "CONNECT", sent: head("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443"), status: 0, silent: false})
	refuse("CONNECT with a path", head("CONNECT /p HTTP/1.1\r\nHost: a.example")...)
	refuse("CONNECT with a body", "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\nContent-Length: 4\r\n\r\nbody"+smuggled)
	out = append(out, attempt{name: "PRI", sent: []string{"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + smuggled}, silent: true})
	out = append(out, attempt{name: "PRI of HTTP/1.1", sent: head("PRI * HTTP/1.1\r\nHost: a.example"), silent: true})
	return out
}
