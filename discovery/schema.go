package discovery

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// FieldError says which field of something that the user wrote is wrong.
type FieldError struct {
	Origin Origin
	Path   string // "Sources[0].Action"; "" is the whole
	Reason string
	Remedy string
}

func (e *FieldError) Error() string {
	var b strings.Builder
	b.WriteString("discovery: ")
	if e.Origin.Place != "" {
		b.WriteString(e.Origin.String() + ": ")
	}
	if e.Path != "" {
		b.WriteString(e.Path + ": ")
	}
	b.WriteString(e.Reason)
	if e.Remedy != "" {
		b.WriteString("; " + e.Remedy)
	}
	return b.String()
}

// String gives "place:line", or the place alone where there is no line.
func (o Origin) String() string {
	if o.Line == 0 {
		return o.Place
	}
	return o.Place + ":" + strconv.Itoa(o.Line)
}

// schema is the grammar of one kind, made of its paths in EntryFields.
type schema struct {
	name   string             // API name
	leaf   byte               // a type letter of fieldTypes; 0 for struct, list and map
	fields map[string]*schema // struct: by folded name
	elem   *schema            // list or map
	isMap  bool
}

// schemas are built once, of generated constants.
var schemas = sync.OnceValue(func() map[string]*schema {
	all := make(map[string]*schema, len(EntryFields))
	for kind, paths := range EntryFields {
		root := &schema{fields: map[string]*schema{}}
		for i, p := range paths {
			root.add(strings.Split(p, "."), fieldTypes[kind][i])
		}
		all[kind] = root
	}
	return all
})

func (s *schema) add(segments []string, leaf byte) {
	name, lists := segments[0], 0
	for strings.HasSuffix(name, "[]") {
		name, lists = name[:len(name)-2], lists+1
	}
	var at *schema
	if name == "*" {
		s.isMap = true
		if s.elem == nil {
			s.elem = &schema{}
		}
		at = s.elem
	} else {
		if s.fields == nil {
			s.fields = map[string]*schema{}
		}
		key := fold(name)
		if s.fields[key] == nil {
			s.fields[key] = &schema{name: name}
		}
		at = s.fields[key]
	}
	for range lists {
		if at.elem == nil {
			at.elem = &schema{}
		}
		at = at.elem
	}
	if len(segments) == 1 {
		at.leaf = leaf
		return
	}
	at.add(segments[1:], leaf)
}

// fold makes one of the spellings that Consul accepts: TLSSkipVerify,
// tls_skip_verify, tlsskipverify.
func fold(name string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(name))
}

// aliases are spellings that differ in more than case and underscores, by the
// folded name of the field that holds the struct.
var aliases = map[string]map[string]string{
	"check":  {"id": "checkid", "args": "scriptargs"},
	"checks": {"id": "checkid", "args": "scriptargs"},
}

// canonicaliser walks what the user wrote along a schema.
type canonicaliser struct {
	origin  Origin
	keep    bool     // unknown fields are listed, not refused
	set     []string // paths of populated fields, in the notation of ConfigEntry.Set
	unknown []string
}

func (c *canonicaliser) fail(path, reason, remedy string) error {
	return &FieldError{Origin: c.origin, Path: path, Reason: reason, Remedy: remedy}
}

// object gives m with API names and the schema's types. where is the path with
// indexes, for errors; set the path in the notation of Set.
func (c *canonicaliser) object(s *schema, m map[string]any, where, set string) (map[string]any, error) {
	out := make(map[string]any, len(m))
	from := make(map[string]string, len(m))
	for _, key := range slices.Sorted(maps.Keys(m)) {
		f, ok := s.fields[fold(key)]
		if !ok {
			if a := aliases[fold(s.name)][fold(key)]; a != "" {
				f, ok = s.fields[a]
			}
		}
		if !ok {
			if c.keep {
				c.set = append(c.set, join(set, key))
				c.unknown = append(c.unknown, join(set, key))
				continue
			}
			return nil, c.fail(join(where, key), "Consul has no such field here", "remove it or correct its spelling"+c.nearest(s, key))
		}
		if other, twice := from[f.name]; twice {
			return nil, c.fail(join(where, key), "the same field as "+strconv.Quote(other), "write it once")
		}
		from[f.name] = key
		v, err := c.value(f, m[key], join(where, key), join(set, f.name))
		if err != nil {
			return nil, err
		}
		if v != nil {
			out[f.name] = v
		}
	}
	return out, nil
}

func (c *canonicaliser) value(s *schema, v any, where, set string) (any, error) {
	switch {
	case v == nil:
		return nil, nil
	case s.leaf != 0:
		got, err := leafValue(s.leaf, v)
		if err != nil {
			return nil, c.fail(where, err.Error(), "write it as Consul documents it")
		}
		if !isZero(got) {
			c.set = append(c.set, set)
		}
		return got, nil
	case s.isMap:
		return c.mapValue(s, v, where, set)
	case s.elem != nil:
		return c.list(s, v, where, set)
	}
	// HCL writes one block as a list of one object.
	if l, ok := v.([]any); ok && len(l) == 1 {
		v = l[0]
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, c.fail(where, "this is a block of fields, not "+describe(v), "write it as { … }, once")
	}
	return c.object(s, m, where, set)
}

func (c *canonicaliser) list(s *schema, v any, where, set string) (any, error) {
	l, ok := v.([]any)
	if !ok {
		l = []any{v}
	}
	elem := *s.elem
	elem.name = s.name
	out := make([]any, 0, len(l))
	for i, e := range l {
		got, err := c.value(&elem, e, where+"["+strconv.Itoa(i)+"]", set+"[]")
		if err != nil {
			return nil, err
		}
		if got != nil {
			out = append(out, got)
		}
	}
	return out, nil
}

func (c *canonicaliser) mapValue(s *schema, v any, where, set string) (any, error) {
	if l, ok := v.([]any); ok && len(l) == 1 {
		v = l[0]
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, c.fail(where, "this is a map, not "+describe(v), "write it as { key = value … }")
	}
	out := make(map[string]any, len(m))
	for _, key := range slices.Sorted(maps.Keys(m)) {
		step := "*" // the key is the user's own and may hold dots
		if s.elem.leaf != 0 {
			step = key
		}
		got, err := c.value(s.elem, m[key], join(where, key), join(set, step))
		if err != nil {
			return nil, err
		}
		if got != nil {
			out[key] = got
		}
	}
	return out, nil
}

// nearest proposes a field whose folded name begins alike.
func (c *canonicaliser) nearest(s *schema, key string) string {
	k := fold(key)
	best, n := "", 3
	for _, name := range slices.Sorted(maps.Keys(s.fields)) {
		common := 0
		for common < min(len(k), len(name)) && k[common] == name[common] {
			common++
		}
		if common > n {
			best, n = s.fields[name].name, common
		}
	}
	if best == "" {
		return ""
	}
	return " (is " + best + " meant?)"
}

func (c *canonicaliser) sets() []string {
	slices.Sort(c.set)
	return slices.Compact(c.set)
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func describe(v any) string {
	switch v := v.(type) {
	case map[string]any:
		return "a block"
	case []any:
		return fmt.Sprintf("a list of %d", len(v))
	case string:
		return fmt.Sprintf("the string %q", v)
	}
	return fmt.Sprintf("%v", v)
}

func isZero(v any) bool {
	switch v := v.(type) {
	case string:
		return v == ""
	case bool:
		return !v
	case int64:
		return v == 0
	case float64:
		return v == 0
	case time.Duration:
		return v == 0
	}
	return v == nil
}

// leafValue converts as Consul's weakly typed decoding does: numbers and
// booleans may be written as strings.
func leafValue(typ byte, v any) (any, error) {
	switch typ {
	case 'a':
		return v, nil
	case 's', 't':
		switch v := v.(type) {
		case string:
			return v, nil
		case json.Number:
			return v.String(), nil
		case bool, int, int64, float64:
			return fmt.Sprint(v), nil
		}
		return nil, fmt.Errorf("want a string, not %s", describe(v))
	case 'b':
		switch v := v.(type) {
		case bool:
			return v, nil
		case string:
			if b, err := strconv.ParseBool(v); err == nil {
				return b, nil
			}
		}
		return nil, fmt.Errorf("want true or false, not %s", describe(v))
	case 'i':
		if n, ok := integer(v); ok {
			return n, nil
		}
		return nil, fmt.Errorf("want a whole number, not %s", describe(v))
	case 'f':
		switch v := v.(type) {
		case float64:
			return v, nil
		case json.Number:
			return v.Float64()
		}
		if n, ok := integer(v); ok {
			return float64(n), nil
		}
		return nil, fmt.Errorf("want a number, not %s", describe(v))
	case 'd':
		if s, ok := v.(string); ok {
			if d, err := time.ParseDuration(s); err == nil {
				return d, nil
			}
		}
		if n, ok := integer(v); ok {
			return time.Duration(n), nil
		}
		return nil, fmt.Errorf("want a duration such as \"30s\" or a number of nanoseconds, not %s", describe(v))
	}
	return nil, fmt.Errorf("type %q has no rule", typ)
}

func integer(v any) (int64, bool) {
	switch v := v.(type) {
	case int:
		return int64(v), true
	case int64:
		return v, true
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return int64(v), true
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n, true
		}
		if f, err := v.Float64(); err == nil {
			return integer(f)
		}
	case string:
		n, err := strconv.ParseInt(v, 0, 64)
		return n, err == nil
	}
	return 0, false
}

// record reads canonical fields; a field that is not there is its zero value.
type record map[string]any

func (r record) str(name string) string      { s, _ := r[name].(string); return s }
func (r record) num(name string) int         { n, _ := r[name].(int64); return int(n) }
func (r record) flag(name string) bool       { b, _ := r[name].(bool); return b }
func (r record) rec(name string) record      { m, _ := r[name].(map[string]any); return m }
func (r record) list(name string) []any      { l, _ := r[name].([]any); return l }
func (r record) has(name string) bool        { _, ok := r[name]; return ok }
func (r record) any(n string) map[string]any { m, _ := r[n].(map[string]any); return m }

func (r record) strs(name string) []string {
	var out []string
	for _, v := range r.list(name) {
		if s, ok := v.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

func (r record) strMap(name string) map[string]string {
	m := r.any(name)
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[k], _ = v.(string)
	}
	return out
}
