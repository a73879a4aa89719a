package shop

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Roles are the programs of the shop.
var Roles = []string{"web", "api", "orders", "users", "pricing", "ledger"}

// Config of one program.
type Config struct {
	Role     string
	Instance string            // shown in answers, e.g. "users-2"
	Version  string            // shown in answers, e.g. "v2"
	Listen   string            // host:port
	Upstream map[string]string // upstream name → host:port that this program dials
	Listener net.Listener      // nil: Run listens on Listen
	Timeout  time.Duration     // of each call of an upstream; 0: 5 s
}

// Answer is what every program answers: who it is, whom it saw, and what its
// own upstreams said.
type Answer struct {
	Service  string    `json:"service"`
	Instance string    `json:"instance"`
	Version  string    `json:"version,omitempty"`
	Peer     string    `json:"peer"` // SPIFFE id of the caller as the callee's sidecar proved it; "" where none was told
	Path     string    `json:"path,omitempty"`
	Error    string    `json:"error,omitempty"`
	Calls    []*Answer `json:"calls,omitempty"`
}

// Find returns the first answer of that service in the tree, nil if there is
// none.
func (a *Answer) Find(service string) *Answer {
	if a == nil || a.Service == service {
		return a
	}
	for _, c := range a.Calls {
		if f := c.Find(service); f != nil {
			return f
		}
	}
	return nil
}

// FirstError returns the first error in the tree with the service that met it,
// "" if there is none.
func (a *Answer) FirstError() string {
	if a.Error != "" {
		return a.Service + ": " + a.Error
	}
	for _, c := range a.Calls {
		if e := c.FirstError(); e != "" {
			return e
		}
	}
	return ""
}

// Validate names what is wrong with the configuration.
func (c Config) Validate() error {
	if !slices.Contains(Roles, c.Role) {
		return fmt.Errorf("shop: no program %q: use one of %s", c.Role, strings.Join(Roles, ", "))
	}
	for _, u := range needs[c.Role] {
		if c.Upstream[u] == "" {
			return fmt.Errorf("shop: %s calls %s and was not told where: add --upstream %s=HOST:PORT", c.Role, u, u)
		}
	}
	return nil
}

func (c Config) timeout() time.Duration { return cmp.Or(c.Timeout, 5*time.Second) }

// needs says which upstreams a program calls.
var needs = map[string][]string{
	"web": {"api"},
	"api": {"orders", "users", "pricing", "ledger"},
}

// Run serves the program until ctx ends.
func Run(ctx context.Context, c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	l := c.Listener
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", c.Listen); err != nil {
			return fmt.Errorf("shop: %s cannot listen: %w", c.Role, err)
		}
	}
	switch c.Role {
	case "pricing":
		return servePricing(ctx, c, l)
	case "ledger":
		return serveLedger(ctx, c, l)
	}
	app := &httpApp{cfg: c, client: &http.Client{Timeout: c.timeout(), Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	if addr := c.Upstream["pricing"]; addr != "" {
		p, err := newPricingClient(addr)
		if err != nil {
			return err
		}
		defer p.Close()
		app.pricing = p
	}
	srv := &http.Server{Handler: app, ReadHeaderTimeout: 10 * time.Second}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("shop: %s: %w", c.Role, err)
		}
		return nil
	})
	g.Go(func() error {
		<-gctx.Done()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return srv.Shutdown(end)
	})
	return g.Wait()
}

// httpApp is web, api, orders or users.
type httpApp struct {
	cfg     Config
	client  *http.Client
	pricing *pricingClient
}

func (a *httpApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/health":
		fmt.Fprintln(w, "ok")
		return
	case "/slow": // holds the response for a while: something to watch during a drain
		select {
		case <-time.After(2 * time.Second):
		case <-r.Context().Done():
			return
		}
	}
	ans := &Answer{Service: a.cfg.Role, Instance: a.cfg.Instance, Version: a.cfg.Version, Path: r.URL.Path,
		Peer: PeerURI(r.Header.Values("X-Forwarded-Client-Cert"))}
	for _, name := range needs[a.cfg.Role] {
		ans.Calls = append(ans.Calls, a.call(r.Context(), name))
	}
	status := http.StatusOK
	if ans.FirstError() != "" {
		status = http.StatusBadGateway
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(ans) // the client is gone: nobody is left to tell
}

// call asks one upstream and turns every failure into an answer that names it.
func (a *httpApp) call(ctx context.Context, name string) *Answer {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.timeout())
	defer cancel()
	var ans *Answer
	var err error
	switch name {
	case "pricing":
		ans, err = a.pricing.Quote(ctx)
	case "ledger":
		ans, err = AskLedger(ctx, a.cfg.Upstream[name])
	default:
		ans, err = a.get(ctx, "http://"+a.cfg.Upstream[name]+"/"+name)
	}
	if err != nil {
		return &Answer{Service: name, Error: err.Error()}
	}
	return ans
}

func (a *httpApp) get(ctx context.Context, url string) (*Answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var ans Answer
	if err := json.NewDecoder(resp.Body).Decode(&ans); err != nil {
		return nil, fmt.Errorf("%s answered %s and no JSON: %w", url, resp.Status, err)
	}
	if ans.Service == "" {
		return nil, fmt.Errorf("%s answered %s", url, resp.Status)
	}
	return &ans, nil
}

// PeerURI takes the caller's SPIFFE id out of x-forwarded-client-cert: the URI
// of the last element, which is the one that the nearest proxy wrote.
func PeerURI(values []string) string {
	if len(values) == 0 {
		return ""
	}
	elements := strings.Split(values[len(values)-1], ",")
	for _, pair := range strings.Split(elements[len(elements)-1], ";") {
		if k, v, ok := strings.Cut(pair, "="); ok && strings.EqualFold(strings.TrimSpace(k), "URI") {
			return strings.Trim(v, `"`)
		}
	}
	return ""
}
