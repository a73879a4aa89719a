package server

import (
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/status"

	"github.com/parrel-mesh/parrel/xds/internal/refusal"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// sub is one type on one stream. Guarded by Server.mu.
type sub struct {
	st       *stream
	typ      resource.Type
	wildcard bool
	holds    map[string]*hold
	up       map[string]*hold // to be sent
	down     map[string]*hold // to be told as removed
	must     bool             // an answer is due even if it is empty
	inflight *response        // sent and not yet answered; at most one

	// Sums of digests, over what exists, what was sent, what was acknowledged.
	wanted, sum, acked uint64

	exist      int
	behind     time.Time // since when acked differs from wanted; zero: it does not
	ackedAt    time.Time
	bytes      uint64
	nacks      uint64
	lastNACK   *NACK
	refusedNow map[string]*hold
}

// response is one that was sent.
type response struct {
	nonce string
	items []item
	timer *time.Timer
}

// item is what a response said of one resource; c is nil for a removal.
type item struct {
	h    *hold
	c    *content
	prev *content // what the client had before
}

// full: a response carries everything of the type, and absence means removal.
// https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#deleting-resources
func (b *sub) full() bool {
	return b.st.sotw && (b.typ == resource.TypeListener || b.typ == resource.TypeCluster)
}

// hold finds or makes the hold of a name.
func (b *sub) hold(name string) *hold {
	h := b.holds[name]
	if h == nil {
		h = &hold{sub: b, name: name}
		b.holds[name] = h
	}
	return h
}

// drop forgets a hold without telling the client, who no longer wants it.
func (b *sub) drop(h *hold) {
	b.st.srv.detach(h)
	h.wild, h.named, h.force = false, false, false
	b.setSent(h, nil)
	b.acked -= h.acked
	h.acked = 0
	h.touch()
}

func (b *sub) setSent(h *hold, c *content) {
	if h.sent != nil {
		b.sum -= h.sent.digest
	}
	if c != nil {
		b.sum += c.digest
	}
	h.sent = c
}

// touch brings the subscription's accounts up to date with the hold. To be
// called after every change of the hold or of its entry.
func (h *hold) touch() {
	b := h.sub
	if h.dropped {
		return
	}
	c := h.want()
	var d uint64
	if c != nil {
		d = c.digest
	}
	if (d != 0) != (h.counted != 0) {
		if d != 0 {
			b.exist++
		} else {
			b.exist--
		}
	}
	b.wanted += d - h.counted
	h.counted = d

	if c == nil && b.st.sotw && !b.full() { // no way to say so: it ends with what refers to it
		b.setSent(h, nil)
		b.acked -= h.acked
		h.acked = 0
	}
	delete(b.up, h.name)
	delete(b.down, h.name)
	switch {
	case c == nil && (h.sent != nil || h.force && !b.st.sotw):
		b.down[h.name] = h
	case c == nil && !h.subscribed():
		delete(b.holds, h.name)
		delete(b.refusedNow, h.name)
		h.dropped = true
	case c != nil && h.due(c):
		b.up[h.name] = h
	}
	b.settle()
}

// due: does the client have to be sent c? A version that it refused is sent at
// most once more, after another one in between.
func (h *hold) due(c *content) bool {
	if h.force || h.sent == nil {
		return true
	}
	return h.sent.version != c.version && !(h.refused == c.version && h.resent)
}

func (b *sub) settle() {
	switch {
	case b.wanted == b.acked:
		b.behind = time.Time{}
	case b.behind.IsZero():
		b.behind = b.st.srv.cfg.Now()
	}
}

// deliver notes that c (nil: a removal) is being sent for h.
func (b *sub) deliver(r *response, h *hold, c *content) {
	if c != nil && h.refused == c.version {
		h.resent = true
	}
	r.items = append(r.items, item{h: h, c: c, prev: h.sent})
	b.setSent(h, c)
	h.force = false
	h.touch()
}

// answered takes an ACK or a NACK. What does not answer the response in flight
// is no answer.
func (b *sub) answered(nonce string, e *status.Status) {
	s := b.st.srv
	s.mu.Lock()
	r := b.inflight
	if r == nil || nonce == "" || nonce != r.nonce {
		s.mu.Unlock()
		return
	}
	r.timer.Stop()
	b.inflight = nil
	b.ackedAt = s.cfg.Now()
	if e == nil {
		s.m.ACKs[b.typ.Short()]++
		for _, it := range r.items {
			b.accept(it)
		}
		b.settle()
		s.mu.Unlock()
		return
	}
	s.m.NACKs[b.typ.Short()]++
	b.nacks++
	n := &NACK{Text: e.GetMessage(), At: b.ackedAt}
	b.refuse(r, refusal.Parse(e), n)
	b.lastNACK = n
	b.settle()
	w := b.st.w
	s.mu.Unlock()
	s.cfg.Log.Warn("xds/server: a client refused configuration and keeps what it had; correct what the text names",
		"node", w.NodeID, "type", b.typ.Short(), "refused", len(n.Resources), "error", n.Text)
}

func (b *sub) accept(it item) {
	h := it.h
	if h.dropped && it.c != nil {
		return
	}
	var d uint64
	if it.c != nil {
		d = it.c.digest
		h.good = nil
		delete(b.refusedNow, h.name)
		if h.refused == it.c.version { // the client takes it now
			h.refused, h.reason, h.resent = "", "", false
		}
	}
	b.acked += d - h.acked
	h.acked = d
}

// refuse notes which versions of the response were refused. A client that does
// not say which (Envoy, gRPC) may have refused any of them.
func (b *sub) refuse(r *response, named []refusal.Refused, n *NACK) {
	by := make(map[string]refusal.Refused, len(named))
	for _, x := range named {
		by[x.Name] = x
	}
	for _, it := range r.items {
		x, hit := by[it.h.name]
		if len(named) > 0 && !hit {
			b.accept(it)
			continue
		}
		if it.c == nil || it.h.dropped {
			continue
		}
		reason := x.Reason
		if x.Field != "" {
			reason = x.Field + ": " + x.Reason
		}
		h := it.h
		if h.refused != it.c.version {
			h.resent = false
		}
		h.refused, h.reason = it.c.version, reason
		if len(named) == 0 && len(r.items) > 1 {
			continue
		}
		if it.prev != nil && it.prev.version != it.c.version {
			h.good = it.prev
		}
		if len(named) == 0 {
			h.reason = n.Text
		}
		b.refusedNow[h.name] = h
		n.Resources = append(n.Resources, Refused{Name: h.name, Version: h.refused, Reason: h.reason})
	}
}

func hex16(v uint64) string {
	const width = 16
	t := strconv.FormatUint(v, 16)
	return "0000000000000000"[:width-len(t)] + t
}

func (b *sub) status(now time.Time) TypeStatus {
	t := TypeStatus{
		Type: b.typ, Wanted: hex16(b.wanted), Acked: hex16(b.acked), AckedAt: b.ackedAt,
		Resources: b.exist, BytesSent: b.bytes, NACKs: b.nacks, LastNACK: b.lastNACK,
	}
	if !b.behind.IsZero() {
		t.Age = now.Sub(b.behind)
	}
	for _, h := range b.refusedNow {
		if c := h.want(); c != nil && c.version == h.refused {
			t.Refused = append(t.Refused, Refused{Name: h.name, Version: h.refused, Reason: h.reason})
		}
	}
	return t
}
