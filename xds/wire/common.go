package wire

import (
	"net/netip"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// metadataNamespace is parrel's part of filter_metadata.
const metadataNamespace = "parrel"

// duration is nil for zero, which everywhere means the default.
func duration(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

func durationp(d *time.Duration) *durationpb.Duration {
	if d == nil {
		return nil
	}
	return durationpb.New(*d)
}

func (d *decoder) duration(field string, p *durationpb.Duration) time.Duration {
	if p == nil {
		return 0
	}
	if err := p.CheckValid(); err != nil {
		d.fail(field, "is no duration: "+err.Error())
		return 0
	}
	return p.AsDuration()
}

// someDuration is a duration whose zero parrel cannot express: it means "never"
// to Envoy and "the default" here.
func (d *decoder) someDuration(field string, p *durationpb.Duration) time.Duration {
	v := d.duration(field, p)
	if p != nil && v == 0 {
		d.warn(field, "cannot be switched off; the default applies")
	}
	return v
}

func (d *decoder) durationp(field string, p *durationpb.Duration) *time.Duration {
	if p == nil {
		return nil
	}
	v := d.duration(field, p)
	return &v
}

func u32(v uint32) *wrapperspb.UInt32Value {
	if v == 0 {
		return nil
	}
	return wrapperspb.UInt32(v)
}

func u32p(v *uint32) *wrapperspb.UInt32Value {
	if v == nil {
		return nil
	}
	return wrapperspb.UInt32(*v)
}

func decodeU32p(v *wrapperspb.UInt32Value) *uint32 {
	if v == nil {
		return nil
	}
	n := v.GetValue()
	return &n
}

func boolean(v bool) *wrapperspb.BoolValue {
	if !v {
		return nil
	}
	return wrapperspb.Bool(true)
}

// ads is the source of everything that parrel serves: this very stream.
func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}

// fromADS refuses a source that is not this stream: parrel would look for the
// resource where it is not.
func (d *decoder) fromADS(field string, s *corev3.ConfigSource) {
	if d.static {
		d.fail(field, "there is no control plane that it could come from; write it into this file")
		return
	}
	if s.GetAds() == nil && s.GetSelf() == nil {
		d.fail(field, "only ADS (or self) is a source of configuration")
	}
}

func (e *encoder) metadata(m resource.Metadata) *corev3.Metadata {
	if len(m) == 0 {
		return nil
	}
	s := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(m))}
	for k, v := range m {
		s.Fields[k] = structpb.NewStringValue(v)
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{metadataNamespace: s}}
}

func (d *decoder) metadata(field string, m *corev3.Metadata) resource.Metadata {
	for ns := range m.GetFilterMetadata() {
		if ns != metadataNamespace {
			d.warnf(field+".filter_metadata", "only the namespace %q is read; %q is not", metadataNamespace, ns)
		}
	}
	var out resource.Metadata
	for k, v := range m.GetFilterMetadata()[metadataNamespace].GetFields() {
		s, ok := v.GetKind().(*structpb.Value_StringValue)
		if !ok || k == "" {
			d.warnf(field+".filter_metadata["+metadataNamespace+"]", "%q is not text under a name", k)
			continue
		}
		if out == nil {
			out = resource.Metadata{}
		}
		out[k] = s.StringValue
	}
	return out
}

func (e *encoder) address(a resource.Address) *corev3.Address {
	if a == (resource.Address{}) {
		return nil
	}
	if a.Path != "" {
		return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: a.Path}}}
	}
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: a.Host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port)},
	}}}
}

func (d *decoder) address(field string, a *corev3.Address) resource.Address {
	switch x := a.GetAddress().(type) {
	case nil:
	case *corev3.Address_Pipe:
		return resource.Address{Path: x.Pipe.GetPath()}
	case *corev3.Address_SocketAddress:
		s := x.SocketAddress
		if s.GetProtocol() != corev3.SocketAddress_TCP {
			d.failf(field+".socket_address.protocol", "%s is not TCP", s.GetProtocol())
		}
		return resource.Address{Host: s.GetAddress(), Port: d.port(field+".socket_address.port_value", s.GetPortValue())}
	default:
		d.fail(field, "is neither a socket address nor a pipe")
	}
	return resource.Address{}
}

func (d *decoder) port(field string, p uint32) uint16 {
	if p > 65535 {
		d.failf(field, "%d is no port", p)
	}
	return uint16(p)
}

func (e *encoder) cidr(p netip.Prefix) *corev3.CidrRange {
	return &corev3.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits()))}
}

func (e *encoder) cidrText(s string) *corev3.CidrRange {
	p, err := netip.ParsePrefix(s)
	if err != nil && e.err == nil {
		e.err = err
	}
	return e.cidr(p)
}

func (e *encoder) cidrs(ps []netip.Prefix) []*corev3.CidrRange {
	var out []*corev3.CidrRange
	for _, p := range ps {
		out = append(out, e.cidr(p))
	}
	return out
}

func (d *decoder) cidr(field string, c *corev3.CidrRange) netip.Prefix {
	a, err := netip.ParseAddr(c.GetAddressPrefix())
	n := c.GetPrefixLen().GetValue()
	if err != nil || a.Zone() != "" || n > uint32(a.BitLen()) {
		d.failf(field, "%q/%d is no CIDR prefix", c.GetAddressPrefix(), n)
		return netip.Prefix{}
	}
	if a.Is4In6() { // the same addresses have one form
		a = a.Unmap()
		n = max(n, 96) - 96
	}
	return netip.PrefixFrom(a, int(n)).Masked()
}

func (d *decoder) cidrs(field string, cs []*corev3.CidrRange) []netip.Prefix {
	var out []netip.Prefix
	for _, c := range cs {
		out = append(out, d.cidr(field, c))
	}
	return out
}

func (e *encoder) text(m *resource.StringMatch) *matcherv3.StringMatcher {
	out := &matcherv3.StringMatcher{IgnoreCase: m.IgnoreCase}
	switch m.Kind {
	case resource.StringExact:
		out.MatchPattern = &matcherv3.StringMatcher_Exact{Exact: m.Value}
	case resource.StringPrefix:
		out.MatchPattern = &matcherv3.StringMatcher_Prefix{Prefix: m.Value}
	case resource.StringSuffix:
		out.MatchPattern = &matcherv3.StringMatcher_Suffix{Suffix: m.Value}
	case resource.StringContains:
		out.MatchPattern = &matcherv3.StringMatcher_Contains{Contains: m.Value}
	case resource.StringRegex:
		out.MatchPattern = &matcherv3.StringMatcher_SafeRegex{SafeRegex: regex(m.Value)}
	}
	return out
}

func regex(expr string) *matcherv3.RegexMatcher { return &matcherv3.RegexMatcher{Regex: expr} }

// text decodes a string matcher; nil, with a failure, where it has no pattern
// that parrel knows.
func (d *decoder) text(field string, m *matcherv3.StringMatcher) *resource.StringMatch {
	out := &resource.StringMatch{IgnoreCase: m.GetIgnoreCase()}
	switch x := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		out.Kind, out.Value = resource.StringExact, x.Exact
	case *matcherv3.StringMatcher_Prefix:
		out.Kind, out.Value = resource.StringPrefix, x.Prefix
	case *matcherv3.StringMatcher_Suffix:
		out.Kind, out.Value = resource.StringSuffix, x.Suffix
	case *matcherv3.StringMatcher_Contains:
		out.Kind, out.Value = resource.StringContains, x.Contains
	case *matcherv3.StringMatcher_SafeRegex:
		out.Kind, out.Value, out.IgnoreCase = resource.StringRegex, x.SafeRegex.GetRegex(), false
	default:
		d.fail(field, "has no pattern that parrel knows")
		return nil
	}
	return out
}

func (e *encoder) headerMatch(m *resource.HeaderMatch) *routev3.HeaderMatcher {
	out := &routev3.HeaderMatcher{Name: m.Name, InvertMatch: m.Invert, TreatMissingHeaderAsEmpty: m.MissingAsEmpty}
	switch {
	case m.String != nil:
		out.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: e.text(m.String)}
	case m.IsRange:
		out.HeaderMatchSpecifier = &routev3.HeaderMatcher_RangeMatch{RangeMatch: &typev3.Int64Range{Start: m.RangeStart, End: m.RangeEnd}}
	default:
		out.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
	}
	return out
}

// headerMatch also takes the deprecated forms with the value in place.
func (d *decoder) headerMatch(field string, m *routev3.HeaderMatcher) *resource.HeaderMatch {
	out := &resource.HeaderMatch{Name: strings.ToLower(m.GetName()), Invert: m.GetInvertMatch(), MissingAsEmpty: m.GetTreatMissingHeaderAsEmpty()}
	old := func(k resource.StringKind, v string) {
		out.String = &resource.StringMatch{Kind: k, Value: v}
	}
	switch x := m.GetHeaderMatchSpecifier().(type) {
	case nil: // Envoy: no specifier is presence
		out.Present = true
	case *routev3.HeaderMatcher_PresentMatch:
		out.Present = true
		out.Invert = out.Invert != !x.PresentMatch
	case *routev3.HeaderMatcher_StringMatch:
		out.String = d.text(field+".string_match", x.StringMatch)
	case *routev3.HeaderMatcher_RangeMatch:
		out.IsRange, out.RangeStart, out.RangeEnd = true, x.RangeMatch.GetStart(), x.RangeMatch.GetEnd()
	case *routev3.HeaderMatcher_ExactMatch:
		old(resource.StringExact, x.ExactMatch)
	case *routev3.HeaderMatcher_PrefixMatch:
		old(resource.StringPrefix, x.PrefixMatch)
	case *routev3.HeaderMatcher_SuffixMatch:
		old(resource.StringSuffix, x.SuffixMatch)
	case *routev3.HeaderMatcher_ContainsMatch:
		old(resource.StringContains, x.ContainsMatch)
	case *routev3.HeaderMatcher_SafeRegexMatch:
		old(resource.StringRegex, x.SafeRegexMatch.GetRegex())
	}
	return out
}
