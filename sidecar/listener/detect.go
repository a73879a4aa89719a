package listener

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Opener is a Handler that can begin before its client has said anything: the
// way to protocols in which the server speaks first.
type Opener interface {
	Handler
	// Open begins to connect to c's upstream and does not block. heard is called
	// at most once, on another goroutine: when the upstream has sent a first byte
	// or has ended (nil), or cannot be reached (the error). What Open gives is
	// either left in c.Opening for Serve or abandoned.
	Open(ctx context.Context, c *Conn, heard func(error)) Opening
}

// Opening is an upstream connection that is being made.
type Opening interface {
	// Abandon ends it: the client turned out to speak something else. It is over
	// when Abandon returns, which waits for nobody but this process.
	Abandon()
}

// Where nobody declared a protocol, whoever speaks first decides, and nobody
// waits for a time-out to be told that nothing came. Two times are left, and
// neither stands between an upstream that speaks and its client:
const (
	// undecidedFor is how long a client may leave the beginning of a request
	// line as it is, or a client of an upstream that cannot be reached, or must
	// not be, may stay silent, before the connection is taken for opaque bytes.
	undecidedFor = 100 * time.Millisecond
	// silentFor is how long a client may stay silent before the upstream is
	// called where HTTP was spoken the last time: clients of HTTP speak at once,
	// and the connection would be for nothing.
	silentFor = 25 * time.Millisecond
)

// detects says whether a chain is chosen by what plaintext clients speak: it
// asks for a name that Envoy's http_inspector gives.
func detects(fc *resource.FilterChain) bool {
	return fc.TLS == nil && len(fc.Match.ServerNames) == 0 && fc.Match.TransportProtocol != "tls" &&
		slices.ContainsFunc(fc.Match.ApplicationProtocols, func(p string) bool { return slices.Contains(inspectorNames, p) })
}

// listens says whether a chain is chosen by what only a ClientHello says.
func listens(fc *resource.FilterChain) bool {
	m := &fc.Match
	return !detects(fc) && (len(m.ServerNames) > 0 || m.TransportProtocol != "" || len(m.ApplicationProtocols) > 0)
}

// detection is one connection whose first bytes decide.
type detection struct {
	t *tracked
	a *active

	silent  *Chain  // for a client that says nothing; nil: there is none in plaintext
	opener  Opener  // silent's engine, where it can begin by itself
	opening Opening // what it began

	mu     sync.Mutex
	over   bool // guarded by mu: what the upstream says comes too late
	heard  bool // guarded by mu: the upstream has spoken
	failed bool // guarded by mu: the upstream cannot be reached
}

// detect reads as much as is needed to know what the connection is. The client
// is listened to and, where the chain for opaque bytes allows it, so is the
// upstream: whoever speaks first decides. It gives a connection that starts with
// the same bytes again, and leaves in t what was found.
func (t *tracked) detect(a *active) (netio.Conn, error) {
	d := &detection{t: t, a: a}
	seen := t.seen()
	wait := t.so.set.Limits.Sniff
	if ch, ok := a.chain(seen); ok && ch.Resource.TLS == nil {
		facts := t.facts(t.start)
		if allowed, _ := authorise(ch.Authorise, &facts); allowed {
			d.silent = ch
			d.opener, _ = ch.Handler.(Opener)
		} else {
			wait = undecidedFor // nobody is there to be waited for
		}
	}
	switch {
	case d.opener == nil: // the client has to speak
	case t.so.learned.clientFirst(seen.Destination):
		wait = silentFor
	default:
		wait = 0
		d.open()
	}
	wire, what, err := d.read(wait)
	d.mu.Lock()
	d.over = true
	heard := d.heard
	d.mu.Unlock()
	if cerr := clearDeadline(t.raw); err == nil && cerr != nil {
		err = cerr
	}
	switch {
	case err != nil:
	case what == tlsHello && a.sniff:
		if t.hello, wire, err = sniff(wire, t.so.set.Limits); t.hello != nil {
			t.c.ServerName = t.hello.serverName
		}
	case what == tlsHello:
		t.hello = new(hello) // nobody asks what it says
	case a.detect && what.protocols() != nil:
		t.spoken = what
	}
	chain, _ := a.chain(t.seen())
	if d.opening != nil && (err != nil || chain != d.silent) {
		d.opening.Abandon()
		d.opening = nil
	}
	if err != nil {
		return wire, err
	}
	if d.opening != nil {
		t.c.Opening = d.opening
	}
	t.so.learned.note(seen.Destination, chain != d.silent)
	if a.detect {
		t.so.counters.found(t.spoken, heard)
	}
	return wire, nil
}

// open lets the chain for opaque bytes begin.
func (d *detection) open() {
	t := d.t
	t.describe(d.a, d.silent)
	d.opening = d.opener.Open(t.so.set.ctx, &t.c, d.hear)
}

// hear is told what the upstream does before the client was understood.
func (d *detection) hear(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.over:
	case err != nil: // a client of HTTP shall have its answer, and speaks by itself
		d.failed = true
		_ = d.t.raw.SetReadDeadline(time.Now().Add(undecidedFor))
	default:
		d.heard = true
		_ = d.t.raw.SetReadDeadline(time.Unix(1, 0))
	}
}

// bound sets how long the next read may take, 0 for without end; false where
// the upstream has spoken and nothing more is to be read.
func (d *detection) bound(wait time.Duration) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.heard {
		return false
	}
	if d.failed && wait == 0 {
		wait = undecidedFor
	}
	var at time.Time
	if wait > 0 {
		at = time.Now().Add(wait)
	}
	_ = d.t.raw.SetReadDeadline(at)
	return true
}

// read reads until what the client speaks is clear, the upstream has spoken, or
// the client leaves it open for too long. The connection starts with what was
// read.
func (d *detection) read(wait time.Duration) (netio.Conn, speech, error) {
	raw := d.t.raw
	if d.opening == nil && !d.bound(wait) { // an opening's deadline is its own from here on
		return raw, opaque, nil
	}
	b, n, err := netio.ReadBuf(raw)
	for err != nil && errors.Is(err, os.ErrDeadlineExceeded) && b == nil {
		if d.opener == nil || d.opening != nil { // silent for too long, or the upstream has spoken
			return raw, opaque, nil
		}
		d.open()
		if !d.bound(0) {
			return raw, opaque, nil
		}
		b, n, err = netio.ReadBuf(raw)
	}
	if err != nil {
		if b != nil {
			netio.PutBuf(b)
		}
		return raw, opaque, err
	}
	what := classify(b[:n])
	for what == unclear && d.a.detect && n < len(b) {
		if !d.bound(undecidedFor) {
			break
		}
		var m int
		m, err = raw.Read(b[n:])
		n += m
		what = classify(b[:n])
		if err != nil { // time is over, or the next read says it again
			break
		}
	}
	if what == unclear {
		what = opaque
	}
	return netio.Replay(raw, netio.Pending{Buf: b, N: n}), what, nil
}

// learned remembers, by the address that clients meant, where they spoke what
// another chain than that for opaque bytes takes. It decides when the upstream
// is called, never what a connection is: a service may change what it speaks.
type learned struct {
	mu sync.Mutex
	at map[netip.AddrPort]bool // guarded by mu
}

// mostLearned bounds the memory of one listener.
const mostLearned = 4096

func (l *learned) clientFirst(to netip.AddrPort) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.at[to]
}

func (l *learned) note(to netip.AddrPort, clientFirst bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if was, known := l.at[to]; known && was == clientFirst {
		return
	}
	if l.at == nil {
		l.at = make(map[netip.AddrPort]bool)
	}
	for k := range l.at { // any one makes room
		if len(l.at) < mostLearned {
			break
		}
		delete(l.at, k)
	}
	l.at[to] = clientFirst
}

// ambiguous says whether the choice of a chain needs the client's first bytes.
func (a *active) ambiguous(c decide.Connection) bool {
	return (a.sniff || a.detect) && !a.chains.Settled(c)
}
