package h2

import (
	"context"
	"io"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2/hpack"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
)

const (
	sayNothing = "\x00\x00\x00\x04\x00\x00\x00\x00\x00" // SETTINGS
	sayGet     = "\x00\x00\x07\x01\x05\x00\x00\x00\x01\x82\x84\x86\x41\x01a\x82"
	sayPost    = "\x00\x00\x06\x01\x04\x00\x00\x00\x01\x83\x84\x86\x41\x01a"
	sayData    = "\x00\x00\x03\x00\x01\x00\x00\x00\x01abc"
	sayReset   = "\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x08"
	say200     = "\x00\x00\x01\x01\x04\x00\x00\x00\x01\x88"
)

var frameSeeds = []string{
	"", sayNothing, sayNothing + sayGet, sayNothing + sayPost + sayData, sayNothing + sayPost + sayReset,
	sayNothing + say200 + sayData, sayNothing + "\x00\x00\x00\x09\x04\x00\x00\x00\x01",
	sayNothing + "\x00\x00\x03\x01\x00\x00\x00\x00\x01\x82\x84\x86" + "\x00\x00\x03\x09\x04\x00\x00\x00\x01\x41\x01a",
	sayNothing + "\x00\x00\x08\x06\x00\x00\x00\x00\x00abcdefgh" + "\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x10\x00",
	sayNothing + sayPost + "\x00\x00\x05\x00\x09\x00\x00\x00\x01\x02ab\x00\x00",
	sayNothing + "\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
	"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00" + sayGet,
	sayNothing + "\x00\x00\x05\x02\x00\x00\x00\x00\x03\x00\x00\x00\x00\x10",
}

// FuzzServer: whatever a client says, in pieces of any size, the server neither
// panics nor stays, and gives up none of its bounds.
func FuzzServer(f *testing.F) {
	for _, s := range frameSeeds {
		f.Add([]byte(s), uint8(7))
	}
	f.Fuzz(func(t *testing.T, say []byte, piece uint8) {
		synctest.Test(t, func(t *testing.T) {
			c, sv := pair(t)
			over := make(chan struct{})
			go func() {
				defer close(over)
				h := &handlerFunc{exchange: echo, answer: true}
				(&Server{Handler: h}).Serve(context.Background(), sv, netio.Pending{}, nil)
			}()
			read := make(chan struct{})
			go func() {
				defer close(read)
				_, _ = io.Copy(io.Discard, struct{ io.Reader }{c})
			}()
			inPieces(c, append([]byte(Preface), say...), int(piece)+1)
			synctest.Wait()
			_ = c.CloseWrite()
			<-over
			_ = c.Close()
			<-read
		})
	})
}

// FuzzClient: the same of what a server says.
func FuzzClient(f *testing.F) {
	for _, s := range frameSeeds {
		f.Add([]byte(s), uint8(7))
	}
	f.Fuzz(func(t *testing.T, say []byte, piece uint8) {
		synctest.Test(t, func(t *testing.T) {
			c, sv := pair(t)
			cc := NewClientConn(c, ClientOptions{Wheel: wheel.New()})
			ran := make(chan struct{})
			go func() {
				defer close(ran)
				cc.Run(context.Background())
			}()
			asked := make(chan struct{})
			go func() {
				defer close(asked)
				req := get("/")
				req.Informational = func(*stream.ResponseHead) {}
				if resp, err := cc.Do(context.Background(), req); err == nil {
					_, _ = readAll(resp.Body)
					_ = resp.Body.Trailers()
					_ = resp.Body.Close()
				}
			}()
			read := make(chan struct{})
			go func() {
				defer close(read)
				_, _ = io.Copy(io.Discard, struct{ io.Reader }{sv})
			}()
			synctest.Wait()
			inPieces(sv, say, int(piece)+1)
			synctest.Wait()
			_ = sv.Close()
			<-ran
			<-asked
			<-read
		})
	})
}

func inPieces(w io.Writer, b []byte, n int) {
	for len(b) > 0 {
		n := min(n, len(b))
		if _, err := w.Write(b[:n]); err != nil {
			return
		}
		b = b[n:]
	}
}

// FuzzDecode reads blocks as x/net does: what both read says the same; what we
// read x/net reads; what only x/net reads has an integer longer than any can be.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{"\x82\x84\x86\x41\x01a", "\x40\x01a\x01b\xbe", "\x3f\xe1\x1f\x82", "\x00\x81\x1f\x01b", "\x10\x01a\x82\x1c\x64", "\x20\x3f\x00\x82"} {
		f.Add([]byte(s), []byte("\xbe\xbf"))
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var d decoder
		d.table.max = tableSize
		dec := hpack.NewDecoder(tableSize, nil)
		for _, block := range [][]byte{first, second} {
			var want []hpack.HeaderField
			dec.SetEmitFunc(func(f hpack.HeaderField) { want = append(want, f) })
			_, xerr := dec.Write(block)
			if xerr == nil {
				xerr = dec.Close()
			}
			got, _, _, err := d.decode(block, nil, nil, wide)
			if err != nil {
				if xerr == nil && !longInt(block) {
					t.Fatalf("%x: only x/net reads it: %q", block, want)
				}
				return
			}
			if xerr != nil {
				t.Fatalf("%x: x/net does not read it (%v), we do: %q", block, xerr, got)
			}
			if len(got) != len(want) {
				t.Fatalf("%x: %q, x/net %q", block, got, want)
			}
			for i := range got {
				if got[i].name != want[i].Name || got[i].value != want[i].Value || got[i].kind != classify(want[i].Name, want[i].Value) {
					t.Fatalf("%x: %q, x/net %q", block, got, want)
				}
			}
			if d.table.size > d.table.max || d.table.n > len(d.table.fields) {
				t.Fatalf("%x: a table of %d bytes and %d entries", block, d.table.size, d.table.n)
			}
		}
	})
}

// longInt says whether a block may hold an integer with more than four
// continuation bytes, or one of a size update that is no block's first.
func longInt(b []byte) bool {
	run := 0
	for i, c := range b {
		if run++; c&0x80 == 0 {
			run = 0
		}
		if run >= 4 || i > 0 && c&0xe0 == 0x20 {
			return true
		}
	}
	return false
}

// FuzzEncode: x/net reads what we wrote.
func FuzzEncode(f *testing.F) {
	f.Add("x-a", "b", "x-b", "c", uint16(4096))
	f.Add("cookie", "a=b", ":status", "418", uint16(0))
	f.Fuzz(func(t *testing.T, n1, v1, n2, v2 string, size uint16) {
		var e encoder
		e.init()
		var got []hpack.HeaderField
		dec := hpack.NewDecoder(tableSize, func(f hpack.HeaderField) { got = append(got, f) })
		for round := range 4 {
			if round == 2 {
				e.allow(uint32(size))
			}
			var want []string
			b := e.begin(nil)
			for _, f := range [][2]string{{n1, v1}, {n2, v2}, {n1, v2}, {n1, v1}} {
				before := len(b)
				if b = e.field(b, f[0], f[1]); len(b) > before {
					want = append(want, f[0], f[1])
				} else if classify(f[0], f[1]) != kindBad {
					t.Fatalf("%q was left out", f)
				}
			}
			got = nil
			if _, err := dec.Write(b); err != nil {
				t.Fatal(err)
			}
			if err := dec.Close(); err != nil {
				t.Fatal(err)
			}
			if 2*len(got) != len(want) {
				t.Fatalf("%q, want %q", got, want)
			}
			for i, f := range got {
				if f.Name != want[2*i] || f.Value != want[2*i+1] {
					t.Fatalf("%q, want %q", got, want)
				}
			}
		}
	})
}
