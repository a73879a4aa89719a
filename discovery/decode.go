package discovery

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// DecodeConfigEntry decodes what a user wrote for `consul config write`: the
// fields under their API names ("UpstreamConfig") or in snake case
// ("upstream_config"), durations as "30s" or as nanoseconds. A field or a kind
// that Consul does not have is an error, as it is for Consul. A kind that
// parrel does not model has Body nil and Set filled. The error is a
// *[FieldError].
//
// See https://developer.hashicorp.com/consul/docs/reference/config-entry.
func DecodeConfigEntry(fields map[string]any, origin Origin) (*ConfigEntry, error) {
	return decodeEntry(fields, &canonicaliser{origin: origin})
}

// DecodeServedEntry decodes an entry that a Consul server, which has accepted
// it, serves. A server may be newer than this binary: a field or a kind that
// is not known is kept in Set, so that analyze names it, and refuses nothing,
// with one exception: an intention that allows under a condition that is not
// known denies.
func DecodeServedEntry(fields map[string]any, origin Origin) (*ConfigEntry, error) {
	return decodeEntry(fields, &canonicaliser{origin: origin, keep: true})
}

// entryHeads are the fields that say what an entry is and Consul's own
// bookkeeping; all else is checked against the grammar of the kind.
var entryHeads = []string{"kind", "name", "createindex", "modifyindex", "hash"}

func decodeEntry(fields map[string]any, c *canonicaliser) (*ConfigEntry, error) {
	head, body := record{}, map[string]any{}
	for k, v := range fields {
		if f := fold(k); slices.Contains(entryHeads, f) {
			head[f] = v
		} else {
			body[k] = v
		}
	}
	kind := head.str("kind")
	grammar, known := schemas()[kind]
	switch {
	case kind == "":
		return nil, c.fail("Kind", "a config entry must say its kind", `write Kind = "service-defaults" or another kind`)
	case kind == registrationKind || !known && !c.keep:
		return nil, c.fail("Kind", "Consul has no config entry of kind "+strconv.Quote(kind), "correct its spelling")
	case !known:
		grammar = &schema{}
	}
	canonical, err := c.object(grammar, body, "", "")
	if err != nil {
		return nil, err
	}
	r := record(canonical)
	e := &ConfigEntry{
		Key: EntryKey{
			Kind:      kind,
			Partition: cmp.Or(r.str("Partition"), DefaultPartition),
			Namespace: cmp.Or(r.str("Namespace"), DefaultNamespace),
			Name:      head.str("name"),
		},
		Meta:   r.strMap("Meta"),
		Set:    c.sets(),
		Origin: c.origin,
	}
	if n, ok := integer(head["modifyindex"]); ok && n > 0 {
		e.Index = uint64(n)
	}
	if err := nameEntry(e, c); err != nil {
		return nil, err
	}
	switch kind {
	case "service-defaults":
		e.Body, err = serviceDefaults(r, c)
	case "proxy-defaults":
		e.Body, err = proxyDefaults(r, c)
	case "service-intentions":
		e.Body, err = serviceIntentions(r, e.Key, c)
	case "mesh":
		e.Body, err = meshEntry(r, c)
	}
	if err != nil {
		return nil, err
	}
	return e, nil
}

// nameEntry fills and checks the names that Consul fixes.
func nameEntry(e *ConfigEntry, c *canonicaliser) error {
	fixed := map[string]string{"proxy-defaults": "global", "mesh": "mesh"}[e.Key.Kind]
	switch {
	case e.Key.Kind == "mesh":
		e.Key.Name = fixed
	case e.Key.Name == "":
		return c.fail("Name", "a "+e.Key.Kind+" entry must have a name", `write Name = "…"`)
	case fixed != "" && e.Key.Name != fixed:
		return c.fail("Name", strconv.Quote(e.Key.Name)+" is no name for "+e.Key.Kind, "Consul has one such entry, named "+strconv.Quote(fixed))
	}
	return nil
}

func serviceDefaults(r record, c *canonicaliser) (*ServiceDefaults, error) {
	d := &ServiceDefaults{
		Protocol:                  strings.ToLower(r.str("Protocol")),
		MaxInboundConnections:     r.num("MaxInboundConnections"),
		LocalConnectTimeout:       time.Duration(r.num("LocalConnectTimeoutMs")) * time.Millisecond,
		LocalRequestTimeout:       time.Duration(r.num("LocalRequestTimeoutMs")) * time.Millisecond,
		BalanceInboundConnections: r.str("BalanceInboundConnections"),
		ExternalSNI:               r.str("ExternalSNI"),
	}
	var err error
	if d.Mode, d.TransparentProxy, d.MutualTLSMode, err = proxyMode(r, c); err != nil {
		return nil, err
	}
	for name, n := range map[string]int{"MaxInboundConnections": d.MaxInboundConnections,
		"LocalConnectTimeoutMs": r.num("LocalConnectTimeoutMs"), "LocalRequestTimeoutMs": r.num("LocalRequestTimeoutMs")} {
		if n < 0 {
			return nil, c.fail(name, "is negative", "write 0 or more")
		}
	}
	if r.has("Destination") {
		if d.Destination, err = destination(r.rec("Destination"), c); err != nil {
			return nil, err
		}
	}
	up := r.rec("UpstreamConfig")
	if up.has("Defaults") {
		d.UpstreamDefaults = upstreamConfig(up.rec("Defaults"))
		if d.UpstreamDefaults.Name != "" {
			return nil, c.fail("UpstreamConfig.Defaults.Name", "the defaults hold for every upstream and have no name", "remove it, or write an override")
		}
	}
	for i, o := range up.list("Overrides") {
		m, _ := o.(map[string]any)
		u := upstreamConfig(record(m))
		if u.Name == "" {
			return nil, c.fail("UpstreamConfig.Overrides["+strconv.Itoa(i)+"].Name", "an override must name its upstream", `write Name = "…"`)
		}
		d.UpstreamOverrides = append(d.UpstreamOverrides, u)
	}
	return d, nil
}

func proxyDefaults(r record, c *canonicaliser) (*ProxyDefaults, error) {
	mode, transparent, mutual, err := proxyMode(r, c)
	if err != nil {
		return nil, err
	}
	return &ProxyDefaults{Config: r.any("Config"), Mode: mode, TransparentProxy: transparent, MutualTLSMode: mutual}, nil
}

// proxyMode decodes what service-defaults and proxy-defaults both say of
// proxies. Of a server that may be newer every word is taken.
func proxyMode(r record, c *canonicaliser) (mode string, t TransparentProxy, mutualTLS string, err error) {
	mode, mutualTLS = r.str("Mode"), r.str("MutualTLSMode")
	t, err = transparentProxy(r.rec("TransparentProxy"), "TransparentProxy", c)
	switch {
	case err != nil:
	case !slices.Contains([]string{"", ModeDirect, ModeTransparent}, mode) && !c.keep:
		err = c.fail("Mode", strconv.Quote(mode)+" is no mode", `write "direct", "transparent", or leave it out`)
	case !slices.Contains([]string{"", MutualTLSStrict, MutualTLSPermissive}, mutualTLS) && !c.keep:
		err = c.fail("MutualTLSMode", strconv.Quote(mutualTLS)+" is no mode", `write "strict", "permissive", or leave it out`)
	}
	return mode, t, mutualTLS, err
}

func destination(r record, c *canonicaliser) (*Destination, error) {
	d := &Destination{Port: r.num("Port")}
	switch {
	case c.keep:
	case d.Port < 1 || d.Port > 65535:
		return nil, c.fail("Destination.Port", strconv.Itoa(d.Port)+" is no port", "write a number from 1 to 65535")
	case len(r.strs("Addresses")) == 0:
		return nil, c.fail("Destination.Addresses", "there is none", "write IP addresses or names of hosts")
	}
	for i, a := range r.strs("Addresses") {
		if !isHost(a) && !c.keep {
			return nil, c.fail("Destination.Addresses["+strconv.Itoa(i)+"]", strconv.Quote(a)+" is neither an IP address nor the name of a host", `write "10.0.0.1" or "db.example.com"`)
		}
		d.Addresses = append(d.Addresses, strings.ToLower(a))
	}
	return d, nil
}

func isHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || strings.Trim(strings.ToLower(label), "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return len(s) <= 253
}

func transparentProxy(r record, at string, c *canonicaliser) (TransparentProxy, error) {
	t := TransparentProxy{OutboundListenerPort: r.num("OutboundListenerPort"), DialedDirectly: r.flag("DialedDirectly")}
	if t.OutboundListenerPort < 0 || t.OutboundListenerPort > 65535 {
		return t, c.fail(at+".OutboundListenerPort", strconv.Itoa(t.OutboundListenerPort)+" is no port", "write a number from 1 to 65535")
	}
	return t, nil
}

func upstreamConfig(r record) *UpstreamConfig {
	limits := r.rec("Limits")
	return &UpstreamConfig{
		Name: r.str("Name"), Namespace: r.str("Namespace"), Partition: r.str("Partition"), Peer: r.str("Peer"),
		Protocol:                   strings.ToLower(r.str("Protocol")),
		ConnectTimeout:             time.Duration(r.num("ConnectTimeoutMs")) * time.Millisecond,
		BalanceOutboundConnections: r.str("BalanceOutboundConnections"),
		MaxConnections:             limits.num("MaxConnections"),
		MaxPendingRequests:         limits.num("MaxPendingRequests"),
		MaxConcurrentRequests:      limits.num("MaxConcurrentRequests"),
	}
}

func meshEntry(r record, c *canonicaliser) (*Mesh, error) {
	out := &Mesh{
		MeshDestinationsOnly:             r.rec("TransparentProxy").flag("MeshDestinationsOnly"),
		AllowEnablingPermissiveMutualTLS: r.flag("AllowEnablingPermissiveMutualTLS"),
	}
	in := r.rec("HTTP").rec("Incoming")
	if !in.has("RequestNormalization") {
		return out, nil
	}
	at := "HTTP.Incoming.RequestNormalization."
	r = in.rec("RequestNormalization")
	n := &RequestNormalization{
		InsecureDisablePathNormalization: r.flag("InsecureDisablePathNormalization"),
		MergeSlashes:                     r.flag("MergeSlashes"),
		PathWithEscapedSlashesAction:     r.str("PathWithEscapedSlashesAction"),
		HeadersWithUnderscoresAction:     r.str("HeadersWithUnderscoresAction"),
	}
	for _, f := range []struct {
		name, word string
		words      []string
	}{
		{"PathWithEscapedSlashesAction", n.PathWithEscapedSlashesAction, SlashActions()},
		{"HeadersWithUnderscoresAction", n.HeadersWithUnderscoresAction, UnderscoreActions()},
	} {
		if f.word != "" && !slices.Contains(f.words, f.word) && !c.keep {
			return nil, c.fail(at+f.name, strconv.Quote(f.word)+" is no action", "write one of "+strings.Join(f.words, ", "))
		}
	}
	out.RequestNormalization = n
	return out, nil
}

// plainSource are the fields of a source that an L4 decision knows.
var plainSource = []string{"Name", "Peer", "Partition", "Namespace", "Action", "Permissions", "Precedence", "Type",
	"Description", "LegacyID", "LegacyMeta", "LegacyCreateTime", "LegacyUpdateTime"}

func serviceIntentions(r record, key EntryKey, c *canonicaliser) (*ServiceIntentions, error) {
	body := &ServiceIntentions{}
	seen := map[[4]string]bool{}
	conditions := under(c.set, "JWT.")
	conditions = append(conditions, c.unknown...)
	for i, v := range r.list("Sources") {
		m, _ := v.(map[string]any)
		at := "Sources[" + strconv.Itoa(i) + "]"
		s, err := sourceIntention(record(m), key, at, c)
		if err != nil {
			return nil, err
		}
		id := [4]string{s.Name, s.Namespace, s.Partition, s.Peer}
		if seen[id] {
			return nil, c.fail(at, "the source "+strconv.Quote(s.Name)+" is named twice", "write one source for each name")
		}
		seen[id] = true
		failClosed(&s, record(m), slices.Clone(conditions))
		body.Sources = append(body.Sources, s)
	}
	if len(body.Sources) == 0 && !c.keep && key.Name == "*" && len(conditions) > 0 {
		return nil, c.fail("Sources", "a JWT requirement without a source says nothing", "name at least one source")
	}
	slices.SortStableFunc(body.Sources, func(a, b SourceIntention) int { return b.Precedence - a.Precedence })
	return body, nil
}

func sourceIntention(r record, key EntryKey, at string, c *canonicaliser) (SourceIntention, error) {
	s := SourceIntention{
		Name: r.str("Name"), Namespace: cmp.Or(r.str("Namespace"), DefaultNamespace), Partition: cmp.Or(r.str("Partition"), DefaultPartition),
		Peer: r.str("Peer"), Action: IntentionAction(r.str("Action")), Type: cmp.Or(r.str("Type"), "consul"), Description: r.str("Description"),
	}
	for _, v := range r.list("Permissions") {
		m, _ := v.(map[string]any)
		s.Permissions = append(s.Permissions, IntentionPermission{
			Action: IntentionAction(record(m).str("Action")),
			Set:    setOf(m, ""),
		})
	}
	valid := s.Action == Allow || s.Action == Deny
	switch {
	case s.Name == "":
		return s, c.fail(at+".Name", "a source must have a name", `write Name = "service" or "*"`)
	case valid && len(s.Permissions) > 0 && !c.keep:
		return s, c.fail(at, "has both an Action and Permissions", "write one of them")
	case !valid && len(s.Permissions) == 0 && !c.keep:
		return s, c.fail(at+".Action", strconv.Quote(string(s.Action))+" is no action", `write "allow" or "deny", or Permissions`)
	case !valid && len(s.Permissions) == 0:
		s.Action = Deny
	case s.Type != "consul" && !c.keep:
		return s, c.fail(at+".Type", strconv.Quote(s.Type)+" is no type of intention", `write "consul" or leave it out`)
	}
	s.Precedence = precedence(key.Namespace, key.Name, s.Namespace, s.Name)
	return s, nil
}

// failClosed turns an allowing source whose conditions parrel does not execute
// into one with Permissions, which denies.
func failClosed(s *SourceIntention, r record, conditions []string) {
	if s.Action != Allow {
		return
	}
	for _, name := range setOf(r, "") {
		head, _, _ := strings.Cut(strings.TrimSuffix(name, "[]"), ".")
		if !slices.Contains(plainSource, strings.TrimSuffix(head, "[]")) {
			conditions = append(conditions, name)
		}
	}
	if len(conditions) > 0 {
		s.Action, s.Permissions = "", []IntentionPermission{{Action: Allow, Set: conditions}}
	}
}

// precedence is Consul's order of intentions, 9 for exact names on both sides
// down to 1: the destination counts before the source, and a wildcard
// namespace makes the name a wildcard too.
// https://developer.hashicorp.com/consul/docs/secure-mesh/intention#precedence-and-match-order
func precedence(dstNS, dst, srcNS, src string) int {
	exact := func(ns, name string) int {
		switch {
		case ns == "*":
			return 0
		case name == "*":
			return 1
		}
		return 2
	}
	return 3*(exact(dstNS, dst)+1) - 2 + exact(srcNS, src)
}

// SetPaths lists the populated paths of fields under their API names, in the
// notation of ConfigEntry.Set, sorted; prefix goes before each.
func SetPaths(fields map[string]any, prefix string) []string { return setOf(fields, prefix) }

// setOf lists the populated paths of canonical fields.
func setOf(m map[string]any, prefix string) []string {
	var out []string
	for k, v := range m {
		if opaque, ok := v.(map[string]any); ok && k == "Config" {
			for own, v := range opaque { // the user's own keys: what is below them too
				out = append(out, pathsOf(v, join(prefix, "Config."+own))...)
			}
			continue
		}
		out = append(out, pathsOf(v, join(prefix, k))...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func pathsOf(v any, path string) []string {
	switch v := v.(type) {
	case map[string]any:
		return setOf(v, path)
	case []any:
		var out []string
		for _, e := range v {
			out = append(out, pathsOf(e, path+"[]")...)
		}
		return out
	}
	if isZero(v) {
		return nil
	}
	return []string{path}
}

func under(set []string, prefix string) []string {
	var out []string
	for _, s := range set {
		if strings.HasPrefix(s, prefix) {
			out = append(out, s)
		}
	}
	return out
}
