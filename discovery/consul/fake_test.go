package consul

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

// fake is an agent in this process, on a network of pipes, so that it can be
// asked in virtual time. It answers what a Source asks and nothing else.
type fake struct {
	srv  *http.Server
	pipe *pipes

	mu      sync.Mutex
	changed chan struct{}
	index   uint64
	at      map[string]uint64 // index of each path
	proxies map[string][]*api.ServiceEntry
	entries map[string][]map[string]any
	self    string
	acl     string // X-Consul-Default-Acl-Policy

	fail       func(r *http.Request) (status int, body string)     // 0: answers
	head       func(r *http.Request, h http.Header, index *uint64) // changes an answer's headers
	amnesia    func(r *http.Request) bool                          // answers empty
	asked      []question
	open, most int // blocking queries that wait
}

type question struct {
	at                time.Time
	path, index       string
	stale, consistent bool
}

func newFake() *fake {
	f := &fake{
		changed: make(chan struct{}), index: 10, at: map[string]uint64{}, proxies: map[string][]*api.ServiceEntry{},
		entries: map[string][]map[string]any{}, acl: "deny",
		self: `{"Config":{"Datacenter":"dc1"},"DebugConfig":{"DefaultIntentionPolicy":"","ACLResolverSettings":{"ACLDefaultPolicy":"deny"}}}`,
		pipe: &pipes{conns: make(chan net.Conn), done: make(chan struct{})},
	}
	f.srv = &http.Server{Handler: f}
	go f.srv.Serve(f.pipe)
	return f
}

func (f *fake) config() Config {
	return Config{Address: "consul.test:8500", Dial: f.pipe.dial, Rand: func() float64 { return 0.5 }}
}

func (f *fake) close() { f.srv.Close() }

// change does something under the lock and wakes the queries for the paths.
func (f *fake) change(do func(), paths ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	f.index++
	for _, p := range paths {
		f.at[p] = f.index
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// put gives a service n connect-native instances.
func (f *fake) put(name string, n int) {
	f.change(func() {
		var out []*api.ServiceEntry
		for i := range n {
			out = append(out, &api.ServiceEntry{
				Node:    &api.Node{Node: "n", Address: "10.0.0.1", Datacenter: "dc1"},
				Service: &api.AgentService{ID: fmt.Sprintf("%s-%d", name, i), Service: name, Port: 1000 + i, Connect: &api.AgentServiceConnect{Native: true}},
				Checks:  api.HealthChecks{{CheckID: "serfHealth", Status: "passing"}},
			})
		}
		if f.proxies[name] = out; n == 0 {
			delete(f.proxies, name)
		}
	}, "/v1/health/connect/"+name, "/v1/health/service/"+name, "/v1/catalog/services", "/v1/health/state/any")
}

func (f *fake) questions(path string) []question {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(f.asked), func(q question) bool { return q.path != path })
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	path := r.URL.Path
	f.mu.Lock()
	f.asked = append(f.asked, question{time.Now(), path, q.Get("index"), q.Has("stale"), q.Has("consistent")})
	if f.fail != nil {
		if status, body := f.fail(r); status != 0 {
			f.mu.Unlock()
			http.Error(w, body, status)
			return
		}
	}
	f.mu.Unlock()
	if want, _ := strconv.ParseUint(q.Get("index"), 10, 64); want > 0 {
		f.wait(r, path, want)
	}
	f.mu.Lock()
	index := max(f.at[path], 5)
	body := f.body(r)
	h := w.Header()
	h.Set("X-Consul-Knownleader", "true")
	h.Set("X-Consul-Lastcontact", "0")
	h.Set("X-Consul-Default-Acl-Policy", f.acl)
	if f.head != nil {
		f.head(r, h, &index)
	}
	h.Set("X-Consul-Index", strconv.FormatUint(index, 10))
	f.mu.Unlock()
	_ = json.NewEncoder(w).Encode(body)
}

// wait blocks as Consul does: while the index is not above what was asked for.
func (f *fake) wait(r *http.Request, path string, want uint64) {
	d, _ := time.ParseDuration(r.URL.Query().Get("wait"))
	end := time.NewTimer(d)
	defer end.Stop()
	f.mu.Lock()
	f.open++
	f.most = max(f.most, f.open)
	defer func() { f.open--; f.mu.Unlock() }()
	for max(f.at[path], 5) <= want && (f.fail == nil || !f.failing(r)) {
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
			f.mu.Lock()
		case <-end.C:
			f.mu.Lock()
			return
		case <-r.Context().Done():
			f.mu.Lock()
			return
		}
	}
}

func (f *fake) failing(r *http.Request) bool { status, _ := f.fail(r); return status != 0 }

func (f *fake) body(r *http.Request) any {
	path := r.URL.Path
	empty := f.amnesia != nil && f.amnesia(r)
	if name, ok := strings.CutPrefix(path, "/v1/health/connect/"); ok {
		return f.health(name, empty)
	}
	if name, ok := strings.CutPrefix(path, "/v1/health/service/"); ok {
		return f.health(name, empty)
	}
	if kind, ok := strings.CutPrefix(path, "/v1/config/"); ok {
		if e := f.entries[kind]; e != nil && !empty {
			return e
		}
		return []any{}
	}
	switch path {
	case "/v1/catalog/services":
		out := map[string][]string{}
		if r.URL.Query().Get("filter") == "" && !empty {
			out["consul"] = nil
			for name := range f.proxies {
				out[name] = nil
			}
		}
		return out
	case "/v1/connect/ca/roots":
		return map[string]any{"TrustDomain": "td.consul", "ActiveRootID": "b", "Roots": []map[string]any{{"ID": "a", "RootCert": "old"}, {"ID": "b", "RootCert": "new"}}}
	case "/v1/agent/self":
		return json.RawMessage(f.self)
	case "/v1/catalog/datacenters":
		return []string{"dc1", "dc2"}
	}
	return []any{}
}

func (f *fake) health(name string, empty bool) any {
	if e := f.proxies[name]; e != nil && !empty {
		return e
	}
	return []any{}
}

// pipes is a listener and a dialer of net.Pipe, which counts.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once

	mu         sync.Mutex
	open, most int
}

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	a, b := net.Pipe()
	select {
	case p.conns <- b:
	case <-p.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	p.mu.Lock()
	p.open++
	p.most = max(p.most, p.open)
	p.mu.Unlock()
	return &counted{Conn: a, p: p}, nil
}

type counted struct {
	net.Conn
	p    *pipes
	once sync.Once
}

func (c *counted) Close() error {
	c.once.Do(func() {
		c.p.mu.Lock()
		c.p.open--
		c.p.mu.Unlock()
	})
	return c.Conn.Close()
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }
