package h2

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// The table finds what is in it, and nothing else, whatever order ids come and go
// in; neighbours that stand behind each other are counted.
func TestTable(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, spread := range []uint32{1, 7, 64} {
		var tab table
		in := map[uint32]*strm{}
		for range 20000 {
			id := 2*(r.Uint32N(200)*spread) + 1
			if _, there := in[id]; there && r.IntN(3) > 0 {
				tab.del(id)
				delete(in, id)
			} else if !there && len(in) < 90 {
				in[id] = &strm{id: id}
				tab.put(in[id])
			}
			tab.del(id + 2*200*spread) // never there
			if tab.get(id) != in[id] {
				t.Fatalf("%d: %v, want %v", id, tab.get(id), in[id])
			}
			away := 0
			for i, s := range tab.slots {
				if s != nil && tab.home(s.id) != i {
					away++
				}
			}
			if tab.n != len(in) || tab.away != away {
				t.Fatalf("n %d of %d, away %d of %d", tab.n, len(in), tab.away, away)
			}
		}
		for id, s := range in {
			if tab.get(id) != s {
				t.Fatalf("%d is lost", id)
			}
		}
		tab.clear()
		if tab.n != 0 || tab.away != 0 || tab.get(1) != nil {
			t.Fatal("not empty")
		}
	}
}

func TestStaticName(t *testing.T) {
	first := map[string]uint64{"": 0, "x-request-id": 0, "x": 0, "datf": 0}
	for i := staticLen; i > 0; i-- {
		first[staticTable[i].name] = uint64(i)
	}
	for name, want := range first {
		if got := staticName(name); got != want {
			t.Errorf("%q: %d, want %d", name, got, want)
		}
	}
}

// Every byte at every place, alone among others, is judged by its class.
func TestValidValue(t *testing.T) {
	for n := 1; n <= 25; n++ {
		for at := range n {
			for b := range 256 {
				v := []byte(strings.Repeat("a", n))
				v[at] = byte(b)
				want := chars[b]&charValue != 0
				if (at == 0 || at == n-1) && (b == ' ' || b == '\t') {
					want = false
				}
				if got := validValue(string(v)); got != want {
					t.Fatalf("%q: %v", v, got)
				}
			}
		}
	}
}
