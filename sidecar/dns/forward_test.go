package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// TestForwardsUntouched: what is not the mesh's goes to the resolver byte for
// byte, from another port each time, and its answer comes back byte for byte,
// whatever is in either.
func TestForwardsUntouched(t *testing.T) {
	inWorld(t, "", Config{}, filter(), func(t *testing.T, w *world) {
		r := rand.New(rand.NewPCG(1, 2))
		var mu sync.Mutex
		heard, sent, ports := map[string]bool{}, map[string][]byte{}, map[string]int{}
		w.resolver("resolver", resolver, func(a *asked) {
			mu.Lock()
			defer mu.Unlock()
			heard[string(a.msg)] = true
			ports[a.from.String()]++
			// An answer with everything but the question made up.
			m := slices.Clone(a.msg)
			m[2] |= 0x80
			m[3] = byte(r.Uint32()) &^ 15
			tail := make([]byte, r.IntN(1500))
			for i := range tail {
				tail[i] = byte(r.Uint32())
			}
			m = append(m, tail...)
			binary.BigEndian.PutUint16(m[6:], uint16(r.Uint32()))
			sent[string(a.msg)] = m
			a.reply(m)
		})
		var queries [][]byte
		add := func(name string, qtype uint16, change ...func(*mdns.Msg)) {
			queries = append(queries, question(name, qtype, append(change, func(m *mdns.Msg) { m.Id = uint16(r.Uint32()) })...))
		}
		for _, name := range []string{"example.com", "ExAmPlE.CoM", "nobody.service.consul", "nobody", "a.web", "web.mesh.example", `we\.b.mesh`, `\000.mesh`, `\200web`, ".", "www.web.service.consul"} {
			for _, qtype := range []uint16{mdns.TypeA, mdns.TypeAAAA, mdns.TypeANY, mdns.TypeTXT, 4711} {
				add(name, qtype)
				add(name, qtype, edns(1232, true), func(m *mdns.Msg) { m.AuthenticatedData, m.CheckingDisabled = true, true })
				add(name, qtype, edns(9000, false), func(m *mdns.Msg) { m.RecursionDesired = false })
			}
		}
		add("web.mesh", mdns.TypeA, func(m *mdns.Msg) { m.Opcode = mdns.OpcodeNotify })
		add("web.mesh", mdns.TypeSOA, func(m *mdns.Msg) { m.Opcode = mdns.OpcodeUpdate })
		add("web.mesh", mdns.TypeTXT, func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassCHAOS })
		add("web.mesh", mdns.TypeA, func(m *mdns.Msg) { m.Question = append(m.Question, m.Question[0]) })
		add("example.com", mdns.TypeA, func(m *mdns.Msg) { m.Question = nil })
		queries = append(queries, append(question("trailing.example", mdns.TypeA), "rubbish"...))
		broken := question("broken.example", mdns.TypeA)
		binary.BigEndian.PutUint16(broken[10:], 3) // records that are not there
		queries = append(queries, broken)

		for _, ask := range []func([]byte) []byte{w.ask, w.askTCP} {
			for _, q := range queries {
				got := ask(q)
				mu.Lock()
				if !heard[string(q)] {
					t.Errorf("the resolver did not get %x", q)
				}
				if want := sent[string(q)]; !bytes.Equal(got, want) {
					t.Errorf("%x\nwas answered %x\nand came back %x", q, want, got)
				}
				mu.Unlock()
			}
		}
		for from, n := range ports {
			if n > 1 {
				t.Errorf("%d queries came from %s", n, from)
			}
		}
	})
}

// TestForgedAnswersAreDropped: only the resolver's own answer from its own
// address, to the query's socket, with its id and its question, comes back.
func TestForgedAnswersAreDropped(t *testing.T) {
	inWorld(t, "", Config{}, filter(), func(t *testing.T, w *world) {
		evil := w.net.Host("evil", "10.6.6.6")
		forged := func(a *asked, change func(*mdns.Msg)) []byte {
			m := new(mdns.Msg)
			m.SetReply(a.parsed())
			m.Answer = []mdns.RR{rr("bank.example. 60 IN A 6.6.6.6")}
			change(m)
			b, err := m.Pack()
			if err != nil {
				t.Error(err)
			}
			return b
		}
		w.resolver("resolver", resolver, func(a *asked) {
			if a.tcp {
				return
			}
			var more []net.PacketConn
			for _, h := range []struct {
				n       net.PacketConn
				address string
			}{{nil, "10.6.6.6:53"}, {nil, "10.6.6.6:0"}} {
				pc, err := evil.ListenPacket(t.Context(), "udp", h.address)
				if err != nil {
					t.Error(err)
					return
				}
				more = append(more, pc)
				_, _ = pc.WriteTo(forged(a, func(*mdns.Msg) {}), a.from)
			}
			other, err := w.net.Host("neighbour of "+a.from.String(), "10.0.0.54").ListenPacket(t.Context(), "udp", "10.0.0.54:53")
			if err != nil {
				t.Error(err)
				return
			}
			for _, pc := range append(more, other) {
				_, _ = pc.WriteTo(forged(a, func(*mdns.Msg) {}), a.from)
				pc.Close()
			}
			for _, change := range []func(*mdns.Msg){
				func(m *mdns.Msg) { m.Id++ },
				func(m *mdns.Msg) { m.Response = false },
				func(m *mdns.Msg) { m.Opcode = mdns.OpcodeNotify },
				func(m *mdns.Msg) { m.Question[0].Name = "bank.exampld." },
				func(m *mdns.Msg) { m.Question[0].Qtype = mdns.TypeAAAA },
				func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassCHAOS },
				func(m *mdns.Msg) { m.Question = nil },
				func(m *mdns.Msg) { m.Question = append(m.Question, m.Question[0]) },
				func(m *mdns.Msg) { m.Question, m.Answer, m.Rcode = nil, nil, mdns.RcodeNameError },
			} {
				a.reply(forged(a, change))
			}
			a.reply([]byte("short"))
			a.reply(nil)
			a.say(mdns.RcodeSuccess, rr("bank.example. 60 IN A 192.0.2.1"))
		})
		m := w.lookup("bank.example", mdns.TypeA)
		if got := addrs(m); !slices.Equal(got, []string{"192.0.2.1"}) {
			t.Errorf("the answer is %v", m)
		}
		if a, b := w.count(dropSource), w.count(dropMismatch); a != 5 || b != 11 {
			t.Errorf("%d from elsewhere and %d that do not match were counted", a, b)
		}
	})
}

// TestBareErrors: a resolver that cannot read a query, or does not know its kind,
// may say so without the question.
func TestBareErrors(t *testing.T) {
	inWorld(t, "", Config{}, filter(), func(t *testing.T, w *world) {
		w.resolver("resolver", resolver, func(a *asked) {
			a.reply([]byte{a.msg[0], a.msg[1], 0x80, mdns.RcodeFormatError, 0, 0, 0, 0, 0, 0, 0, 0})
		})
		if b := w.ask(question("example.com", mdns.TypeA, edns(1232, false))); len(b) != headerSize || codeOf(b) != formatError {
			t.Errorf("%x", b)
		}
	})
}

// TestCNAMEChains: a chain of aliases comes back as the resolver sent it, and a
// name of the mesh at its end stays what the resolver says.
func TestCNAMEChains(t *testing.T) {
	inWorld(t, "", Config{}, filter(), func(t *testing.T, w *world) {
		w.resolver("resolver", resolver, func(a *asked) {
			a.say(mdns.RcodeSuccess, rr("www.example. 60 IN CNAME a.example."), rr("a.example. 60 IN CNAME b.example."),
				rr("b.example. 60 IN CNAME web.mesh."), rr("web.mesh. 60 IN A 192.0.2.9"))
		})
		m := w.lookup("www.example", mdns.TypeA)
		if len(m.Answer) != 4 || m.Answer[2].(*mdns.CNAME).Target != "web.mesh." || m.Answer[3].(*mdns.A).A.String() != "192.0.2.9" {
			t.Errorf("%v", m)
		}
	})
}

// TestLargeAnswers: an answer is as large as the resolver makes it: what it cuts
// stays cut, and 10 kB come whole by TCP, and by UDP where the client takes them.
func TestLargeAnswers(t *testing.T) {
	inWorld(t, "", Config{}, filter(), func(t *testing.T, w *world) {
		whole := new(mdns.Msg)
		for i := range 40 {
			whole.Answer = append(whole.Answer, rr(fmt.Sprintf("big.example. 60 IN TXT %q", strings.Repeat(string(rune('a'+i%26)), 250))))
		}
		w.resolver("resolver", resolver, func(a *asked) {
			q := a.parsed()
			m := whole.Copy()
			m.SetReply(q)
			if o := q.IsEdns0(); !a.tcp && (o == nil || o.UDPSize() < 20_000) {
				m.Answer, m.Truncated = m.Answer[:1], true
			}
			b, err := m.Pack()
			if err != nil {
				t.Error(err)
			}
			a.reply(b)
		})
		if m := w.lookup("big.example", mdns.TypeTXT); !m.Truncated || len(m.Answer) != 1 {
			t.Errorf("by UDP: TC %t, %d records", m.Truncated, len(m.Answer))
		}
		b := w.askTCP(question("big.example", mdns.TypeTXT))
		if m := answer(t, b); m.Truncated || len(m.Answer) != 40 || len(b) < 10_000 {
			t.Errorf("by TCP: %d bytes, TC %t, %d records", len(b), m.Truncated, len(m.Answer))
		}
		b = w.ask(question("big.example", mdns.TypeTXT, edns(30_000, false)))
		if m := answer(t, b); m.Truncated || len(m.Answer) != 40 || len(b) < 10_000 {
			t.Errorf("by UDP with EDNS: %d bytes, TC %t, %d records", len(b), m.Truncated, len(m.Answer))
		}
	})
}

// TestSearchDomains: a name of the mesh with one of the host's search domains
// behind it is the resolver's, unless that says that it does not exist.
func TestSearchDomains(t *testing.T) {
	conf := "nameserver " + resolver + "\nsearch old.example\nsearch default.svc.local Corp.Example. \n"
	inWorld(t, conf, Config{}, filter(), func(t *testing.T, w *world) {
		var n atomic.Int64
		w.resolver("resolver", resolver, func(a *asked) {
			n.Add(1)
			switch a.parsed().Question[0].Name {
			case "api.corp.example.":
				a.say(mdns.RcodeSuccess, rr("api.corp.example. 60 IN A 192.0.2.8"))
			case "web.corp.example.":
				a.say(mdns.RcodeSuccess) // it exists
			default:
				a.say(mdns.RcodeNameError)
			}
		})
		for _, c := range []struct {
			name  string
			qtype uint16
			want  string // "": what the resolver says
		}{
			{"api.default.svc.local", mdns.TypeA, "240.0.0.2"},
			{"API.Default.svc.local", mdns.TypeAAAA, "fd70:6172:7265:6c::f000:2"},
			{"web.mesh.default.svc.local", mdns.TypeA, "240.0.0.1"},
			{"web.virtual.consul.corp.example", mdns.TypeA, "240.0.0.1"},
			{"api.corp.example", mdns.TypeA, "192.0.2.8"},
			{"web.corp.example", mdns.TypeA, ""},
			{"api.old.example", mdns.TypeA, ""},
			{"nobody.default.svc.local", mdns.TypeA, ""},
			{"nobody.mesh.default.svc.local", mdns.TypeA, ""},
			{"xapi.default.svc.local", mdns.TypeA, ""},
			{"default.svc.local", mdns.TypeA, ""},
		} {
			before := n.Load()
			b := w.ask(question(c.name, c.qtype))
			m := answer(t, b)
			if got := strings.Join(addrs(m), " "); got != c.want {
				t.Errorf("%s: %q, want %q", c.name, got, c.want)
			}
			if n.Load() != before+1 {
				t.Errorf("%s: the resolver was asked %d times", c.name, n.Load()-before)
			}
			if c.want != "" && len(m.Answer) > 0 && m.Answer[0].Header().Name != mdns.Fqdn(c.name) {
				t.Errorf("%s is %s in the answer", c.name, m.Answer[0].Header().Name)
			}
		}
		// The type that a name does not have is NODATA, so that the client does not go on searching.
		if m := w.lookup("api.default.svc.local", mdns.TypeMX); m.Rcode != mdns.RcodeSuccess || len(m.Ns) != 1 || m.Ns[0].Header().Name != "api.default.svc.local." {
			t.Errorf("MX: %v", m)
		}
		// Who asks for DNSSEC gets the signed denial, and goes on to the name itself.
		if m := w.lookup("api.default.svc.local", mdns.TypeA, edns(1232, true)); m.Rcode != mdns.RcodeNameError {
			t.Errorf("with DO: %v", m)
		}
		if m := answer(t, w.askTCP(question("api.default.svc.local", mdns.TypeA))); strings.Join(addrs(m), "") != "240.0.0.2" {
			t.Errorf("by TCP: %v", m)
		}
	})
}

// TestUpstreamFailure: a resolver that is dead, or silent, or the mesh's own
// address, ends in SERVFAIL within the time that clients wait, with a reason.
func TestUpstreamFailure(t *testing.T) {
	for _, c := range []struct {
		name, conf string
		resolver   bool
		atMost     time.Duration
		code       telemetry.Code
		by         func(*world, []byte) []byte
	}{
		{"silent", "", true, 4 * time.Second, telemetry.DNSTimeout, (*world).ask},
		{"not there", "", false, 4 * time.Second, telemetry.DNSTimeout, (*world).ask},
		{"three not there", "nameserver 10.0.9.1\nnameserver 10.0.9.2\nnameserver 10.0.9.3\n", false, 4 * time.Second, telemetry.DNSTimeout, (*world).ask},
		{"silent by TCP", "", true, 4 * time.Second, telemetry.DNSTimeout, (*world).askTCP},
		{"not there by TCP", "", false, 4 * time.Second, telemetry.DNSTimeout, (*world).askTCP},
		{"closed by TCP", "nameserver 127.0.0.2\n", false, 0, telemetry.DNSError, (*world).askTCP},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, c.conf, Config{}, filter(), func(t *testing.T, w *world) {
				if c.resolver {
					w.resolver("resolver", resolver, func(*asked) {})
				}
				start := time.Now()
				b := c.by(w, question("example.com", mdns.TypeA, edns(1232, false)))
				took := time.Since(start)
				m := answer(t, b)
				if m.Rcode != mdns.RcodeServerFailure || m.Authoritative || len(m.Answer) > 0 {
					t.Errorf("%v", m)
				}
				if took > c.atMost {
					t.Errorf("it took %s", took)
				}
				if !w.code(c.code) {
					t.Errorf("codes %v", w.codes)
				}
				if o := m.IsEdns0(); o == nil || len(o.Option) != 1 || !strings.Contains(o.Option[0].String(), c.code.String()) {
					t.Errorf("the client is not told why: %v", m)
				}
				if !strings.Contains(w.log.String(), c.code.String()) {
					t.Errorf("the log says %s", w.log)
				}
				if m := w.lookup("web.mesh", mdns.TypeA); len(m.Answer) != 1 {
					t.Errorf("own names: %v", m)
				}
			})
		})
	}
}

// TestNextResolver: a resolver that cannot answer has the next one asked, at once
// where it says so, beside it where it is silent; a late answer is an answer.
func TestNextResolver(t *testing.T) {
	say := func(s string) func(*asked) {
		return func(a *asked) { a.say(mdns.RcodeSuccess, rr("x. 60 IN A "+s)) }
	}
	after := func(d time.Duration, f func(*asked)) func(*asked) {
		return func(a *asked) { time.Sleep(d); f(a) }
	}
	code := func(c int) func(*asked) { return func(a *asked) { a.say(c) } }
	silent := func(*asked) {}
	for _, c := range []struct {
		name   string
		first  func(*asked)
		second func(*asked)
		want   string
		code   int
		took   time.Duration
	}{
		{"the first answers", say("192.0.2.1"), say("192.0.2.2"), "192.0.2.1", 0, 0},
		{"the first says SERVFAIL", code(mdns.RcodeServerFailure), say("192.0.2.2"), "192.0.2.2", 0, 0},
		{"the first says REFUSED", code(mdns.RcodeRefused), say("192.0.2.2"), "192.0.2.2", 0, 0},
		{"the first says NOTIMP", code(mdns.RcodeNotImplemented), say("192.0.2.2"), "192.0.2.2", 0, 0},
		{"the first says NXDOMAIN", code(mdns.RcodeNameError), say("192.0.2.2"), "", mdns.RcodeNameError, 0},
		{"the first is silent", silent, say("192.0.2.2"), "192.0.2.2", 0, 2 * time.Second},
		{"the first is late", after(2500*time.Millisecond, say("192.0.2.1")), silent, "192.0.2.1", 0, 2500 * time.Millisecond},
		{"both are late", after(3500*time.Millisecond, say("192.0.2.1")), after(time.Second, say("192.0.2.2")), "192.0.2.2", 0, 3 * time.Second},
		{"both say no", code(mdns.RcodeRefused), code(mdns.RcodeServerFailure), "", mdns.RcodeRefused, 0},
		{"one says no, the other nothing", code(mdns.RcodeRefused), silent, "", mdns.RcodeRefused, 4 * time.Second},
		{"one says nothing, the other no", silent, code(mdns.RcodeServerFailure), "", mdns.RcodeServerFailure, 4 * time.Second},
	} {
		for by, ask := range map[string]func(*world, []byte) []byte{"UDP": (*world).ask, "TCP": (*world).askTCP} {
			t.Run(c.name+" by "+by, func(t *testing.T) {
				inWorld(t, "nameserver 10.0.0.53\nnameserver 10.0.0.54\n", Config{}, filter(), func(t *testing.T, w *world) {
					w.resolver("first", "10.0.0.53", c.first)
					w.resolver("second", "10.0.0.54", c.second)
					start := time.Now()
					m := answer(t, ask(w, question("example.com", mdns.TypeA)))
					if got := strings.Join(addrs(m), " "); got != c.want || m.Rcode != c.code || time.Since(start) != c.took {
						t.Errorf("%q, %s, after %s", got, mdns.RcodeToString[m.Rcode], time.Since(start))
					}
				})
			})
		}
	}
}

// TestOneResolverIsAskedAgain: a datagram may be lost.
func TestOneResolverIsAskedAgain(t *testing.T) {
	inWorld(t, "", Config{}, filter(), func(t *testing.T, w *world) {
		var n atomic.Int64
		w.resolver("resolver", resolver, func(a *asked) {
			if n.Add(1) == 2 {
				a.say(mdns.RcodeSuccess, rr("x. 60 IN A 192.0.2.1"))
			}
		})
		start := time.Now()
		if m := w.lookup("example.com", mdns.TypeA); len(m.Answer) != 1 || time.Since(start) != 2*time.Second {
			t.Errorf("after %s: %v", time.Since(start), m)
		}
	})
}

// TestConfiguredResolvers: a filter's own resolvers and time-out go before the
// host's.
func TestConfiguredResolvers(t *testing.T) {
	f := filter()
	f.Resolvers, f.Timeout = []resource.Address{{Host: "10.0.0.99", Port: 5353}, {Host: "10.0.0.98", Port: 5353}}, time.Second
	inWorld(t, "", Config{}, f, func(t *testing.T, w *world) {
		w.resolver("resolver", resolver, func(*asked) { t.Error("the host's resolver was asked") })
		w.serve(w.net.Host("b", "10.0.0.98"), "10.0.0.98:5353", func(a *asked) { a.say(mdns.RcodeSuccess, rr("x. 60 IN A 192.0.2.1")) })
		start := time.Now()
		if m := w.lookup("example.com", mdns.TypeA); len(m.Answer) != 1 || time.Since(start) != time.Second {
			t.Errorf("after %s: %v", time.Since(start), m)
		}
	})
}

// TestDockerResolver: Docker's embedded DNS, 127.0.0.11 in a container's own
// network, is a resolver like any other.
func TestDockerResolver(t *testing.T) {
	inWorld(t, "nameserver 127.0.0.11\noptions edns0 trust-ad ndots:0\n", Config{}, filter(), func(t *testing.T, w *world) {
		w.resolver("docker", "127.0.0.11", func(a *asked) {
			if name := a.parsed().Question[0].Name; name == "db." {
				a.say(mdns.RcodeSuccess, rr("db. 600 IN A 172.18.0.5"))
			} else {
				a.say(mdns.RcodeNameError)
			}
		})
		if got := addrs(w.lookup("db", mdns.TypeA)); !slices.Equal(got, []string{"172.18.0.5"}) {
			t.Errorf("a container's name: %v", got)
		}
		if got := addrs(w.lookup("api", mdns.TypeA)); !slices.Equal(got, []string{"240.0.0.2"}) {
			t.Errorf("a service of the mesh: %v", got)
		}
		if m := w.lookup("nobody", mdns.TypeA); m.Rcode != mdns.RcodeNameError {
			t.Errorf("nobody's name: %v", m)
		}
	})
}

// TestResolvConfChanges: a changed file is followed within 5 s, and one that is
// gone leaves what it said.
func TestResolvConfChanges(t *testing.T) {
	inWorld(t, "", Config{}, filter(), func(t *testing.T, w *world) {
		w.resolver("one", resolver, func(a *asked) { a.say(mdns.RcodeSuccess, rr("x. 60 IN A 192.0.2.1")) })
		w.resolver("two", "10.0.0.77", func(a *asked) { a.say(mdns.RcodeSuccess, rr("x. 60 IN A 192.0.2.2")) })
		got := func() string { return strings.Join(addrs(w.lookup("example.com", mdns.TypeA)), "") }
		if got() != "192.0.2.1" {
			t.Fatal(got())
		}
		if err := os.WriteFile(w.conf, []byte("nameserver 10.0.0.77\nnameserver bogus\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(rereadAfter)
		if got() != "192.0.2.2" {
			t.Error("the new resolver is not asked")
		}
		if !strings.Contains(w.log.String(), "bogus is no IP address") {
			t.Errorf("the log says %s", w.log)
		}
		if err := os.Remove(w.conf); err != nil {
			t.Fatal(err)
		}
		time.Sleep(rereadAfter)
		if got() != "192.0.2.2" || !strings.Contains(w.log.String(), "cannot be read") {
			t.Errorf("without the file: %s; the log says %s", got(), w.log)
		}
	})
}

func TestParseResolvConf(t *testing.T) {
	for _, c := range []struct {
		text    string
		servers string
		search  string
		rotate  bool
		notes   int
	}{
		{"", "127.0.0.1:53", "", false, 0},
		{"# nameserver 1.1.1.1\n; x\nnameserver 8.8.8.8 # google\nnameserver ::1\n", "8.8.8.8:53 [::1]:53", "", false, 0},
		{"nameserver fe80::1%eth0\n", "[fe80::1%eth0]:53", "", false, 0},
		{"nameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\nnameserver 4.4.4.4\n", "1.1.1.1:53 2.2.2.2:53 3.3.3.3:53", "", false, 1},
		{"domain Example.COM\noptions ndots:2 rotate\n", "127.0.0.1:53", "example.com", true, 0},
		{"search a.example .\nsearch\n", "127.0.0.1:53", "a.example", false, 0},
		{"nameserver dns.example\n", "127.0.0.1:53", "", false, 1},
	} {
		got, notes := parseResolvConf(c.text)
		var servers []string
		for _, s := range got.servers {
			servers = append(servers, s.String())
		}
		if strings.Join(servers, " ") != c.servers || strings.Join(got.search, " ") != c.search || got.rotate != c.rotate || len(notes) != c.notes {
			t.Errorf("%q: %+v, %v", c.text, got, notes)
		}
	}
}

// TestRotate: "options rotate" asks the resolvers in turn.
func TestRotate(t *testing.T) {
	inWorld(t, "nameserver 10.0.0.53\nnameserver 10.0.0.54\noptions rotate\n", Config{}, filter(), func(t *testing.T, w *world) {
		var a, b atomic.Int64
		w.resolver("a", "10.0.0.53", func(x *asked) { a.Add(1); x.say(mdns.RcodeNameError) })
		w.resolver("b", "10.0.0.54", func(x *asked) { b.Add(1); x.say(mdns.RcodeNameError) })
		for range 10 {
			w.lookup("example.com", mdns.TypeA)
		}
		if a.Load() != 5 || b.Load() != 5 {
			t.Errorf("%d and %d", a.Load(), b.Load())
		}
	})
}

// TestOwnAddressIsNoResolver: a resolver that is the server itself is not asked,
// and a query of its own that comes back to it is dropped.
func TestOwnAddressIsNoResolver(t *testing.T) {
	f := filter()
	l := listenerOf(f)
	l.Address.Port, l.Additional = 53, nil
	inWorld(t, "nameserver 127.0.0.1\n", Config{}, f, func(t *testing.T, w *world) {
		if errs := w.set.Update("web", []*resource.Listener{listenerOf(f), l}); len(errs) > 0 {
			t.Fatal(errs)
		}
		start := time.Now()
		m := w.lookup("example.com", mdns.TypeA)
		if m.Rcode != mdns.RcodeServerFailure || time.Since(start) != 0 || !w.code(telemetry.DNSError) {
			t.Errorf("after %s: %v", time.Since(start), m)
		}
		if !strings.Contains(w.log.String(), "name others in") {
			t.Errorf("the log says %s", w.log)
		}
	})
	inWorld(t, "", Config{}, f, func(t *testing.T, w *world) {
		// A redirection that captures the sidecar's own queries.
		r := w.net.Host("resolver", resolver)
		pc, err := r.ListenPacket(t.Context(), "udp", resolver+":53")
		if err != nil {
			t.Fatal(err)
		}
		w.end = append(w.end, func() { pc.Close() })
		var s *server
		<-w.set.turn
		s = w.set.servers[netip.MustParseAddrPort(at)]
		w.set.turn <- struct{}{}
		w.wg.Go(func() {
			b := make([]byte, 512)
			for {
				n, from, err := pc.ReadFrom(b)
				if err != nil {
					return
				}
				s.datagram(t.Context(), slices.Clone(b[:n]), nil, netip.MustParseAddrPort(from.String()))
			}
		})
		if m := w.lookup("example.com", mdns.TypeA); m.Rcode != mdns.RcodeServerFailure {
			t.Errorf("%v", m)
		}
		w.host.Redirect(func(dst netip.AddrPort) (netip.AddrPort, bool) { return netip.MustParseAddrPort(at), dst.Port() == 53 })
		if m := answer(t, w.askTCP(question("example.com", mdns.TypeA))); m.Rcode != mdns.RcodeServerFailure {
			t.Errorf("by TCP: %v", m)
		}
		if n := len(s.dialling); n != 0 {
			t.Errorf("%d connections are still noted", n)
		}
		if w.count(dropLoop) != 3 || !strings.Contains(w.log.String(), "--proxy-uid") {
			t.Errorf("%d were dropped; the log says %s", w.count(dropLoop), w.log)
		}
	})
}

// TestInFlightIsBounded: queries that wait are counted, as a whole and for each
// client; those beyond are answered at once, and no memory is held for them.
func TestInFlightIsBounded(t *testing.T) {
	f := filter()
	f.MaxPending = 10
	inWorld(t, "", Config{PerClient: 6}, f, func(t *testing.T, w *world) {
		w.resolver("resolver", resolver, func(*asked) {})
		a, b := w.client(), w.client()
		defer a.Close()
		defer b.Close()
		for i := range 8 {
			send(t, a, question("example.com", mdns.TypeA, func(m *mdns.Msg) { m.Id = uint16(i) }))
		}
		synctest.Wait()
		if n := w.set.counts.flying.Load(); n != 6 {
			t.Errorf("%d of one client are in flight", n)
		}
		for i := range 8 {
			send(t, b, question("example.com", mdns.TypeA, func(m *mdns.Msg) { m.Id = uint16(i) }))
		}
		synctest.Wait()
		if n := w.set.counts.flying.Load(); n != 10 {
			t.Errorf("%d of both are in flight", n)
		}
		if w.count(forwardOverload) != 6 || !w.code(telemetry.Overload) {
			t.Errorf("%d were refused", w.count(forwardOverload))
		}
		codes := map[int]int{}
		for _, pc := range []net.PacketConn{a, b} {
			_ = pc.SetReadDeadline(time.Now().Add(10 * time.Second))
			buf := make([]byte, 512)
			for range 8 {
				n, _, err := pc.ReadFrom(buf)
				if err != nil {
					t.Fatal(err)
				}
				codes[answer(t, buf[:n]).Rcode]++
			}
		}
		if codes[mdns.RcodeServerFailure] != 16 || len(w.perClient()) != 0 {
			t.Errorf("answers %v, still counted %v", codes, w.perClient())
		}
	})
}

func (w *world) perClient() map[netip.AddrPort]int {
	<-w.set.turn
	s := w.set.servers[netip.MustParseAddrPort(at)]
	w.set.turn <- struct{}{}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clients
}

func (w *world) client() net.PacketConn {
	pc, err := w.host.ListenPacket(w.t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	return pc
}

func send(t *testing.T, pc net.PacketConn, msg []byte) {
	t.Helper()
	if _, err := pc.WriteTo(msg, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at))); err != nil {
		t.Fatal(err)
	}
}

// TestLoopbackOnly: no other address is opened, whoever asks for it.
func TestLoopbackOnly(t *testing.T) {
	inWorld(t, "", Config{}, filter(), func(t *testing.T, w *world) {
		for _, host := range []string{"0.0.0.0", "::", "10.0.0.1", "::ffff:10.0.0.1"} {
			l := listenerOf(filter())
			l.Address, l.Additional = resource.Address{Host: host, Port: 5353}, nil
			if l.Validate() == nil {
				t.Errorf("%s is valid", host)
			}
			errs := w.set.Update("other", []*resource.Listener{l})
			if len(errs) != 1 || !strings.Contains(errs[0].Error(), "no loopback address") || w.set.Listening("other") == nil {
				t.Errorf("%s: %v", host, errs)
			}
			if _, err := w.host.Dial(t.Context(), "tcp", net.JoinHostPort("10.0.0.1", "5353")); err == nil {
				t.Errorf("%s: somebody listens", host)
			}
		}
		far := w.net.Host("far", "10.0.0.2")
		if c, err := far.Dial(t.Context(), "tcp", "10.0.0.1:15053"); err == nil {
			c.Close()
			t.Error("another host reaches the server")
		}
	})
}

// TestSocketInUse: a port that is taken is tried again, and said.
func TestSocketInUse(t *testing.T) {
	inWorld(t, "", Config{}, filter(), func(t *testing.T, w *world) {
		ln, err := w.host.Listen(t.Context(), "tcp", "127.0.0.1:5353")
		if err != nil {
			t.Fatal(err)
		}
		l := listenerOf(filter())
		l.Address.Port, l.Additional = 5353, nil
		if errs := w.set.Update("other", []*resource.Listener{l}); len(errs) != 1 || !strings.Contains(errs[0].Error(), "another process") {
			t.Fatal(errs)
		}
		if s := w.set.Status("other"); len(s) != 1 || s[0].Err == "" || w.set.Listening("other") == nil || w.set.Listening("web") != nil {
			t.Errorf("status %v", s)
		}
		ln.Close()
		time.Sleep(2 * time.Second)
		if err := w.set.Listening("other"); err != nil {
			t.Error(err)
		}
	})
}

// without6 is a host without IPv6.
type without6 struct{ netio.Net }

func (n without6) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	if strings.HasPrefix(address, "[") {
		return nil, fmt.Errorf("listen %s: %w", address, syscall.EADDRNOTAVAIL)
	}
	return n.Net.ListenPacket(ctx, network, address)
}

// TestHostWithoutIPv6: an additional address that the host does not have is left
// out; a first one is not.
func TestHostWithoutIPv6(t *testing.T) {
	inWorld(t, "", Config{}, filter(), func(t *testing.T, w *world) {
		w.set.Update("web", nil)
		w.set.Net = without6{w.host}
		if errs := w.set.Update("web", []*resource.Listener{listenerOf(filter())}); len(errs) > 0 || w.set.Listening("web") != nil {
			t.Fatal(errs)
		}
		if s := w.set.Status("web"); len(s) != 1 || s[0].Address != at {
			t.Errorf("status %v", s)
		}
		if m := w.lookup("web.mesh", mdns.TypeA); len(m.Answer) != 1 || !strings.Contains(w.log.String(), "does not have it") {
			t.Errorf("%v; the log says %s", m, w.log)
		}
		only := listenerOf(filter())
		only.Address.Host, only.Additional = "::1", nil
		if errs := w.set.Update("other", []*resource.Listener{only}); len(errs) != 1 || w.set.Listening("other") == nil {
			t.Errorf("%v", errs)
		}
	})
}
