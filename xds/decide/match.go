package decide

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// truth is the outcome of a matcher. unknown is what cannot be told: a regex on
// bytes that are no text, a header where there is no request, a path that is
// none. Routing takes it for no; a rule that allows takes it for no, a rule that
// denies for yes, and a negation leaves it as it is. So nothing unknown opens a
// door.
type truth uint8

const (
	no truth = iota
	unknown
	yes
)

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

func (t truth) not() truth { return yes - t }

// compileFull compiles an RE2 expression that must match the whole text. The
// anchors are put around the parsed expression, not around its text, so that no
// text (an open \Q, for one) can reach beyond them.
func compileFull(expr string) (*regexp.Regexp, error) {
	tree, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return nil, err
	}
	return regexp.Compile(`\A(?:` + tree.String() + `)\z`)
}

// text is a compiled resource.StringMatch.
type text struct {
	kind  resource.StringKind
	value string // lower case where fold
	fold  bool
	re    *regexp.Regexp
}

func compileText(m *resource.StringMatch) (text, error) {
	t := text{kind: m.Kind, value: m.Value, fold: m.IgnoreCase}
	if m.Kind == resource.StringRegex {
		re, err := compileFull(m.Value)
		if err != nil {
			return t, err
		}
		t.re = re
	}
	return t, nil
}

func (t *text) match(s string) truth {
	switch t.kind {
	case resource.StringExact:
		if t.fold {
			return truthOf(equalFold(s, t.value))
		}
		return truthOf(s == t.value)
	case resource.StringPrefix:
		return truthOf(hasPrefix(s, t.value, t.fold))
	case resource.StringSuffix:
		return truthOf(len(s) >= len(t.value) && hasPrefix(s[len(s)-len(t.value):], t.value, t.fold))
	case resource.StringContains:
		if !t.fold {
			return truthOf(strings.Contains(s, t.value))
		}
		for i := 0; i+len(t.value) <= len(s); i++ {
			if hasPrefix(s[i:], t.value, true) {
				return yes
			}
		}
		return no
	}
	if !utf8.ValidString(s) {
		return unknown
	}
	return truthOf(t.re.MatchString(s))
}

var kindWords = [...]string{
	resource.StringExact: "equal to", resource.StringPrefix: "with the prefix", resource.StringSuffix: "with the suffix",
	resource.StringContains: "containing", resource.StringRegex: "matching the regex",
}

func (t *text) String() string {
	s := kindWords[t.kind] + " " + strconv.Quote(t.value)
	if t.fold {
		s += " (without regard to case)"
	}
	return s
}

// equalFold and hasPrefix fold ASCII letters only, as Envoy does.
func equalFold(a, b string) bool { return len(a) == len(b) && hasPrefix(a, b, true) }

func hasPrefix(s, prefix string, fold bool) bool {
	if len(s) < len(prefix) {
		return false
	}
	if !fold {
		return s[:len(prefix)] == prefix
	}
	for i := range len(prefix) {
		if lower(s[i]) != lower(prefix[i]) {
			return false
		}
	}
	return true
}

func lower(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		return b + 'a' - 'A'
	}
	return b
}

// header is a compiled resource.HeaderMatch.
type header struct {
	res  *resource.HeaderMatch
	name string
	kind headerKind
	text text
}

type headerKind uint8

const (
	headerPresent headerKind = iota
	headerText
	headerRange
)

func compileHeader(m *resource.HeaderMatch) (header, error) {
	h := header{res: m, name: strings.ToLower(m.Name)} // names have no case, whoever wrote the rule
	if h.name == "host" {
		h.name = ":authority"
	}
	switch {
	case m.String != nil:
		h.kind = headerText
		value := m.String
		if h.name == ":path" {
			value = spelled(value)
		}
		var err error
		if h.text, err = compileText(value); err != nil {
			return h, err
		}
	case m.IsRange:
		h.kind = headerRange
	}
	return h, nil
}

// lookup reads a header or pseudo-header.
func lookup(h Head, name string) (string, bool) {
	switch name {
	case ":method":
		return h.Method(), true
	case ":path":
		return h.Path(), true
	case ":authority":
		a := h.Authority()
		return a, a != ""
	case ":scheme":
		s := h.Scheme()
		return s, s != ""
	}
	return h.Header(name)
}

// match follows Envoy (config.route.v3.HeaderMatcher): a missing header matches
// no value, inverted or not, unless it is treated as empty.
func (m *header) match(h Head) truth {
	if h == nil {
		return unknown
	}
	v, ok := lookup(h, m.name)
	if m.name == ":path" && !strings.HasPrefix(v, "/") {
		return unknown
	}
	if !ok && m.res.MissingAsEmpty {
		v, ok = "", true
	}
	var t truth
	switch {
	case m.kind == headerPresent:
		t = truthOf(ok)
	case !ok:
		return no
	case m.kind == headerRange:
		n, err := strconv.ParseInt(v, 10, 64)
		t = truthOf(err == nil && n >= m.res.RangeStart && n < m.res.RangeEnd)
	case m.name == ":path":
		t = m.text.matchTarget(v)
	default:
		t = m.text.match(v)
	}
	if m.res.Invert {
		return t.not()
	}
	return t
}

func (m *header) String() string {
	s := "header " + m.name
	if m.res.Invert {
		s += " not"
	}
	switch m.kind {
	case headerPresent:
		return s + " present"
	case headerRange:
		return fmt.Sprintf("%s in [%d, %d)", s, m.res.RangeStart, m.res.RangeEnd)
	}
	return s + " " + m.text.String()
}

// found describes what the request has, for a trace.
func (m *header) found(h Head) string {
	if h == nil {
		return "there is no request at this layer"
	}
	v, ok := lookup(h, m.name)
	if !ok {
		return "it is missing"
	}
	return "it is " + strconv.Quote(v)
}

// queryValue returns the first value of a query parameter, undecoded as in
// Envoy, and whether it is there.
func queryValue(target, name string) (string, bool) {
	_, q, _ := strings.Cut(target, "?")
	q, _, _ = strings.Cut(q, "#")
	for q != "" {
		var pair string
		pair, q, _ = strings.Cut(q, "&")
		if k, v, _ := strings.Cut(pair, "="); k == name {
			return v, true
		}
	}
	return "", false
}
