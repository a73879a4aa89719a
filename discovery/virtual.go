package discovery

import (
	"net/netip"
	"slices"
)

// Tags of virtual addresses: Consul's own, and one that a platform gives (a
// cluster IP), which is matched and never given out.
const (
	TagConsulVirtual = "consul-virtual"
	TagVirtual       = "virtual"
)

// Virtual returns the virtual addresses that the catalogue names for a service,
// each once, sorted, IPv4 before IPv6: those tagged "consul-virtual", and those
// tagged "virtual". Consul tags a service's proxies and its connect-native
// instances; in a definition file either may have them.
func (s *Service) Virtual() (consul, platform []netip.Addr) {
	for _, list := range [][]*Instance{s.Proxies, s.Instances} {
		for _, in := range list {
			consul = appendAddr(consul, in.Tagged[TagConsulVirtual])
			platform = appendAddr(platform, in.Tagged[TagVirtual])
		}
	}
	slices.SortFunc(consul, netip.Addr.Compare)
	slices.SortFunc(platform, netip.Addr.Compare)
	return slices.Compact(consul), slices.Compact(platform)
}

func appendAddr(to []netip.Addr, text string) []netip.Addr {
	if text == "" {
		return to
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" || a.IsUnspecified() {
		return to
	}
	return append(to, a.Unmap())
}

func tagged(r record) map[string]string {
	if len(r) == 0 {
		return nil
	}
	out := make(map[string]string, len(r))
	for tag := range r {
		out[tag] = r.rec(tag).str("Address")
	}
	return out
}

// virtualTag is the first tag of a virtual address that is none; "" where all
// are good.
func virtualTag(in map[string]string) string {
	for _, tag := range []string{TagConsulVirtual, TagVirtual} {
		if text, ok := in[tag]; ok && appendAddr(nil, text) == nil {
			return tag
		}
	}
	return ""
}

func validVirtual(in map[string]string) bool { return virtualTag(in) == "" }
