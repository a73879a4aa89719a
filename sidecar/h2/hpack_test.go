package h2

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"
)

var wide = limits{size: 1 << 20, fields: 1 << 16}

func randomText(r *rand.Rand, n int) string {
	b := make([]byte, r.IntN(n+1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// What x/net's encoder writes, Huffman codes, table sizes and all, is read as
// what was written.
func TestDecodeAgainstXNet(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var buf bytes.Buffer
	enc := hpack.NewEncoder(&buf)
	var d decoder
	d.table.max = tableSize
	names := []string{":method", ":path", "x-a", "x-b", "content-type", "cookie", "accept-encoding"}
	for range 3000 {
		buf.Reset()
		if r.IntN(20) == 0 {
			enc.SetMaxDynamicTableSize(uint32(r.IntN(tableSize + 1)))
		}
		var want []hfield
		for range r.IntN(12) {
			f := hpack.HeaderField{Name: names[r.IntN(len(names))], Value: fmt.Sprint("v", r.IntN(40)), Sensitive: r.IntN(5) == 0}
			switch r.IntN(6) {
			case 0:
				f.Value = randomText(r, 200)
			case 1:
				f.Name = randomText(r, 30)
			case 2:
				f.Name, f.Value = ":method", "GET"
			}
			if err := enc.WriteField(f); err != nil {
				t.Fatal(err)
			}
			want = append(want, hfield{name: f.Name, value: f.Value})
		}
		got, _, over, err := d.decode(buf.Bytes(), nil, nil, wide)
		if err != nil || over || len(got) != len(want) {
			t.Fatal(err, over, len(got), len(want))
		}
		for i := range got {
			if got[i].name != want[i].name || got[i].value != want[i].value {
				t.Fatalf("%d: %q, want %q", i, got[i], want[i])
			}
			if got[i].kind != classify(want[i].name, want[i].value) {
				t.Fatalf("%q is of kind %d", got[i], got[i].kind)
			}
		}
	}
}

// What our encoder writes, x/net's decoder reads.
func TestEncodeAgainstXNet(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var e encoder
	e.init()
	var got []hpack.HeaderField
	dec := hpack.NewDecoder(tableSize, func(f hpack.HeaderField) { got = append(got, f) })
	names := []string{":method", ":path", ":status", "x-a", "x-b", "content-type", "cookie", "accept-encoding", "authorization"}
	for i := range 5000 {
		if r.IntN(50) == 0 {
			e.allow(uint32(r.IntN(tableSize * 2)))
		}
		b := e.begin(nil)
		var want []hfield
		for range r.IntN(12) {
			f := hfield{name: names[r.IntN(len(names))], value: fmt.Sprint("v", r.IntN(30))}
			switch r.IntN(8) {
			case 0:
				f.value = strings.Repeat("x", r.IntN(6000))
			case 1:
				f.name, f.value = "accept-encoding", "gzip, deflate"
			case 2:
				f.value = fmt.Sprint("some longer text that never repeats ", i)
			}
			want = append(want, f)
			n := []byte(f.name) // borrowed: unreadable after the call
			v := []byte(f.value)
			b = e.field(b, borrow(n), borrow(v))
			for i := range n {
				n[i] = 0xdb
			}
			for i := range v {
				v[i] = 0xdb
			}
		}
		got = nil
		if _, err := dec.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := dec.Close(); err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Fatalf("%d fields, want %d", len(got), len(want))
		}
		for i, f := range got {
			if f.Name != want[i].name || f.Value != want[i].value {
				t.Fatalf("%d: %q, want %q", i, f, want[i])
			}
			if secret(f.Name) != f.Sensitive {
				t.Errorf("%s: sensitive %v", f.Name, f.Sensitive)
			}
		}
	}
	if e.newest < 50 {
		t.Errorf("only %d fields entered the table", e.newest)
	}
}

// Secrets and what does not repeat stay out of the table; what repeats is one
// byte from the third time on.
func TestEncodeIndexes(t *testing.T) {
	var e encoder
	e.init()
	for i := range 3 {
		b := e.field(nil, "x-tenant", "blue")
		if want := []int{15, 15, 1}[i]; len(b) != want {
			t.Errorf("time %d: %d bytes, want %d", i+1, len(b), want)
		}
		if b := e.field(nil, "authorization", "Bearer abc"); b[0]&0xf0 != 0x10 {
			t.Errorf("authorization went out as %#x", b[0])
		}
		if b := e.field(nil, "x-request-id", fmt.Sprint("id-", i)); b[0] != 0 {
			t.Errorf("an id went out as %#x", b[0])
		}
	}
	if e.newest != 1 {
		t.Errorf("%d entries", e.newest)
	}
	if b := e.field(nil, "x-bad", "a\r\nb"); len(b) != 0 {
		t.Errorf("an injected line went out: %q", b)
	}
}

func TestHuffman(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 20000 {
		s := randomText(r, 40)
		got, ok := huffmanDecode(nil, hpack.AppendHuffmanString(nil, s))
		if !ok || string(got) != s {
			t.Fatalf("%q: %q %v", s, got, ok)
		}
	}
	for range 200000 { // any bytes: agree with x/net
		b := []byte(randomText(r, 6))
		want, err := hpack.HuffmanDecodeToString(b)
		got, ok := huffmanDecode(nil, b)
		if ok != (err == nil) || ok && string(got) != want {
			t.Fatalf("%x: %q %v, x/net %q %v", b, got, ok, want, err)
		}
	}
}

// Each of these ends the connection with COMPRESSION_ERROR.
func TestDecodeErrors(t *testing.T) {
	for _, tt := range []struct {
		name  string
		block string
	}{
		{"index 0", "\x80"},
		{"index beyond the table", "\xbe"},
		{"name index beyond the table", "\x7e\x01a"},
		{"integer without end", "\xff\xff\xff\xff\xff\xff\x01"},
		{"integer cut short", "\xff"},
		{"string cut short", "\x40\x05abc"},
		{"Huffman with the end of string", "\x00\x84\xff\xff\xff\xff\x01a"},
		{"Huffman with long padding", "\x00\x82\x1f\xff\x01a"},
		{"Huffman with padding of zeros", "\x00\x81\x18\x01a"},
		{"size update beyond the setting", "\x3f\xe2\x1f"},
		{"size update after a field", "\x82\x20"},
	} {
		var d decoder
		d.table.max = tableSize
		if _, _, _, err := d.decode([]byte(tt.block), nil, nil, wide); err == nil {
			t.Errorf("%s: no error", tt.name)
		}
	}
}

// A list over its limit is still read for the table's sake.
func TestDecodeOver(t *testing.T) {
	var buf bytes.Buffer
	enc := hpack.NewEncoder(&buf)
	for i := range 10 {
		_ = enc.WriteField(hpack.HeaderField{Name: "x-n", Value: fmt.Sprint(i)})
	}
	var d decoder
	d.table.max = tableSize
	for _, lim := range []limits{{size: 100, fields: 100}, {size: 1000, fields: 2}} {
		got, _, over, err := d.decode(buf.Bytes(), nil, nil, lim)
		if err != nil || !over || len(got) != 2 {
			t.Errorf("%v: %d fields, over %v, %v", lim, len(got), over, err)
		}
	}
	if d.table.n != 20 {
		t.Errorf("%d entries", d.table.n)
	}
}

func BenchmarkDecode(b *testing.B) {
	var buf bytes.Buffer
	enc := hpack.NewEncoder(&buf)
	var d decoder
	d.table.max = tableSize
	var fields []hfield
	var arena []byte
	for range 2 {
		buf.Reset()
		for _, f := range bench {
			_ = enc.WriteField(hpack.HeaderField{Name: f.name, Value: f.value})
		}
		fields, arena, _, _ = d.decode(buf.Bytes(), fields[:0], arena[:0], wide)
	}
	b.ReportAllocs()
	for b.Loop() {
		fields, arena, _, _ = d.decode(buf.Bytes(), fields[:0], arena[:0], wide)
	}
}

func BenchmarkEncode(b *testing.B) {
	var e encoder
	e.init()
	var out []byte
	b.ReportAllocs()
	for b.Loop() {
		out = out[:0]
		for _, f := range bench {
			out = e.field(out, f.name, f.value)
		}
	}
}

var bench = []hfield{
	{name: ":method", value: "GET"}, {name: ":scheme", value: "http"}, {name: ":authority", value: "127.0.0.1:8080"},
	{name: ":path", value: "/1k.txt"}, {name: "user-agent", value: "h2load nghttp2/1.52.0"}, {name: "x-forwarded-for", value: "10.0.0.1"},
	{name: "x-request-id", value: "0123456789abcdef0123456789abcdef"}, {name: "x-envoy-expected-rq-timeout-ms", value: "15000"},
}
