package rig

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// FaultProxy stands between a control plane and its Consul agent. It tells the
// truth until it is told to lie: then every list is empty, with an index that
// has advanced, as from servers that lost their memory, and the readings that
// only a leader can answer fail.
type FaultProxy struct {
	Addr string // host:port, for --http-addr

	target string
	client *http.Client

	mu     sync.Mutex
	lying  bool           // guarded by mu
	turn   chan struct{}  // guarded by mu; closed when lying changes
	told   map[string]int // guarded by mu: the index of the last lie by path
	counts map[string]int // guarded by mu: consistent readings by path
}

// FaultProxy starts one before the agent at target.
func (r *Rig) FaultProxy(target string) *FaultProxy {
	r.T.Helper()
	l, port := Listen(r.T)
	p := &FaultProxy{Addr: Addr(port), target: target, turn: make(chan struct{}), counts: map[string]int{}, told: map[string]int{},
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 200}}}
	srv := &http.Server{Handler: p}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) }) // ends with Close
	r.T.Cleanup(func() { srv.Close(); wg.Wait(); p.client.CloseIdleConnections() })
	return p
}

// Lie starts to answer with nothing. Questions that wait are answered at once.
func (p *FaultProxy) Lie() { p.set(true) }

// Heal tells the truth again.
func (p *FaultProxy) Heal() { p.set(false) }

func (p *FaultProxy) set(lying bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lying = lying
	clear(p.told)
	close(p.turn)
	p.turn = make(chan struct{})
}

// Consistent says how often a path was read with ?consistent.
func (p *FaultProxy) Consistent(path string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts[path]
}

func (p *FaultProxy) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	_, consistent := req.URL.Query()["consistent"]
	p.mu.Lock()
	lying, turn := p.lying, p.turn
	if consistent {
		p.counts[req.URL.Path]++
	}
	p.mu.Unlock()
	ctx, cancel := context.WithCancel(req.Context())
	defer cancel()
	var lie sync.WaitGroup
	defer lie.Wait()
	if !lying {
		// A question that waits when the lying starts is answered with a lie.
		ended := make(chan struct{})
		defer close(ended)
		lied := make(chan struct{})
		lie.Go(func() {
			select {
			case <-turn:
				close(lied)
				cancel()
			case <-ended:
			case <-ctx.Done():
			}
		})
		if p.forward(ctx, w, req) {
			return
		}
		select {
		case <-lied:
			p.mu.Lock()
			turn = p.turn
			p.mu.Unlock()
		default:
			http.Error(w, "the agent does not answer", http.StatusBadGateway)
			return
		}
	}
	p.empty(w, req, consistent, turn)
}

// forward passes a request on; false: nothing was written yet.
func (p *FaultProxy) forward(ctx context.Context, w http.ResponseWriter, req *http.Request) bool {
	out, err := http.NewRequestWithContext(ctx, req.Method, "http://"+p.target+req.URL.RequestURI(), req.Body)
	if err != nil {
		return false
	}
	out.Header = req.Header.Clone()
	resp, err := p.client.Do(out)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body) // the asker may have gone
	return true
}

func (p *FaultProxy) empty(w http.ResponseWriter, req *http.Request, consistent bool, turn chan struct{}) {
	lists := false
	for _, prefix := range []string{"/v1/health/", "/v1/catalog/", "/v1/config/"} {
		lists = lists || strings.HasPrefix(req.URL.Path, prefix)
	}
	if consistent || !lists {
		http.Error(w, "No cluster leader", http.StatusInternalServerError)
		return
	}
	// Each list has changed once, and then no more.
	index, _ := strconv.Atoi(req.URL.Query().Get("index")) // none: 0
	p.mu.Lock()
	told, ok := p.told[req.URL.Path]
	if !ok || index != told {
		told = index + 1
		p.told[req.URL.Path] = told
	}
	p.mu.Unlock()
	if index == told {
		wait, err := time.ParseDuration(req.URL.Query().Get("wait"))
		if err != nil {
			wait = time.Second
		}
		select {
		case <-turn:
		case <-req.Context().Done():
		case <-time.After(wait):
		}
	}
	w.Header().Set("X-Consul-Index", strconv.Itoa(told))
	w.Header().Set("X-Consul-KnownLeader", "true")
	w.Header().Set("X-Consul-LastContact", "0")
	w.Header().Set("Content-Type", "application/json")
	body := "[]"
	if req.URL.Path == "/v1/catalog/services" {
		body = "{}"
	}
	_, _ = io.WriteString(w, body) // the asker may have gone
}
