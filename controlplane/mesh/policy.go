package mesh

import (
	"cmp"
	"slices"

	"github.com/parrel-mesh/parrel/discovery"
)

// wildcard stands for any name in intentions.
const wildcard = "*"

// Protocols of services, in Consul's words.
const (
	ProtocolTCP   = "tcp"
	ProtocolHTTP  = "http"
	ProtocolHTTP2 = "http2"
	ProtocolGRPC  = "grpc"
)

// Protocol is what a service speaks, and which entry says so.
type Protocol struct {
	Name  string // one of the four words
	Entry *discovery.ConfigEntry
	// Unknown is the word that the entry holds where it is none of the four;
	// Name is then tcp.
	Unknown string
}

// HTTP says whether requests can be told apart.
func (p Protocol) HTTP() bool { return p.Name != ProtocolTCP }

// Declared says whether any entry says what the service speaks. What is not
// declared counts as tcp, and is found out connection by connection where
// traffic is captured.
func (p Protocol) Declared() bool { return p.Entry != nil }

// Protocol returns what the service speaks: service-defaults, else the
// "protocol" of proxy-defaults, else tcp, as Consul has it.
func (s *Snapshot) Protocol(name discovery.ServiceName) Protocol {
	if d, e := s.ServiceDefaults(name); d != nil && d.Protocol != "" {
		return protocol(d.Protocol, e)
	}
	if d, e := s.ProxyDefaults(name.Partition); d != nil {
		if p, _ := d.Config["protocol"].(string); p != "" {
			return protocol(p, e)
		}
	}
	return Protocol{Name: ProtocolTCP}
}

func protocol(word string, e *discovery.ConfigEntry) Protocol {
	switch word {
	case ProtocolTCP, ProtocolHTTP, ProtocolHTTP2, ProtocolGRPC:
		return Protocol{Name: word, Entry: e}
	}
	return Protocol{Name: ProtocolTCP, Entry: e, Unknown: word}
}

// ServiceDefaults returns the service's service-defaults entry, or nils.
func (s *Snapshot) ServiceDefaults(name discovery.ServiceName) (*discovery.ServiceDefaults, *discovery.ConfigEntry) {
	e, ok := s.entries.get(entryKey(KindServiceDefaults, name))
	if !ok {
		return nil, nil
	}
	d, _ := e.Body.(*discovery.ServiceDefaults)
	return d, e
}

// ProxyDefaults returns the partition's proxy-defaults entry, or nils.
func (s *Snapshot) ProxyDefaults(partition string) (*discovery.ProxyDefaults, *discovery.ConfigEntry) {
	e, ok := s.entries.get(discovery.EntryKey{
		Kind: KindProxyDefaults, Partition: partition, Namespace: discovery.DefaultNamespace, Name: "global",
	})
	if !ok {
		return nil, nil
	}
	d, _ := e.Body.(*discovery.ProxyDefaults)
	return d, e
}

// RequestNormalization returns what the partition's mesh entry says of requests,
// or nils where it says nothing.
func (s *Snapshot) RequestNormalization(partition string) (*discovery.RequestNormalization, *discovery.ConfigEntry) {
	e, ok := s.entries.get(discovery.EntryKey{
		Kind: KindMesh, Partition: partition, Namespace: discovery.DefaultNamespace, Name: "mesh",
	})
	if !ok {
		return nil, nil
	}
	if n := requestNormalization(e); n != nil {
		return n, e
	}
	return nil, nil
}

func requestNormalization(e *discovery.ConfigEntry) *discovery.RequestNormalization {
	if e == nil {
		return nil
	}
	d, _ := e.Body.(*discovery.Mesh)
	if d == nil {
		return nil
	}
	return d.RequestNormalization
}

func entryKey(kind string, name discovery.ServiceName) discovery.EntryKey {
	return discovery.EntryKey{Kind: kind, Partition: name.Partition, Namespace: name.Namespace, Name: name.Name}
}

// Intention is one intention of one destination.
type Intention struct {
	discovery.SourceIntention
	Entry *discovery.ConfigEntry
	// Effect is what it comes to: Allow or Deny. An intention that parrel
	// cannot execute (with permissions, or an unknown action) denies.
	Effect discovery.IntentionAction
	// Reason says why Effect is not what the user wrote; "" where it is.
	Reason string
}

// Intentions returns the intentions that apply to a destination, in the order
// in which the first match decides: Consul's precedence, 9 to 1. Sources of
// equal precedence name different services. Where no intention matches,
// Snapshot.Default decides.
func (s *Snapshot) Intentions(dst discovery.ServiceName) []Intention {
	var out []Intention
	for _, key := range intentionKeys(dst) {
		e, ok := s.entries.get(key)
		if !ok {
			continue
		}
		body, _ := e.Body.(*discovery.ServiceIntentions)
		if body == nil {
			continue
		}
		for _, src := range body.Sources {
			out = append(out, newIntention(src, e))
		}
	}
	slices.SortStableFunc(out, func(a, b Intention) int {
		return cmp.Or(cmp.Compare(b.Precedence, a.Precedence), cmp.Compare(a.Name, b.Name),
			cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Peer, b.Peer))
	})
	return out
}

// intentionKeys names the entries that may hold intentions of a destination.
func intentionKeys(dst discovery.ServiceName) []discovery.EntryKey {
	exact := entryKey(KindServiceIntentions, dst)
	inNamespace, everywhere := exact, exact
	inNamespace.Name = wildcard
	everywhere.Name, everywhere.Namespace = wildcard, wildcard
	return []discovery.EntryKey{exact, inNamespace, everywhere}
}

func newIntention(src discovery.SourceIntention, e *discovery.ConfigEntry) Intention {
	i := Intention{SourceIntention: src, Entry: e}
	i.Namespace = cmp.Or(i.Namespace, discovery.DefaultNamespace)
	i.Partition = cmp.Or(i.Partition, e.Key.Partition, discovery.DefaultPartition)
	i.Precedence = precedence(i.Namespace, i.Name, e.Key)
	switch {
	case len(src.Permissions) > 0:
		i.Effect, i.Reason = discovery.Deny, "its permissions are not executed, so it denies"
	case src.Action == discovery.Allow, src.Action == discovery.Deny:
		i.Effect = src.Action
	default:
		i.Effect, i.Reason = discovery.Deny, "its action is neither allow nor deny, so it denies"
	}
	return i
}

// precedence is Consul's table: the destination counts before the source, and
// of each an exact name before any name before any namespace.
// https://developer.hashicorp.com/consul/docs/connect/intentions#precedence-and-match-order
func precedence(srcNamespace, srcName string, dst discovery.EntryKey) int {
	return 9 - 3*wildness(dst.Namespace, dst.Name) - wildness(srcNamespace, srcName)
}

func wildness(namespace, name string) int {
	switch {
	case namespace == wildcard:
		return 2
	case name == wildcard:
		return 1
	}
	return 0
}
