package h1

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// What RFC 9110 and 9112 ask of a client: each row is a server's bytes, sent
// whole and byte by byte, and the end of its direction. A row with a failure
// wants that; one with broken wants it of the body.
var clientRows = []struct {
	section, name, method, text string
	status                      int
	body                        string
	reusable                    bool
	failure, broken             stream.FailureKind
}{
	{"2.3", "HTTP/1.1", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", true, 0, 0},
	{"2.3", "HTTP/1.0", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", false, 0, 0},
	{"2.3", "HTTP/2.0", "GET", "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", 0, "", false, stream.FailedProtocol, 0},
	{"2.3", "HTTP/1.2", "GET", "HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\nhi", 0, "", false, stream.FailedProtocol, 0},
	{"2.3", "HTTP/0.9", "GET", "hello", 0, "", false, stream.FailedProtocol, 0},
	{"2.2", "empty line before", "GET", "\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 0, "", false, stream.FailedProtocol, 0},
	{"2.2", "bare LF", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\n\r\nhi", 0, "", false, stream.FailedProtocol, 0},
	{"2.2", "bare CR", "GET", "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\nhi", 0, "", false, stream.FailedProtocol, 0},
	{"2.2", "NUL", "GET", "HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\nhi", 0, "", false, stream.FailedProtocol, 0},

	{"4", "empty reason", "GET", "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nhi", 200, "hi", true, 0, 0},
	{"4", "no space before an empty reason", "GET", "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", true, 0, 0},
	{"4", "obs-text in the reason", "GET", "HTTP/1.1 200 \xe9\tx y\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", true, 0, 0},
	{"4", "unknown status", "GET", "HTTP/1.1 799 X\r\nContent-Length: 2\r\n\r\nhi", 799, "hi", true, 0, 0},
	{"4", "two digits", "GET", "HTTP/1.1 20 OK\r\n\r\n", 0, "", false, stream.FailedProtocol, 0},
	{"4", "four digits", "GET", "HTTP/1.1 2000 OK\r\n\r\n", 0, "", false, stream.FailedProtocol, 0},
	{"4", "two spaces", "GET", "HTTP/1.1  200 OK\r\n\r\n", 0, "", false, stream.FailedProtocol, 0},
	{"4", "status of 0", "GET", "HTTP/1.1 000 OK\r\n\r\n", 0, "", false, stream.FailedProtocol, 0},

	{"5.1", "space before the colon", "GET", "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nhi", 0, "", false, stream.FailedProtocol, 0},
	{"5.2", "obs-fold", "GET", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\nhi", 0, "", false, stream.FailedProtocol, 0},
	{"5", "no name", "GET", "HTTP/1.1 200 OK\r\n: a\r\n\r\nhi", 0, "", false, stream.FailedProtocol, 0},
	{"5", "no colon", "GET", "HTTP/1.1 200 OK\r\nX\r\n\r\nhi", 0, "", false, stream.FailedProtocol, 0},

	{"6.1", "chunked", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1;x=y\r\ni\r\n0\r\nA: b\r\n\r\n", 200, "hi a=b", true, 0, 0},
	{"6.1", "chunked and length", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n", 0, "", false, stream.FailedProtocol, 0},
	{"6.1", "chunked in 1.0", "GET", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0, "", false, stream.FailedProtocol, 0},
	{"6.1", "chunked twice", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0, "", false, stream.FailedProtocol, 0},
	{"6.1", "another coding", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhi", 0, "", false, stream.FailedProtocol, 0},
	{"6.2", "two lengths", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi", 0, "", false, stream.FailedProtocol, 0},
	{"6.2", "list of lengths", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nhi", 0, "", false, stream.FailedProtocol, 0},
	{"6.2", "signed length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nhi", 0, "", false, stream.FailedProtocol, 0},
	{"6.2", "empty length", "GET", "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhi", 0, "", false, stream.FailedProtocol, 0},
	{"6.3", "HEAD", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", 200, "", true, 0, 0},
	{"6.3", "HEAD with a body", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, "", false, 0, 0},
	{"6.3", "204", "GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, "", true, 0, 0},
	{"6.3", "204 with chunks", "GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 204, "", false, 0, 0},
	{"6.3", "304 with a length", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n", 304, "", true, 0, 0},
	{"6.3", "to the end", "GET", "HTTP/1.1 200 OK\r\n\r\nhi", 200, "hi", false, 0, 0},
	{"6.3", "more than its length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "hi", false, 0, 0},
	{"8", "less than its length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi", 200, "hi", false, 0, stream.FailedReset},
	{"8", "no last chunk", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", 200, "hi", false, 0, stream.FailedReset},
	{"8", "half a head", "GET", "HTTP/1.1 200 OK\r\nContent-Le", 0, "", false, stream.FailedReset, 0},
	{"8", "nothing", "GET", "", 0, "", false, stream.FailedReset, 0},
	{"7.1", "bad chunk size", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n-1\r\n\r\n", 200, "hi", false, 0, stream.FailedProtocol},
	{"7.1", "bare LF in a chunk line", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\nhi\r\n0\r\n\r\n", 200, "", false, 0, stream.FailedProtocol},

	{"9.3", "close", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi", 200, "hi", false, 0, 0},
	{"9.3", "keep-alive in 1.0", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nhi", 200, "hi", true, 0, 0},
	{"9110 15.2", "informational", "GET", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 X\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", true, 0, 0},
	{"9110 15.2.2", "101 that nobody asked for", "GET", "HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nhi", 0, "", false, stream.FailedProtocol, 0},
}

func TestClientRows(t *testing.T) {
	for _, tt := range clientRows {
		for _, single := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s %s single=%v", tt.section, tt.name, single), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFar(t)
					sent := make(chan struct{})
					go func() {
						defer close(sent)
						_, _ = f.br.ReadString('\n') // the request has begun
						if !single {
							_, _ = io.WriteString(f.peer, tt.text)
						} else {
							for i := range len(tt.text) {
								_, _ = io.WriteString(f.peer, tt.text[i:i+1])
								synctest.Wait()
							}
						}
						_ = f.peer.CloseWrite()
					}()
					req := get("/")
					req.Head.Method = tt.method
					r, err := f.conn.Do(t.Context(), req)
					if tt.failure != 0 {
						<-sent
						failure(t, err, tt.failure, true)
						return
					}
					if err != nil || r.Head.Status != tt.status {
						t.Fatal(r, err)
					}
					<-sent
					b, err := io.ReadAll(r.Body)
					got := string(b)
					for _, tr := range r.Body.Trailers() {
						got += " " + strings.Clone(tr.Name) + "=" + strings.Clone(tr.Value)
					}
					if tt.broken != 0 {
						failure(t, err, tt.broken, true)
					} else if err != nil {
						t.Error(err)
					}
					r.End()
					if got != tt.body {
						t.Errorf("%q, want %q", got, tt.body)
					}
					// What comes behind a message shows at once only where it came with it.
					if reusable := f.ended[0]; reusable != tt.reusable && !(single && reusable) {
						t.Errorf("reusable %v", reusable)
					}
				})
			})
		}
	}
}

// FuzzServer: whatever a client sends, in whatever pieces, the handler sees the
// same requests, and nothing panics.
func FuzzServer(f *testing.F) {
	for _, r := range serverRows {
		f.Add([]byte(r.text), uint16(7))
	}
	f.Add([]byte(usualHead+"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"+smallHead), uint16(100))
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		serve := func(size int) *seen {
			h := &seen{}
			s := &Server{Handler: h}
			c := s.NewConn(t.Context(), &pieces{left: b, size: size}, nil)
			if c.Serve(netio.Pending{}) || c.in.b != nil {
				t.Fatal("it is not over, or holds a buffer")
			}
			return h
		}
		whole, cut := serve(1<<20), serve(int(size)+1)
		if fmt.Sprint(whole.requests, whole.heads) != fmt.Sprint(cut.requests, cut.heads) || len(whole.refusals) != len(cut.refusals) {
			t.Fatalf("whole: %q %+v\nin pieces of %d: %q %+v", whole.requests, whole.refusals, int(size)+1, cut.requests, cut.refusals)
		}
		for _, err := range whole.bodies {
			var fail *stream.Failure
			if !errors.As(err, &fail) {
				t.Fatalf("%#v", err)
			}
		}
	})
}
