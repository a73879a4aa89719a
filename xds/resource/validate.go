package resource

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// check collects what is wrong with the fields of one resource.
type check struct{ errs []error }

func (c *check) failf(field, format string, a ...any) {
	c.errs = append(c.errs, fieldErrorf(field, format, a...))
}

// err is nil, one *FieldError, or a join of several.
func (c *check) err() error {
	if len(c.errs) == 1 {
		return c.errs[0]
	}
	return errors.Join(c.errs...)
}

func (c *check) name(field, v string) {
	if v == "" {
		c.failf(field, "must not be empty; give it a name")
	} else {
		c.text(field, v)
	}
}

// text: protobuf strings are UTF-8, so other text could not travel.
func (c *check) text(field, v string) {
	if !utf8.ValidString(v) {
		c.failf(field, "is not valid UTF-8")
	}
}

func (c *check) duration(field string, d time.Duration) {
	if d < 0 {
		c.failf(field, "is negative (%s); give zero or more", d)
	}
}

func (c *check) durationp(field string, d *time.Duration) {
	if d != nil {
		c.duration(field, *d)
	}
}

func (c *check) regex(field, expr string) {
	if _, err := regexp.Compile(expr); err != nil {
		c.failf(field, "does not compile as RE2: %v", err)
	}
}

func (c *check) cidr(field, s string) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		c.failf(field, "%q is no CIDR prefix such as 10.0.0.0/8", s)
	case p.Masked().String() != s:
		c.failf(field, "%q is not in canonical form; write %s", s, p.Masked())
	}
}

func (c *check) prefixes(field string, ps []netip.Prefix) {
	for i, p := range ps {
		if !p.IsValid() || p != p.Masked() {
			c.failf(fmt.Sprintf("%s[%d]", field, i), "%s is not a masked CIDR prefix", p)
		}
	}
}

func (c *check) metadata(field string, m Metadata) {
	for k, v := range m {
		if k == "" || !utf8.ValidString(k) || !utf8.ValidString(v) {
			c.failf(fmt.Sprintf("%s[%q]", field, k), "keys and values are non-empty keys and UTF-8 text")
		}
	}
}

// one reports unless exactly one of the named parts is set.
func (c *check) one(field string, parts map[string]bool) {
	n := 0
	for _, set := range parts {
		if set {
			n++
		}
	}
	if n != 1 {
		c.failf(field, "has %d of %s set; exactly one is needed", n, strings.Join(sortedKeys(parts), ", "))
	}
}

func sortedKeys(m map[string]bool) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// address checks an address; dns allows a host name.
func (c *check) address(field string, a Address, dns bool) {
	if a.Path != "" {
		if a.Host != "" || a.Port != 0 {
			c.failf(field+".pipe.path", "a Unix socket has neither host nor port")
		}
		c.text(field+".pipe.path", a.Path)
		return
	}
	at := field + ".socket_address.address"
	if a.Host == "" {
		c.failf(at, "must not be empty; give an IP address")
		return
	}
	if ip, err := netip.ParseAddr(a.Host); err == nil {
		if ip.Zone() != "" {
			c.failf(at, "%q has a zone; give the address without it", a.Host)
		}
	} else if !dns {
		c.failf(at, "%q is not an IP address", a.Host)
	} else {
		c.text(at, a.Host)
	}
}

func (c *check) stringMatch(field string, m *StringMatch) {
	c.text(field, m.Value)
	switch m.Kind {
	case StringExact:
	case StringPrefix, StringSuffix, StringContains:
		if m.Value == "" {
			c.failf(field, "an empty prefix, suffix or part matches everything; leave the matcher out")
		}
	case StringRegex:
		c.regex(field+".safe_regex.regex", m.Value)
		if m.Value == "" {
			c.failf(field+".safe_regex.regex", "must not be empty")
		}
		if m.IgnoreCase {
			c.failf(field+".ignore_case", "has no effect on a regex; write (?i) into it")
		}
	default:
		c.failf(field, "unknown kind %d of string match", m.Kind)
	}
}

func (c *check) headerName(field, name string) {
	if name == "" {
		c.failf(field, "must not be empty; give a header name")
		return
	}
	if name != strings.ToLower(name) {
		c.failf(field, "%q is not in lower case", name)
	}
	for i := range len(name) {
		if b := name[i]; b <= ' ' || b >= 0x7f || (b == ':' && i > 0) {
			c.failf(field, "%q is no header name", name)
			return
		}
	}
}

func (c *check) headerMatch(field string, m *HeaderMatch) {
	c.headerName(field+".name", m.Name)
	c.one(field, map[string]bool{"present_match": m.Present, "string_match": m.String != nil, "range_match": m.IsRange})
	if m.String != nil {
		c.stringMatch(field+".string_match", m.String)
	}
	if !m.IsRange && (m.RangeStart != 0 || m.RangeEnd != 0) {
		c.failf(field+".range_match", "bounds are given without the range")
	}
	if m.IsRange && m.RangeStart >= m.RangeEnd {
		c.failf(field+".range_match", "[%d, %d) is empty", m.RangeStart, m.RangeEnd)
	}
}

func (c *check) mutations(field string, m *HeaderMutations) {
	for i, h := range m.Remove {
		c.headerName(fmt.Sprintf("%s_headers_to_remove[%d]", field, i), h)
	}
	for i, h := range append(append([]Header(nil), m.Set...), m.Add...) {
		at := fmt.Sprintf("%s_headers_to_add[%d].header", field, i)
		c.headerName(at+".key", h.Name)
		c.text(at+".value", h.Value)
		if strings.ContainsAny(h.Value, "\r\n\x00") {
			c.failf(at+".value", "contains a line break or NUL")
		}
	}
}

func (c *check) weights(field string, ws []WeightedCluster) {
	var sum uint64
	for i := range ws {
		at := fmt.Sprintf("%s.clusters[%d]", field, i)
		c.name(at+".name", ws[i].Name)
		c.mutations(at+".request", &ws[i].RequestHeaders)
		c.mutations(at+".response", &ws[i].ResponseHeaders)
		sum += uint64(ws[i].Weight)
	}
	if sum == 0 {
		c.failf(field, "the weights sum to zero; nothing would be sent anywhere")
	}
	if sum > math.MaxUint32 {
		c.failf(field, "the weights sum to more than %d", uint32(math.MaxUint32))
	}
}
