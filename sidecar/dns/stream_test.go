package dns

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// read reads one message, nil at the end of the connection.
func read(t *testing.T, c netio.Conn) []byte {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	b, err := readMessage(c, maxMessage)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, c netio.Conn, b []byte) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

func numbered(name string, id uint16) []byte {
	return question(name, mdns.TypeA, func(m *mdns.Msg) { m.Id = id })
}

// TestPipelining: several queries on one connection, in one write, with answers
// as they come; a client that says that it sends no more still gets them all.
func TestPipelining(t *testing.T) {
	inWorld(t, "", Config{}, filter(), func(t *testing.T, w *world) {
		w.resolver("resolver", resolver, func(a *asked) {
			if strings.HasPrefix(a.parsed().Question[0].Name, "slow") {
				time.Sleep(time.Second)
			}
			a.say(mdns.RcodeSuccess, rr("x. 60 IN A 192.0.2.1"))
		})
		c := w.dial()
		write(t, c, slices.Concat(framed(numbered("slow.example", 1)), framed(numbered("web.mesh", 2)), framed(numbered("fast.example", 3))))
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		var ids []uint16
		for range 3 {
			ids = append(ids, answer(t, read(t, c)).Id)
		}
		if !slices.Equal(ids, []uint16{2, 3, 1}) {
			t.Errorf("answers to %v", ids)
		}
		if b := read(t, c); b != nil {
			t.Errorf("and %x", b)
		}
	})
}

// TestPipelineIsBounded: a connection with as many queries in hand as it may have
// is not read from.
func TestPipelineIsBounded(t *testing.T) {
	inWorld(t, "", Config{Pipeline: 4}, filter(), func(t *testing.T, w *world) {
		w.resolver("resolver", resolver, func(a *asked) {
			time.Sleep(time.Second)
			a.say(mdns.RcodeNameError)
		})
		c := w.dial()
		for i := range 10 {
			write(t, c, framed(numbered("example.com", uint16(i))))
		}
		synctest.Wait()
		if n := w.set.counts.flying.Load(); n != 4 {
			t.Errorf("%d in flight", n)
		}
		start := time.Now()
		for range 10 {
			read(t, c)
		}
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("10 queries of a second each, 4 at a time, took %s", took)
		}
	})
}

// TestStreamsEnd: what sends nothing, or half a message, or one that is too long,
// or what is no query, or does not read, loses its connection.
func TestStreamsEnd(t *testing.T) {
	inWorld(t, "", Config{}, filter(), func(t *testing.T, w *world) {
		good := framed(question("web.mesh", mdns.TypeA))
		reply := slices.Clone(good)
		reply[4] |= 0x80
		for _, c := range []struct {
			name  string
			bytes []byte
			after time.Duration
			event event // 0: none
		}{
			{"nothing", nil, 10 * time.Second, 0},
			{"one byte", good[:1], 10 * time.Second, 0},
			{"half a message", good[:20], 10 * time.Second, 0},
			{"no length", []byte{0, 0}, 0, dropNoQuery},
			{"a short message", []byte{0, 3, 1, 2, 3}, 0, dropNoQuery},
			{"an answer", reply, 0, dropNoQuery},
			{"a long message", []byte{0x40, 1}, 0, dropTooLong},
		} {
			conn := w.dial()
			before := w.count(c.event)
			if c.bytes != nil {
				write(t, conn, c.bytes)
			}
			start := time.Now()
			if b := read(t, conn); b != nil {
				t.Errorf("%s: answered with %x", c.name, b)
			}
			if time.Since(start) != c.after {
				t.Errorf("%s: closed after %s", c.name, time.Since(start))
			}
			if c.event != 0 && w.count(c.event) != before+1 {
				t.Errorf("%s: not counted", c.name)
			}
		}
		c := w.dial()
		for range 3 { // one that goes on asking stays
			time.Sleep(9 * time.Second)
			write(t, c, good)
			if m := answer(t, read(t, c)); len(m.Answer) != 1 {
				t.Fatal(m)
			}
		}
		if m := answer(t, w.askTCP(append(good[2:14:14], 0xff))); m.Rcode != mdns.RcodeFormatError {
			t.Errorf("a question that cannot be read: %v", m)
		}
		// Ten bytes a second are no way round the time for a message.
		c = w.dial()
		start := time.Now()
		for i := 0; ; i++ {
			if _, err := c.Write(good[i%20 : i%20+1]); err != nil {
				break
			}
			time.Sleep(time.Second)
		}
		if took := time.Since(start); took > 12*time.Second {
			t.Errorf("a slow writer was borne for %s", took)
		}
	})
}

// TestSlowReaderEnds: a client that does not read its answers holds nobody up.
func TestSlowReaderEnds(t *testing.T) {
	inWorld(t, "", Config{}, filter(), func(t *testing.T, w *world) {
		w.resolver("resolver", resolver, func(a *asked) {
			a.reply(append(slices.Concat(a.msg[:2], []byte{a.msg[2] | 0x80}, a.msg[3:]), bytes.Repeat([]byte{0}, 60_000)...))
		})
		c := w.dial()
		for i := range 8 {
			write(t, c, framed(numbered("example.com", uint16(i))))
		}
		synctest.Wait()
		time.Sleep(15 * time.Second)
		synctest.Wait()
		if n := w.set.counts.conns.Load(); n != 0 {
			t.Errorf("%d connections are open", n)
		}
	})
}

// TestConnectionsAreBounded: beyond the cap a connection is closed at once.
func TestConnectionsAreBounded(t *testing.T) {
	inWorld(t, "", Config{Conns: 3}, filter(), func(t *testing.T, w *world) {
		for range 3 {
			w.dial()
		}
		synctest.Wait()
		if b := read(t, w.dial()); b != nil || w.count(dropConns) != 1 {
			t.Errorf("%x, %d counted", b, w.count(dropConns))
		}
		if m := w.lookup("web.mesh", mdns.TypeA); len(m.Answer) != 1 {
			t.Error("UDP is served all the same")
		}
		time.Sleep(11 * time.Second)
		if m := answer(t, w.askTCP(question("web.mesh", mdns.TypeA))); len(m.Answer) != 1 {
			t.Errorf("later: %v", m)
		}
	})
}

// TestTransfers: a zone transfer is as many messages as the resolver sends.
func TestTransfers(t *testing.T) {
	inWorld(t, "", Config{}, filter(), func(t *testing.T, w *world) {
		soa := rr("corp.example. 60 IN SOA ns.corp.example. h.corp.example. 1 2 3 4 5")
		w.resolver("resolver", resolver, func(a *asked) {
			a.say(mdns.RcodeSuccess, soa, rr("a.corp.example. 60 IN A 192.0.2.1"))
			time.Sleep(5 * time.Second)
			m := new(mdns.Msg)
			m.SetReply(a.parsed())
			m.Question, m.Answer = nil, []mdns.RR{rr("b.corp.example. 60 IN A 192.0.2.2"), soa}
			b, _ := m.Pack()
			a.reply(b)
		})
		c := w.dial()
		write(t, c, framed(question("corp.example", mdns.TypeAXFR)))
		one, two := answer(t, read(t, c)), answer(t, read(t, c))
		if len(one.Answer) != 2 || len(two.Answer) != 2 || two.Answer[0].Header().Name != "b.corp.example." {
			t.Errorf("%v\n%v", one, two)
		}
		write(t, c, framed(question("web.mesh", mdns.TypeA)))
		if m := answer(t, read(t, c)); len(m.Answer) != 1 {
			t.Errorf("the connection goes on: %v", m)
		}
	})
	inWorld(t, "nameserver 127.0.0.2\n", Config{}, filter(), func(t *testing.T, w *world) {
		if m := answer(t, w.askTCP(question("corp.example", mdns.TypeAXFR))); m.Rcode != mdns.RcodeServerFailure {
			t.Errorf("nobody there: %v", m)
		}
	})
}

// TestEnd: what is in hand when the process ends, or a listener is taken away,
// ends with it.
func TestEnd(t *testing.T) {
	inWorld(t, "", Config{}, filter(), func(t *testing.T, w *world) {
		w.resolver("resolver", resolver, func(*asked) {})
		pc, c := w.client(), w.dial()
		defer pc.Close()
		send(t, pc, question("example.com", mdns.TypeA))
		write(t, c, framed(question("example.com", mdns.TypeA)))
		write(t, w.dial(), framed(question("corp.example", mdns.TypeAXFR)))
		synctest.Wait()
		if n := w.set.counts.flying.Load(); n != 3 {
			t.Fatalf("%d in flight", n)
		}
		start := time.Now()
		w.set.Update("web", nil)
		if time.Since(start) != 0 || w.set.counts.flying.Load() != 0 {
			t.Errorf("it took %s, and %d are in flight", time.Since(start), w.set.counts.flying.Load())
		}
		w.set.Update("web", []*resource.Listener{listenerOf(filter())})
		send(t, pc, question("example.com", mdns.TypeA))
		time.Sleep(3 * time.Second) // two attempts are open
		// inWorld ends it.
	})
}

// TestPanicEndsOneQuery: a defect in one query is counted, and the next is served.
func TestPanicEndsOneQuery(t *testing.T) {
	inWorld(t, "", Config{}, filter(), func(t *testing.T, w *world) {
		w.random(func() uint64 { panic("boom") })
		if b := w.ask(question("web.mesh", mdns.TypeA)); b != nil {
			t.Errorf("%x", b)
		}
		if b := w.askTCP(question("web.mesh", mdns.TypeA)); b != nil {
			t.Errorf("%x", b)
		}
		w.random(func() uint64 { return 0 })
		synctest.Wait()
		if m := w.lookup("web.mesh", mdns.TypeA); len(m.Answer) != 1 || w.count(dropPanic) != 2 {
			t.Errorf("%v, %d counted", m, w.count(dropPanic))
		}
	})
}
