package intercept

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// PortRange is the ports From to To, both included. 0 is no port.
type PortRange struct{ From, To uint16 }

// Ports makes ranges of single ports.
func Ports(ports ...uint16) []PortRange {
	out := make([]PortRange, len(ports))
	for i, p := range ports {
		out[i] = PortRange{p, p}
	}
	return out
}

// ParsePorts reads "80" or "8000-8010".
func ParsePorts(s string) (PortRange, error) {
	from, to, isRange := strings.Cut(s, "-")
	if !isRange {
		to = from
	}
	a, err := strconv.ParseUint(from, 10, 16)
	b, err2 := strconv.ParseUint(to, 10, 16)
	if err != nil || err2 != nil || a == 0 || b < a {
		return PortRange{}, fmt.Errorf("intercept: %q is no port and no range of ports: write 80, or 8000-8010 with the lower one first, between 1 and 65535", s)
	}
	return PortRange{uint16(a), uint16(b)}, nil
}

// String is what ParsePorts reads.
func (r PortRange) String() string {
	if r.From == r.To {
		return strconv.Itoa(int(r.From))
	}
	return fmt.Sprintf("%d-%d", r.From, r.To)
}

// Contains says that p is one of them.
func (r PortRange) Contains(p uint16) bool { return r.From <= p && p <= r.To }

// mergePorts sorts ranges and joins those that touch or overlap.
func mergePorts(in ...[]PortRange) []PortRange {
	all := slices.Concat(in...)
	slices.SortFunc(all, func(a, b PortRange) int { return int(a.From) - int(b.From) })
	var out []PortRange
	for _, r := range all {
		if n := len(out); n > 0 && int(r.From) <= int(out[n-1].To)+1 {
			out[n-1].To = max(out[n-1].To, r.To)
			continue
		}
		out = append(out, r)
	}
	return out
}

func containsPort(rs []PortRange, p uint16) bool {
	return slices.ContainsFunc(rs, func(r PortRange) bool { return r.Contains(p) })
}

// word is an enumeration's name.
func word[T ~uint8](words []string, v T) string {
	if int(v) < len(words) {
		return words[v]
	}
	return "unknown(" + strconv.Itoa(int(v)) + ")"
}

// ParseInboundMode reads a flag's word; "" is redirect.
func ParseInboundMode(s string) (InboundMode, error) {
	return parseWord[InboundMode]("inbound mode", inboundModes, s)
}

// ParseInboundScope reads a flag's word; "" is all.
func ParseInboundScope(s string) (InboundScope, error) {
	return parseWord[InboundScope]("inbound scope", inboundScopes, s)
}

// ParseMode reads a flag's word; "" is nft.
func ParseMode(s string) (Mode, error) { return parseWord[Mode]("mode", modes, s) }

func parseWord[T ~uint8](kind string, words []string, s string) (T, error) {
	if s == "" {
		return 0, nil
	}
	i := slices.Index(words, s)
	if i < 0 {
		return 0, fmt.Errorf("intercept: there is no %s %q: use %s", kind, s, strings.Join(words, " or "))
	}
	return T(i), nil
}
