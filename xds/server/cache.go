package server

import (
	"encoding/hex"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// content is one version of a resource, serialised once. Immutable.
type content struct {
	version string     // hash of the serialised resource: the same from every control plane
	any     *anypb.Any // nil: only the version is known, from a client that resumed
	digest  uint64     // of name and version
}

func newContent(name string, a *anypb.Any) *content {
	h := xxhash.New()
	_, _ = h.WriteString(a.GetTypeUrl())
	_, _ = h.Write(a.GetValue())
	version := hex.EncodeToString(h.Sum(nil))
	return &content{version: version, any: a, digest: digest(name, version)}
}

func digest(name, version string) uint64 {
	h := xxhash.New()
	_, _ = h.WriteString(name)
	_, _ = h.Write([]byte{0})
	_, _ = h.WriteString(version)
	return h.Sum64()
}

// entryKey names an entry; node is "" for what a dialect shares.
type entryKey struct {
	dialect Dialect
	node    string
	typ     resource.Type
	name    string
}

// entry is one existing resource and all who hold it. It lives as long as
// somebody does. Guarded by Server.mu.
type entry struct {
	key   entryKey
	cur   *content // never nil
	holds map[*hold]struct{}
}

// hold is one name in one subscription. Guarded by Server.mu; wild, named and
// sent change only on the stream's goroutine.
type hold struct {
	sub   *sub
	name  string
	wild  bool // it is there because of the wildcard
	named bool // it is there because its name was asked for
	e     *entry

	sent    *content // what the client was given last; nil: nothing
	force   bool     // the protocol wants an answer, whatever was sent before
	good    *content // what the client kept when it refused a version; nil: nothing
	refused string   // the version it refused
	reason  string
	resent  bool // the refused version was sent once more

	counted uint64 // digest counted in sub.wanted
	acked   uint64 // digest counted in sub.acked
	dropped bool   // no longer in sub.holds, nothing more to say
}

func (h *hold) subscribed() bool { return h.wild || h.named }

func (h *hold) want() *content {
	if h.e == nil {
		return nil
	}
	return h.e.cur
}

// attach makes h hold e; nil: the resource does not exist for this workload.
func (s *Server) attach(h *hold, e *entry) {
	k := Key{h.sub.typ, h.name}
	if h.e != e && h.e != nil {
		s.detach(h)
	}
	h.e = e
	if e != nil {
		e.holds[h] = struct{}{}
	}
	if e == nil && h.subscribed() {
		if s.missing[k] == nil {
			s.missing[k] = map[*hold]struct{}{}
		}
		s.missing[k][h] = struct{}{}
	} else if m := s.missing[k]; m != nil {
		s.unmiss(k, h)
	}
}

func (s *Server) unmiss(k Key, h *hold) {
	if m := s.missing[k]; m != nil {
		delete(m, h)
		if len(m) == 0 {
			delete(s.missing, k)
		}
	}
}

// detach takes h off its entry, and the entry away with its last holder.
func (s *Server) detach(h *hold) {
	s.unmiss(Key{h.sub.typ, h.name}, h)
	if h.e == nil {
		return
	}
	delete(h.e.holds, h)
	if m := s.entries(h.e.key); len(h.e.holds) == 0 && m[h.e.key] == h.e {
		delete(m, h.e.key)
	}
	h.e = nil
}

func (s *Server) entries(k entryKey) map[entryKey]*entry {
	if k.node == "" {
		return s.shared
	}
	return s.private
}

// put stores what was generated and returns its entry; holders of another
// version are marked, and their streams added to wake.
func (s *Server) put(k entryKey, c *content, wake map[*stream]struct{}) *entry {
	m := s.entries(k)
	e := m[k]
	if e == nil {
		e = &entry{key: k, cur: c, holds: map[*hold]struct{}{}}
		m[k] = e
		return e
	}
	if e.cur.version == c.version {
		return e
	}
	e.cur = c
	for h := range e.holds {
		h.touch()
		wake[h.sub.st] = struct{}{}
	}
	return e
}

// generate asks the Provider; c is nil where the resource does not exist. An
// error (the resource cannot be serialised, a defect of the generator) is
// logged here; what is in use then stays in use.
func (s *Server) generate(w Workload, t resource.Type, name string) (c *content, private bool, err error) {
	r, private, ok := s.cfg.Provider.Resource(w, t, name)
	if !ok {
		return nil, private, nil
	}
	own := private && t == resource.TypeListener
	if own {
		if c := s.memo.get(r); c != nil {
			return c, private, nil
		}
	}
	a, err := s.cfg.Encode(r)
	if err != nil {
		s.cfg.Log.Error("xds/server: a generated resource cannot be serialised; the version before it, if any, stays in use",
			"type", t.Short(), "resource", name, "node", w.NodeID, "error", err)
		return nil, private, err
	}
	c = newContent(name, a)
	if own {
		s.memo.put(r, c)
	}
	return c, private, nil
}

// resolve finds or makes what h stands for. Runs on the stream's goroutine,
// without the lock; repeated if a change came in between, so that nothing older
// than the last change is stored.
func (s *Server) resolve(h *hold) {
	w, t := h.sub.st.w, h.sub.typ
	sk := entryKey{dialect: w.Dialect, typ: t, name: h.name}
	for {
		s.mu.Lock()
		epoch := s.epoch
		if e := s.shared[sk]; e != nil && h.wild {
			s.attach(h, e)
			h.touch()
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		c, private, err := s.generate(w, t, h.name)
		wake := map[*stream]struct{}{}
		s.mu.Lock()
		if s.epoch != epoch {
			s.mu.Unlock()
			continue
		}
		s.m.Generated++
		k := sk
		if private {
			k.node = w.NodeID
		}
		switch {
		case h.dropped:
		case err != nil && h.e != nil:
		case c == nil:
			s.attach(h, nil)
		default:
			s.attach(h, s.put(k, c, wake))
		}
		h.touch()
		for st := range wake {
			if st != h.sub.st {
				st.schedule()
			}
		}
		s.mu.Unlock()
		return
	}
}

// Changed reports what changed. It makes the named shared resources anew, marks
// those who hold one that became different, and wakes their streams: work is in
// proportion to what was named and to its holders. It never waits for a stream.
// What belongs to one workload is made on that workload's stream.
func (s *Server) Changed(c Change) {
	s.changing.Lock()
	defer s.changing.Unlock()

	wake := map[*stream]struct{}{}
	s.mu.Lock()
	s.epoch++
	todo := s.affected(c, wake)
	s.mu.Unlock()
	s.memo.clear()

	made := make([]*content, len(todo))
	failed := make([]bool, len(todo))
	for i, j := range todo {
		c, private, err := s.generate(j.w, j.k.typ, j.k.name)
		if !private {
			made[i] = c
		}
		failed[i] = err != nil
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.m.Generated += uint64(len(todo))
	for i, j := range todo {
		e := s.shared[j.k]
		switch {
		case e == nil || failed[i]: // its last holder went meanwhile; or logged
		case made[i] != nil:
			s.put(j.k, made[i], wake)
		default: // not there for this workload, any more: each of the others asks for itself
			for h := range e.holds {
				h.sub.st.recheck(h)
				wake[h.sub.st] = struct{}{}
			}
			delete(s.shared, j.k)
		}
	}
	for st := range wake {
		st.schedule()
	}
}

// job is one shared resource to be made anew, on behalf of one of its holders.
type job struct {
	k entryKey
	w Workload
}

// affected lists the shared resources to be made anew, and marks the streams
// that have to look for themselves.
func (s *Server) affected(c Change, wake map[*stream]struct{}) []job {
	var todo []job
	add := func(e *entry) {
		for h := range e.holds {
			todo = append(todo, job{e.key, h.sub.st.w})
			return
		}
	}
	stale := func(st *stream) {
		st.stale = true
		wake[st] = struct{}{}
	}
	if c.All {
		for _, e := range s.shared {
			add(e)
		}
		for _, st := range s.streams {
			stale(st)
		}
		return todo
	}
	for _, k := range c.Shared {
		for _, d := range []Dialect{Parrel, Envoy, GRPC} {
			if e := s.shared[entryKey{dialect: d, typ: k.Type, name: k.Name}]; e != nil {
				add(e)
			}
		}
		for h := range s.missing[k] {
			h.sub.st.recheck(h)
			wake[h.sub.st] = struct{}{}
		}
	}
	for _, n := range c.Workloads {
		for _, st := range s.nodes[n] {
			stale(st)
		}
	}
	return todo
}
