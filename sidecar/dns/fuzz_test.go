package dns

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"

	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// bare is a server without sockets.
func bare() *server {
	s := NewSet(Config{Rate: 1e18}, Deps{Rand: func() uint64 { return 1 }, Error: func(telemetry.Code) {}})
	f := filter()
	f.Domains = append(f.Domains, resource.DNSDomain{Name: "*.wild.mesh", Addrs: []netip.Addr{vip(9)}})
	srv := &server{set: s, log: s.Log, limiter: newLimiter(s.Rate)}
	srv.active.Store(&active{table: union([]*resource.DNSFilter{f})})
	return srv
}

func seeds() [][]byte {
	var out [][]byte
	for _, name := range []string{"web.mesh", "WEB", "nobody.mesh", "a.wild.mesh", "mesh", "example.com", ".", "1.0.0.240.in-addr.arpa"} {
		for _, qtype := range []uint16{mdns.TypeA, mdns.TypeAAAA, mdns.TypeANY, mdns.TypeSOA, mdns.TypePTR, mdns.TypeAXFR} {
			out = append(out, question(name, qtype), question(name, qtype, edns(1232, true)))
		}
	}
	out = append(out, nil, []byte{0}, make([]byte, 12), append(make([]byte, 12), 0xc0, 0x0c, 0, 1, 0, 1))
	return out
}

// FuzzQuery: whatever a client sends, nothing panics; an own answer can be read,
// is to that query, and is no longer than the client takes; and the mesh answers
// for no name that another reader of the message would not find in its table.
func FuzzQuery(f *testing.F) {
	for _, b := range seeds() {
		f.Add(b)
	}
	s := bare()
	f.Fuzz(func(t *testing.T, msg []byte) {
		q := &query{}
		before := bytes.Clone(msg)
		err := q.parse(msg)
		if err != nil && err != errRecords { //nolint:errorlint // parse wraps none
			return
		}
		out, ours := s.own(nil, q, s.active.Load(), err, netip.Addr{}, q.size, false)
		if !bytes.Equal(msg, before) {
			t.Fatalf("the query was changed: %x, %x", before, msg)
		}
		if !ours {
			return
		}
		m := new(mdns.Msg)
		if err := m.Unpack(out); err != nil {
			t.Fatalf("%x: the answer %x cannot be read: %v", msg, out, err)
		}
		if out[0] != msg[0] || out[1] != msg[1] || !m.Response || len(out) > q.size {
			t.Fatalf("%x: the answer %x", msg, out)
		}
		if len(m.Question) != 1 || !bytes.Equal(out[headerSize:q.end], msg[headerSize:q.end]) {
			t.Fatalf("%x: the question of %x is another", msg, out)
		}
		name := strings.ToLower(strings.TrimSuffix(m.Question[0].Name, "."))
		if string(q.text()) != name {
			t.Fatalf("%x: read as %q, by others as %q", msg, q.text(), name)
		}
		for _, r := range m.Answer {
			if mdns.CanonicalName(r.Header().Name) != mdns.CanonicalName(m.Question[0].Name) {
				t.Fatalf("%x: a record of another name: %v", msg, r)
			}
		}
	})
}

// FuzzAnswer: whatever a resolver sends, nothing panics, and what is taken for an
// answer has the query's id and question, as another reader of both sees them.
func FuzzAnswer(f *testing.F) {
	for _, b := range seeds() {
		r := bytes.Clone(b)
		if len(r) > 2 {
			r[2] |= 0x80
		}
		f.Add(b, r)
		f.Add(b, []byte{0x12, 0x34, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0})
	}
	f.Fuzz(func(t *testing.T, ask, reply []byte) {
		q := &query{}
		if err := q.parse(ask); err != nil && err != errRecords { //nolint:errorlint // parse wraps none
			return
		}
		if !answers(reply, q) {
			return
		}
		if reply[0] != ask[0] || reply[1] != ask[1] || reply[2]&0x80 == 0 {
			t.Fatalf("%x is taken for an answer to %x", reply, ask)
		}
		if q.count != 1 || reply[5] == 0 {
			return
		}
		name, next, err := mdns.UnpackDomainName(ask, headerSize)
		other, _, err2 := mdns.UnpackDomainName(reply, headerSize)
		if err != nil || err2 != nil { // such as a pointer to nowhere
			return
		}
		if mdns.CanonicalName(name) != mdns.CanonicalName(other) || !bytes.Equal(ask[next:q.end], reply[next:q.end]) {
			t.Fatalf("an answer about %q is taken for one about %q", other, name)
		}
	})
}
