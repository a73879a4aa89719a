package compile

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// inlineRoutes is the snapshot's key for routes that stand in the listener.
func inlineRoutes(id engineID) string { return "inline:" + id.listener + "/" + id.chain }

// listener compiles one listener. Nothing of it is kept where there is an error.
func (b *build) listener(l *resource.Listener) (listener.Config, error) {
	c := listener.Config{Resource: l, Chains: make(map[string]*listener.Chain, len(l.Chains)+1)}
	engines := make(map[engineID]engine)
	inline := make(map[string]compiledRoutes)
	for i, fc := range chains(l) {
		field := fmt.Sprintf("filter_chains[%d]", i)
		if fc == l.Default {
			field = "default_filter_chain"
		}
		if _, dup := c.Chains[fc.Name]; dup {
			return c, fmt.Errorf("%s: a second filter chain is named %q", field, fc.Name)
		}
		ch, e, err := b.chain(l, fc, inline)
		if err != nil {
			return c, fmt.Errorf("%s: %w", field, err)
		}
		c.Chains[fc.Name] = ch
		engines[engineID{l.Name, fc.Name}] = e
	}
	for id, e := range engines {
		b.s.engines[id] = e
	}
	for key, r := range inline {
		b.s.routes[key] = r
	}
	return c, nil
}

func chains(l *resource.Listener) []*resource.FilterChain {
	out := make([]*resource.FilterChain, 0, len(l.Chains)+1)
	for i := range l.Chains {
		out = append(out, &l.Chains[i])
	}
	if l.Default != nil {
		out = append(out, l.Default)
	}
	return out
}

func (b *build) chain(l *resource.Listener, fc *resource.FilterChain, inline map[string]compiledRoutes) (*listener.Chain, engine, error) {
	id := engineID{l.Name, fc.Name}
	ch := &listener.Chain{Resource: fc}
	if err := b.transport(fc, ch); err != nil {
		return nil, engine{}, err
	}
	if err := authorisation(fc, ch); err != nil {
		return nil, engine{}, err
	}
	e := engine{made: madeOf(l, fc)}
	ch.Equal = livesBy(fc, e.made)
	if rc := routesOf(fc); rc != nil {
		key := inlineRoutes(id)
		if old := b.old.routes[key]; old.rc != nil && resource.Equal(old.rc, rc) {
			inline[key] = old
		} else {
			r, err := decide.CompileRoutes(rc)
			if err != nil {
				return nil, e, fmt.Errorf("route_config: %w", err)
			}
			inline[key] = compiledRoutes{rc, r}
		}
	}
	if err := b.filters(fc, id, &e); err != nil {
		return nil, e, err
	}
	if old := b.old.engines[id]; old.handler != nil && old.made == e.made {
		e.handler, e.look = old.handler, old.look
	} else {
		if err := b.engine(l, fc, id, &e); err != nil {
			return nil, e, err
		}
	}
	ch.Handler = e.handler
	return ch, e, nil
}

func routesOf(fc *resource.FilterChain) *resource.RouteConfig {
	if fc.HTTP == nil {
		return nil
	}
	return fc.HTTP.Route
}

// filters builds the chain's HTTP filters, or takes them over where nothing about
// them changed, with whatever state they keep.
func (b *build) filters(fc *resource.FilterChain, id engineID, e *engine) error {
	if fc.HTTP == nil {
		return nil
	}
	part := &resource.Listener{Chains: []resource.FilterChain{{HTTP: &resource.HTTPManager{Filters: fc.HTTP.Filters}}}}
	e.filtersMade = fmt.Sprintf("%016x", resource.Hash(part))
	if old := b.old.engines[id]; old.filters != nil && old.filtersMade == e.filtersMade {
		e.filters = old.filters
		return nil
	}
	var err error
	e.filters, err = b.deps.Filters(fc.HTTP)
	return err
}

// engine makes the chain's engine and puts it into e.
func (b *build) engine(l *resource.Listener, fc *resource.FilterChain, id engineID, e *engine) (err error) {
	switch {
	case fc.HTTP != nil:
		look := &lookup{id: id, key: fc.HTTP.RouteName, current: b.deps.Current}
		if fc.HTTP.Route != nil {
			look.key = inlineRoutes(id)
		}
		look.lastFilters.Store(e.filters) // until the snapshot is in force
		e.look = look
		e.handler, err = b.deps.HTTP(HTTP{Listener: l, Chain: fc, Manager: fc.HTTP, Routes: look.routes, Filters: look.filters})
		return err
	case fc.TCP != nil:
		e.handler, err = b.deps.TCP(TCP{Listener: l, Chain: fc, Proxy: fc.TCP})
		return err
	}
	return errors.New("filters: no terminal filter that parrel executes (tcp_proxy or http_connection_manager)")
}

// madeOf digests what an engine is made of: the terminal filter without inline
// routes and HTTP filters, which it looks up, and what the listener says of both
// ends.
func madeOf(l *resource.Listener, fc *resource.FilterChain) string {
	part := &resource.Listener{Name: l.Name, Direction: l.Direction, Metadata: l.Metadata,
		Chains: []resource.FilterChain{{Name: fc.Name, TCP: fc.TCP}}}
	if fc.HTTP != nil {
		m := *fc.HTTP
		m.Route, m.Filters = nil, nil
		part.Chains[0].HTTP = &m
	}
	return fmt.Sprintf("%016x", resource.Hash(part))
}

// livesBy digests what an open connection depends on: how it was secured and,
// for HTTP, its engine. Filters are not in it: each request is asked of those in
// force, and what depends on the connection alone is in Chain.Reauthorise. Opaque bytes have no boundary at which to end, so a
// change of where new ones go leaves the open ones alone.
func livesBy(fc *resource.FilterChain, made string) string {
	kind := "tcp"
	if fc.HTTP != nil {
		kind = made
	}
	part := &resource.Listener{Chains: []resource.FilterChain{{TLS: fc.TLS}}}
	return fmt.Sprintf("%s %016x", kind, resource.Hash(part))
}

// transport fills in what TLS needs.
func (b *build) transport(fc *resource.FilterChain, ch *listener.Chain) error {
	t := fc.TLS
	if t == nil {
		return nil
	}
	if b.deps.Static {
		return b.serverTLS(t, ch)
	}
	if err := identityOnly("transport_socket", &t.TLSParams); err != nil {
		return err
	}
	if t.RequireClientCert && t.Trust.SDS == "" {
		return errors.New("transport_socket.require_client_certificate: there is no validation context to check client certificates against")
	}
	if name := t.Trust.SDS; name != "" {
		current := b.deps.Current
		ch.Trust = func() *x509bundle.Set {
			if set := current().Trust(name); set != nil {
				return set
			}
			return x509bundle.NewSet() // not there: nobody is trusted
		}
	}
	allowed, err := peers(t.PeerSANs)
	if err != nil {
		return fmt.Errorf("transport_socket.match_typed_subject_alt_names%w", err)
	}
	ch.PeerAllowed = allowed
	return nil
}

// identityOnly refuses certificate sources that a sidecar does not have: its
// own identity never comes by a file or a provider that configuration names.
func identityOnly(field string, p *resource.TLSParams) error {
	switch {
	case p.Certificate.Provider != "" || p.Certificate.Files != nil,
		p.Certificate.SDS != "" && p.Certificate.SDS != resource.SecretIdentity:
		return fmt.Errorf("%s.tls_certificate: a sidecar presents its own identity only (SDS secret %q)", field, resource.SecretIdentity)
	case p.Trust.Provider != "" || p.Trust.Files != nil:
		return fmt.Errorf("%s.validation_context: trust comes by SDS only (secret %q)", field, resource.SecretTrust)
	case len(p.PeerDNS) > 0 || p.AcceptUntrusted || len(p.Curves) > 0:
		return fmt.Errorf("%s: DNS names, ACCEPT_UNTRUSTED and ecdh_curves are for static configuration only", field)
	}
	return nil
}

// peers compiles the list of peers that are accepted; nil: any.
func peers(sans []resource.StringMatch) (func(spiffeid.ID) error, error) {
	if len(sans) == 0 {
		return nil, nil
	}
	match := make([]func(string) bool, len(sans))
	for i, m := range sans {
		f, err := matcher(m)
		if err != nil {
			return nil, fmt.Errorf("[%d]: %w", i, err)
		}
		match[i] = f
	}
	return func(id spiffeid.ID) error {
		s := id.String()
		for _, f := range match {
			if f(s) {
				return nil
			}
		}
		return fmt.Errorf("%s is none of the identities that are accepted here", s)
	}, nil
}

func matcher(m resource.StringMatch) (func(string) bool, error) {
	fold := func(s string) string { return s }
	if m.IgnoreCase {
		fold = strings.ToLower
	}
	v := fold(m.Value)
	switch m.Kind {
	case resource.StringExact:
		return func(s string) bool { return fold(s) == v }, nil
	case resource.StringPrefix:
		return func(s string) bool { return strings.HasPrefix(fold(s), v) }, nil
	case resource.StringSuffix:
		return func(s string) bool { return strings.HasSuffix(fold(s), v) }, nil
	case resource.StringContains:
		return func(s string) bool { return strings.Contains(fold(s), v) }, nil
	case resource.StringRegex:
		re, err := regexp.Compile(`^(?:` + m.Value + `)$`)
		if err != nil {
			return nil, fmt.Errorf("safe_regex: %w", err)
		}
		return re.MatchString, nil
	}
	return nil, fmt.Errorf("unknown kind %d of match", m.Kind)
}

// authorisation compiles the network RBAC filters, and those HTTP RBAC filters
// that depend on the connection alone: they can end an open connection without
// a request's head.
func authorisation(fc *resource.FilterChain, ch *listener.Chain) error {
	for i, f := range fc.Network {
		if f.RBAC == nil {
			return fmt.Errorf("filters[%d]: %q is no network filter that parrel executes", i, f.Name)
		}
		r, err := decide.CompileRBAC(f.RBAC)
		if err != nil {
			return fmt.Errorf("filters[%d].rbac: %w", i, err)
		}
		ch.Authorise = append(ch.Authorise, r)
	}
	if fc.HTTP == nil {
		return nil
	}
	for i, f := range fc.HTTP.Filters {
		if f.RBAC == nil {
			continue
		}
		r, err := decide.CompileRBAC(f.RBAC)
		if err != nil {
			return fmt.Errorf("http_filters[%d].rbac: %w", i, err)
		}
		if connectionOnly(f.RBAC.Rules) {
			ch.Reauthorise = append(ch.Reauthorise, r)
		}
	}
	return nil
}

// connectionOnly says that rules look at nothing of a request's head.
func connectionOnly(r *resource.RBACRules) bool {
	if r == nil {
		return false // enforces nothing
	}
	for i := range r.Policies {
		for j := range r.Policies[i].Permissions {
			if !permissionConnectionOnly(&r.Policies[i].Permissions[j]) {
				return false
			}
		}
		for j := range r.Policies[i].Principals {
			if !principalConnectionOnly(&r.Policies[i].Principals[j]) {
				return false
			}
		}
	}
	return true
}

func permissionConnectionOnly(p *resource.Permission) bool {
	if p.Header != nil || p.Path != nil || p.Not != nil && !permissionConnectionOnly(p.Not) {
		return false
	}
	for i := range p.And {
		if !permissionConnectionOnly(&p.And[i]) {
			return false
		}
	}
	for i := range p.Or {
		if !permissionConnectionOnly(&p.Or[i]) {
			return false
		}
	}
	return true
}

func principalConnectionOnly(p *resource.Principal) bool {
	if p.Header != nil || p.Path != nil || p.Not != nil && !principalConnectionOnly(p.Not) {
		return false
	}
	for i := range p.And {
		if !principalConnectionOnly(&p.And[i]) {
			return false
		}
	}
	for i := range p.Or {
		if !principalConnectionOnly(&p.Or[i]) {
			return false
		}
	}
	return true
}
