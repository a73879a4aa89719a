package client

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/wire"
)

// given is one resource of a response or of the disk.
type given struct {
	name    string // "" where the response does not say (state of the world)
	version string // "": by content
	any     *anypb.Any
}

// batch is what a response came to.
type batch struct {
	update  Update
	refused []Refused
	seen    map[string]struct{} // names that were there, refused or not
	blind   bool                // a refused resource could not be named
}

// take decodes and checks resources and keeps the good ones. Each bad one is
// refused alone, and its last good version stays.
func (c *Client) take(ts *typeState, list []given) *batch {
	b := &batch{update: Update{Type: ts.typ, Versions: map[string]string{}}, seen: map[string]struct{}{}}
	now := time.Now()
	for _, g := range list {
		h, warnings, bad := c.read(ts, &g)
		if bad == nil && g.name != "" {
			if _, twice := b.seen[g.name]; twice {
				bad = &Refused{Type: ts.typ, Name: g.name, Version: g.version, Reason: "the response carries this name twice; the first is used"}
				b.refused = append(b.refused, *bad)
				continue
			}
		}
		if g.name == "" {
			b.blind = true
		}
		b.seen[g.name] = struct{}{}
		if bad != nil {
			b.refused = append(b.refused, *bad)
			c.noteRefused(ts, g.name, bad)
			continue
		}
		if c.keep(ts, g, h, now) {
			b.update.Upserted = append(b.update.Upserted, h.res)
			b.update.Versions[g.name] = g.version
		}
		b.update.Warnings = append(b.update.Warnings, warnings...)
	}
	return b
}

// read decodes and checks one resource, and completes g's name and version.
func (c *Client) read(ts *typeState, g *given) (*held, []wire.Warning, *Refused) {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(g.any)
	if g.version == "" {
		g.version = contentVersion(raw)
	}
	refuse := func(field, format string, a ...any) *Refused {
		return &Refused{Type: ts.typ, Name: g.name, Version: g.version, Field: field, Reason: fmt.Sprintf(format, a...)}
	}
	if err != nil {
		return nil, nil, refuse("", "it cannot be kept: %v", err)
	}
	if got := g.any.GetTypeUrl(); got != string(ts.typ) {
		return nil, nil, refuse("", "the response is of type %s, but this resource says %q", ts.typ, got)
	}
	r, warnings, err := c.cfg.Decode(g.any)
	if err != nil {
		return nil, nil, c.refusal(ts, g, err)
	}
	if n := r.ResourceName(); g.name == "" {
		g.name = n
	} else if n != g.name {
		return nil, nil, refuse("name", "the response calls it %q, the resource itself %q", g.name, n)
	}
	if g.name == "" {
		return nil, nil, refuse("name", "it has no name")
	}
	if err := r.Validate(); err != nil {
		return nil, nil, c.refusal(ts, g, err)
	}
	if c.cfg.Check != nil {
		if err := c.cfg.Check(r); err != nil {
			return nil, nil, c.refusal(ts, g, err)
		}
	}
	return &held{res: r, any: raw, version: g.version}, warnings, nil
}

// refusal reads field and reason out of the error of Decode, Validate or Check.
// Of several joined ones the first names the field, and all are in the reason.
func (c *Client) refusal(ts *typeState, g *given, err error) *Refused {
	bad := &Refused{Type: ts.typ, Version: g.version, Reason: err.Error()}
	var we *wire.Error
	var fe *resource.FieldError
	switch joined := leaves(err); {
	case errors.As(err, &we):
		if bad.Field = we.Field; len(joined) == 1 {
			bad.Reason = we.Reason
		}
		if g.name == "" {
			g.name = we.Name
		}
	case errors.As(err, &fe):
		if bad.Field = fe.Field; len(joined) == 1 {
			bad.Reason = fe.Reason
		}
	}
	bad.Name = g.name
	return bad
}

func leaves(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range j.Unwrap() {
			out = append(out, leaves(e)...)
		}
		return out
	}
	return []error{err}
}

func (c *Client) noteRefused(ts *typeState, name string, bad *Refused) {
	if name == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !ts.wants(name) {
		return
	}
	h := ts.held[name]
	if h == nil {
		h = &held{}
		ts.held[name] = h
	}
	h.refused = bad
}

// wants: does anybody ask for the name? Mu is held.
func (ts *typeState) wants(name string) bool {
	if ts.wildcard || !ts.subscribed {
		return true
	}
	_, ok := ts.want[name]
	return ok
}

// keep stores a good resource; false where nothing changed by it.
func (c *Client) keep(ts *typeState, g given, h *held, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !ts.wants(g.name) { // asked for once, and no longer
		return false
	}
	if old := ts.held[g.name]; old != nil && old.res != nil && old.version == h.version {
		old.refused = nil
		return false
	}
	h.updated, ts.updated = now, now
	ts.held[g.name] = h
	return true
}

// remove takes away what the server says is gone; it returns the names that the
// handler has to know of.
func (c *Client) remove(ts *typeState, names []string) (removed []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range names {
		_, had := ts.held[n]
		_, asked := ts.want[n]
		if had || asked {
			removed = append(removed, n)
		}
		delete(ts.held, n)
	}
	if len(removed) > 0 {
		ts.updated = time.Now()
	}
	return removed
}

// hand gives an update to the handler, if there is anything in it.
func (c *Client) hand(u Update) {
	for _, w := range u.Warnings {
		c.cfg.Log.Warn("client: a field is not honoured", "type", w.Type.Short(), "resource", w.Name, "field", w.Field, "reason", w.Reason)
	}
	if len(u.Upserted) == 0 && len(u.Removed) == 0 {
		return
	}
	c.cfg.Handler.Apply(u)
	if !u.FromDisk {
		signal(c.save)
	}
}

// settle records the outcome of a response and says what to refuse with.
func (c *Client) settle(ts *typeState, refused []Refused) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(refused) == 0 {
		ts.acks++
		return
	}
	ts.nacks++
	ts.lastNACK = &NACK{At: time.Now(), Resources: refused}
	for _, r := range refused {
		c.cfg.Log.Warn("client: refused a resource; its last good version stays in use",
			"type", r.Type.Short(), "resource", r.Name, "version", r.Version, "field", r.Field, "reason", r.Reason)
	}
}

// fromDisk applies the stored set, in make-before-break order.
func (c *Client) fromDisk() {
	st, err := c.cfg.Store.Load()
	if err != nil {
		c.storeErr(err)
	}
	if st == nil {
		return
	}
	if st.NodeID != "" && st.NodeID != c.cfg.Node.ID {
		c.storeErr(fmt.Errorf("client: the stored configuration is of node %q, this is %q; it is not used", st.NodeID, c.cfg.Node.ID))
		return
	}
	c.mu.Lock()
	c.status.FromDisk = st.Created
	c.mu.Unlock()
	for _, t := range resource.Types() {
		ts := c.types[t]
		var list []given
		for name, s := range st.Types[t] {
			a := &anypb.Any{}
			if err := proto.Unmarshal(s.Any, a); err != nil {
				c.storeErr(fmt.Errorf("client: stored %s %q is unreadable and left out: %w", t.Short(), name, err))
				continue
			}
			list = append(list, given{name: name, version: s.Version, any: a})
		}
		sortGiven(list)
		b := c.take(ts, list)
		for _, r := range b.refused {
			c.storeErr(fmt.Errorf("client: stored %s is left out", r))
			c.mu.Lock()
			delete(ts.held, r.Name)
			c.mu.Unlock()
		}
		b.update.FromDisk = true
		c.hand(b.update)
	}
}

func (c *Client) storeErr(err error) {
	text := ""
	if err != nil {
		text = err.Error()
		c.cfg.Log.Warn("client: last good configuration on disk", "error", err)
	}
	c.mu.Lock()
	c.status.StoreErr = text
	c.mu.Unlock()
}

// state is what is worth keeping: all last good versions, but no private key.
func (c *Client) state() *State {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := &State{NodeID: c.cfg.Node.ID, Created: time.Now(), Types: map[resource.Type]map[string]Saved{}}
	for t, ts := range c.types {
		m := map[string]Saved{}
		for n, h := range ts.held {
			if s, ok := h.res.(*resource.Secret); h.res == nil || ok && len(s.KeyPEM) > 0 {
				continue
			}
			m[n] = Saved{Version: h.version, Any: h.any}
		}
		if len(m) > 0 {
			st.Types[t] = m
		}
	}
	return st
}

// saveAgain is how often an unchanged set is written anew while the server is
// there to confirm it: its age on disk tells for how long nobody did, not for how
// long nothing changed.
const saveAgain = 24 * time.Hour

// saver writes the set SaveDelay after it changed, once a day while connected,
// and once more at the end.
func (c *Client) saver(done <-chan struct{}) {
	dirty := false
	write := func() {
		c.storeErr(c.cfg.Store.Save(c.state()))
		dirty = false
	}
	timer := time.NewTimer(c.cfg.SaveDelay)
	timer.Stop()
	defer timer.Stop()
	daily := time.NewTicker(saveAgain)
	defer daily.Stop()
	for {
		select {
		case <-daily.C:
			if c.Status().Connected {
				write()
			}
		case <-c.save:
			if !dirty {
				dirty = true
				timer.Reset(c.cfg.SaveDelay)
			}
		case <-timer.C:
			write()
		case <-done:
			select {
			case <-c.save:
				dirty = true
			default:
			}
			if dirty {
				write()
			}
			return
		}
	}
}
