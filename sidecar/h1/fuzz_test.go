package h1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// stricter are the faults for which a request, or a chunked body, that net/http
// takes may be refused here, and why.
var stricter = map[*fault]string{
	faultBareLF:         "net/http takes LF for CRLF in heads (RFC 9112, section 2.2, allows it); others do not, and the two can be played against each other",
	faultBareCR:         "net/http keeps a CR inside a value",
	faultControl:        "net/http leaves control characters of a value to its server",
	faultFold:           "net/http joins folded lines (RFC 9112, section 5.2, allows to refuse them)",
	faultNameSpace:      "net/http keeps names with spaces as they are",
	faultName:           "net/http leaves names that are no tokens to its server",
	faultNoColon:        "a line that ends in a bare CR",
	faultTarget:         "net/http takes whatever stands between the first and the last space for the target",
	faultVersion:        "net/http trims the request line",
	faultUnknownVersion: "net/http leaves other versions to its server",
	faultPreface:        "net/http's server looks for it itself",
	faultHostMissing:    "net/http's server looks for it, not its parser",
	faultHostTwice:      "net/http's server looks for it, not its parser",
	faultHostDisagrees:  "net/http lets the target win (RFC 9112, section 3.2.2); who routes by Host does not",
	faultForm:           "net/http takes targets without an authority, or of a form that the method does not allow",
	faultUserInfo:       "net/http keeps user information",
	faultConnectBody:    "net/http reads a body after CONNECT",
	faultLength:         "net/http ignores an empty Content-Length by a switch, and trims",
	faultLengthTwice:    "net/http takes identical copies for one (RFC 9110, section 8.6, allows it)",
	faultBothLengths:    "net/http lets Transfer-Encoding win (RFC 9112, section 6.1, allows it)",
	faultCodingOld:      "net/http ignores Transfer-Encoding in HTTP/1.0",
	faultExpect:         "net/http's server looks at it, not its parser",
	faultFields:         "net/http has no limit of its own here",
	faultCodingTwice:    "an empty Transfer-Encoding in HTTP/1.0",
	faultCoding:         "Transfer-Encoding in HTTP/1.0, which net/http ignores",
	faultChunkSize:      "net/http trims white space behind a size",
	faultChunkLine:      "net/http does not look into extensions",
	faultNoName:         "net/http does not look at all names of a trailer section",
}

// scanned runs the scanner over b, whole or byte by byte.
func scanned(b []byte, single bool) (m *message, h stream.RequestHead, done bool, f *fault) {
	m = new(message)
	b = slices.Clone(b)
	m.begin(aRequest, DefaultMaxFields, nil)
	if single {
		for i := 1; i < len(b) && !done && f == nil; i++ {
			done, f = m.scan(b[:i:i])
		}
	}
	if !done && f == nil {
		done, f = m.scan(b)
	}
	if done && f == nil {
		f = m.request(&h)
	}
	return m, h, done, f
}

// looser says why a request may be taken that net/http refuses; "" where it may
// not.
func looser(m *message, h *stream.RequestHead, err error) string {
	target := m.target
	if h.Method == "CONNECT" {
		target = "http://" + target
	}
	if _, uerr := url.ParseRequestURI(target); uerr != nil {
		return "the target's characters and encodings are judged, with the path, by sidecar/l7"
	}
	switch {
	case m.blank:
		return "an empty line before the request (RFC 9112, section 2.2)"
	case strings.Contains(err.Error(), "trailer key"):
		return "Trailer is an announcement; what a trailer section may hold is decided where it is read"
	}
	return ""
}

func FuzzRequest(f *testing.F) {
	for _, r := range serverRows {
		f.Add([]byte(r.text))
	}
	f.Add([]byte(usualHead))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, h, done, fault := scanned(b, false)
		m1, h1, done1, fault1 := scanned(b, true)
		if done != done1 && fault == nil || fault != fault1 || done && fault == nil && (m.pos != m1.pos || h.Path != h1.Path || !slices.Equal(h.Header, h1.Header)) {
			t.Fatalf("whole: %v %v %+v; byte by byte: %v %v %+v", done, fault, h, done1, fault1, h1)
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		switch {
		case fault == nil && !done:
			if err == nil { // net/http's idea of the end of a head is another
				if !bytes.Contains(b, []byte("\n\n")) && !bytes.Contains(b, []byte("\n\r")) {
					t.Fatalf("not complete, but net/http takes it: %q", b)
				}
			}
			return
		case fault != nil && err != nil:
			return
		case fault != nil:
			if stricter[fault] == "" {
				t.Fatalf("refused (%v), but net/http takes it: %+v", fault, r)
			}
			return
		case err != nil:
			if looser(m, &h, err) == "" {
				t.Fatalf("taken: %+v, but net/http refuses it: %v", h, err)
			}
			return
		}
		same(t, m, &h, r)
	})
}

// same compares what both read.
func same(t *testing.T, m *message, h *stream.RequestHead, r *http.Request) {
	length := r.ContentLength
	if len(r.TransferEncoding) > 0 {
		length = -1
	}
	if h.Method != r.Method || m.target != r.RequestURI || h.ContentLength != length || m.coded != (length < 0) || int(m.minor) != r.ProtoMinor {
		t.Fatalf("%+v\n%+v", h, r)
	}
	if h.Method != "CONNECT" && h.Authority != r.Host && !strings.EqualFold(h.Authority, r.Host) {
		t.Fatalf("authority %q, net/http %q", h.Authority, r.Host)
	}
	theirs := map[string][]string{}
	for k, v := range r.Header {
		theirs[strings.ToLower(k)] = v
	}
	for _, f := range h.Header {
		v := theirs[f.Name]
		if f.Name == "te" || f.Name == "trailer" { // both have taken it apart
			continue
		}
		if len(v) == 0 || v[0] != f.Value {
			t.Fatalf("field %q: %q, net/http %q", f.Name, f.Value, v)
		}
		theirs[f.Name] = v[1:]
	}
	for k, v := range theirs {
		if len(v) > 0 && !stream.ConnectionSpecific(k) && k != "trailer" && k != "expect" && k != "content-length" && !slices.Contains(m.named, k) {
			t.Fatalf("net/http has a field that is missing: %q %q", k, v)
		}
	}
}

// pieces is a connection that gives its bytes in pieces.
type pieces struct {
	script
	left []byte
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.size)], p.left)
	p.left = p.left[n:]
	return n, nil
}

// owner is a body's side for tests.
type owner struct{ f *fault }

func (o *owner) awaited() error { return nil }
func (o *owner) wake()          {}
func (o *owner) woken() error   { return nil }
func (o *owner) broken(err error) error {
	errors.As(err, &o.f)
	return err
}

// readChunked reads a chunked body whose bytes come in pieces.
func readChunked(b []byte, size int) (got []byte, trailers stream.Header, left int, f *fault, err error) {
	o := &owner{}
	in := &input{c: &pieces{left: b, size: size}, wait: o}
	in.take(netio.Pending{Buf: netio.GetBuf()}) // as after a head
	x := &body{in: in, owner: o}
	x.start(chunked, 0, DefaultMaxFields)
	for {
		p, err := x.Next()
		got = append(got, p...)
		if err != nil {
			left = in.w - in.r + len(in.c.(*pieces).left)
			trailers = x.Trailers().Clone()
			in.release()
			if err == io.EOF {
				err = nil
			}
			return got, trailers, left, o.f, err
		}
	}
}

func FuzzChunked(f *testing.F) {
	for _, r := range serverRows {
		if _, b, ok := strings.Cut(r.text, "\r\n\r\n"); ok && strings.HasPrefix(r.section, "7.1") {
			f.Add([]byte(b))
		}
	}
	f.Add([]byte("5;a=b\r\nhello\r\n3\r\nabc\r\n0\r\nA: 1\r\nb:\t2 \r\n\r\nGET"))
	f.Fuzz(func(t *testing.T, b []byte) {
		body, trailers, left, fault, err := readChunked(b, 1<<20)
		body1, trailers1, left1, fault1, err1 := readChunked(b, 1)
		if !bytes.Equal(body, body1) || !slices.Equal(trailers, trailers1) || left != left1 && err == nil || fault != fault1 || (err == nil) != (err1 == nil) {
			t.Fatalf("whole: %q %q %d %v %v; byte by byte: %q %q %d %v %v", body, trailers, left, fault, err, body1, trailers1, left1, fault1, err1)
		}
		const head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
		src := bytes.NewReader(append([]byte(head), b...))
		br := bufio.NewReader(src)
		r, rerr := http.ReadRequest(br)
		if rerr != nil {
			t.Fatal(rerr)
		}
		theirs, rerr := io.ReadAll(r.Body)
		switch {
		case err != nil && rerr != nil:
		case err != nil && fault == nil:
			t.Fatalf("not complete (%v), but net/http takes it: %q", err, theirs)
		case err != nil:
			if stricter[fault] == "" {
				t.Fatalf("refused (%v), but net/http takes it: %q", fault, theirs)
			}
		case rerr != nil:
			// White space before an extension is legal (RFC 9112, section 7.1.1).
			if !bytes.Contains(b, []byte(" ;")) && !bytes.Contains(b, []byte("\t;")) {
				t.Fatalf("taken: %q, but net/http refuses it: %v", body, rerr)
			}
		case !bytes.Equal(body, theirs) || left != br.Buffered()+src.Len():
			t.Fatalf("%q and %d bytes left; net/http: %q and %d", body, left, theirs, br.Buffered()+src.Len())
		}
	})
}

// A response is read in one way only, wherever its bytes stop coming.
func FuzzResponse(f *testing.F) {
	f.Add([]byte(usualResponse))
	for _, s := range []string{"HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.0 200 \r\nConnection: keep-alive\r\n\r\n", "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var whole, single message
		whole.begin(aResponse, DefaultMaxFields, nil)
		single.begin(aResponse, DefaultMaxFields, nil)
		done, bad := whole.scan(slices.Clone(b))
		c := slices.Clone(b)
		var done1 bool
		var bad1 *fault
		for i := 1; i <= len(c) && !done1 && bad1 == nil; i++ {
			done1, bad1 = single.scan(c[:i:i])
		}
		if bad != bad1 || bad == nil && done != done1 || done && bad == nil && (whole.pos != single.pos || whole.status != single.status || !slices.Equal(whole.fields, single.fields)) {
			t.Fatalf("%v %v %+v\n%v %v %+v", done, bad, whole, done1, bad1, single)
		}
		if !done || bad != nil {
			return
		}
		r, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), nil)
		if err != nil {
			if !strings.Contains(err.Error(), "trailer key") {
				t.Fatalf("taken: %+v, but net/http refuses it: %v", whole, err)
			}
			return
		}
		if r.StatusCode != whole.status || !bodiless("GET", whole.status) && !whole.coded && r.ContentLength != whole.length {
			t.Fatalf("%+v\n%+v", whole, r)
		}
	})
}
