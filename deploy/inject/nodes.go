package inject

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxNodes bounds what aliases may expand to.
const maxNodes = 200_000

// resolver expands aliases and merge keys.
type resolver struct {
	left int
	open map[*yaml.Node]bool
}

var (
	errTooLarge = errors.New("its aliases expand to more than 200,000 values")
	errCycle    = errors.New("an alias contains itself")
)

// resolve gives a copy of n without aliases, anchors, merge keys and comments.
// Positions stay those of the text.
func resolve(n *yaml.Node) (*yaml.Node, error) {
	r := &resolver{left: maxNodes, open: map[*yaml.Node]bool{}}
	return r.node(n)
}

func (r *resolver) node(n *yaml.Node) (*yaml.Node, error) {
	if r.left--; r.left < 0 {
		return nil, errTooLarge
	}
	if n.Kind == yaml.AliasNode {
		if r.open[n.Alias] {
			return nil, errCycle
		}
		return r.node(n.Alias)
	}
	c := &yaml.Node{Kind: n.Kind, Style: n.Style, Tag: n.Tag, Value: n.Value, Line: n.Line, Column: n.Column}
	if len(n.Content) == 0 {
		return c, nil
	}
	r.open[n] = true
	defer delete(r.open, n)
	if n.Kind == yaml.MappingNode {
		return c, r.mapping(n, c)
	}
	for _, e := range n.Content {
		v, err := r.node(e)
		if err != nil {
			return nil, err
		}
		c.Content = append(c.Content, v)
	}
	return c, nil
}

// mapping fills c with n's pairs: its own before merged ones, an earlier merge
// before a later one, as YAML's merge key says.
func (r *resolver) mapping(n, c *yaml.Node) error {
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		if isMerge(n.Content[i]) {
			merges = append(merges, n.Content[i+1])
			continue
		}
		k, err := r.node(n.Content[i])
		if err != nil {
			return err
		}
		v, err := r.node(n.Content[i+1])
		if err != nil {
			return err
		}
		c.Content = append(c.Content, k, v)
	}
	for _, m := range merges {
		sources, err := mergeSources(m)
		if err != nil {
			return err
		}
		for _, s := range sources {
			v, err := r.node(s)
			if err != nil {
				return err
			}
			for i := 0; i+1 < len(v.Content); i += 2 {
				if get(c, v.Content[i].Value) == nil {
					c.Content = append(c.Content, v.Content[i], v.Content[i+1])
				}
			}
		}
	}
	return nil
}

func isMerge(k *yaml.Node) bool {
	return k.Kind == yaml.ScalarNode && k.Value == "<<" && (k.Tag == "" || k.Tag == "!!merge" || k.ShortTag() == "!!merge")
}

// mergeSources lists the mappings of a merge key's value.
func mergeSources(v *yaml.Node) ([]*yaml.Node, error) {
	v = target(v)
	switch v.Kind {
	case yaml.MappingNode:
		return []*yaml.Node{v}, nil
	case yaml.SequenceNode:
		var out []*yaml.Node
		for _, e := range v.Content {
			if e = target(e); e.Kind != yaml.MappingNode {
				return nil, errors.New("the merge key << merges mappings only")
			}
			out = append(out, e)
		}
		return out, nil
	}
	return nil, errors.New("the merge key << merges mappings only")
}

// target follows an alias.
func target(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// get gives the value of a key of a resolved mapping, nil if there is none.
func get(m *yaml.Node, key string) *yaml.Node {
	if m == nil || m.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return m.Content[i+1]
		}
	}
	return nil
}

// set sets a key of a resolved mapping, at its end where it is new.
func set(m *yaml.Node, key string, v *yaml.Node) {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			m.Content[i+1] = v
			return
		}
	}
	m.Content = append(m.Content, keyNode(key), v)
}

// drop takes a key out of a resolved mapping.
func drop(m *yaml.Node, key string) {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			m.Content = slices.Delete(m.Content, i, i+2)
			return
		}
	}
}

// pairs ranges over a mapping's keys and values.
func pairs(m *yaml.Node) func(func(k, v *yaml.Node) bool) {
	return func(yield func(k, v *yaml.Node) bool) {
		if m == nil || m.Kind != yaml.MappingNode {
			return
		}
		for i := 0; i+1 < len(m.Content); i += 2 {
			if !yield(m.Content[i], m.Content[i+1]) {
				return
			}
		}
	}
}

func clone(n *yaml.Node) *yaml.Node {
	if n == nil {
		return nil
	}
	c := *n
	c.Content = make([]*yaml.Node, len(n.Content))
	for i, e := range n.Content {
		c.Content[i] = clone(e)
	}
	return &c
}

// equal compares resolved values: what they say, not how it is written. Order
// counts in sequences only.
func equal(a, b *yaml.Node) bool {
	if a == nil || b == nil {
		return a == b
	}
	if a.Kind != b.Kind {
		return false
	}
	switch a.Kind {
	case yaml.MappingNode:
		if len(a.Content) != len(b.Content) {
			return false
		}
		for k, v := range pairs(a) {
			if !equal(v, get(b, k.Value)) {
				return false
			}
		}
		return true
	case yaml.SequenceNode:
		return slices.EqualFunc(a.Content, b.Content, equal)
	}
	return a.Value == b.Value && a.ShortTag() == b.ShortTag()
}

func plain(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s} }

var plainKey = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)

// keyNode is a key, quoted where a reader of YAML 1.1 could take it for
// something else than a string.
func keyNode(s string) *yaml.Node {
	switch strings.ToLower(s) {
	case "y", "n", "yes", "no", "on", "off", "true", "false", "null":
		return text(s)
	}
	if !plainKey.MatchString(s) {
		return text(s)
	}
	return plain(s)
}

// text is a quoted string: what YAML 1.1 would take for a number or a boolean
// stays a string.
func text(s string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s, Style: yaml.DoubleQuotedStyle}
}

func mapping(kv ...any) *yaml.Node {
	m := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for i := 0; i+1 < len(kv); i += 2 {
		m.Content = append(m.Content, keyNode(kv[i].(string)), toNode(kv[i+1]))
	}
	return m
}

func sequence(items ...*yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Content: items}
}

func texts(items ...string) *yaml.Node {
	s := sequence()
	for _, i := range items {
		s.Content = append(s.Content, text(i))
	}
	return s
}

func flow(n *yaml.Node) *yaml.Node {
	n.Style |= yaml.FlowStyle
	return n
}

func toNode(v any) *yaml.Node {
	switch v := v.(type) {
	case *yaml.Node:
		return v
	case string:
		return text(v)
	case []string:
		return texts(v...)
	case int:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: fmt.Sprint(v)}
	case bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: fmt.Sprint(v)}
	}
	panic(fmt.Sprintf("inject: no YAML for a %T", v))
}

// emit writes pairs as the lines of a block mapping.
func emit(m *yaml.Node, indent int) ([]string, error) {
	block := *m
	block.Style &^= yaml.FlowStyle
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(&block); err != nil {
		return nil, err
	}
	if err := e.Close(); err != nil {
		return nil, err
	}
	pad := strings.Repeat(" ", indent)
	ls := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n") // a block scalar may end in blank lines
	for i, l := range ls {
		if l != "" {
			ls[i] = pad + l
		}
	}
	return ls, nil
}

// list reads a scalar or a sequence of scalars.
func list(n *yaml.Node) []string {
	switch {
	case n == nil || n.ShortTag() == "!!null":
		return nil
	case n.Kind == yaml.ScalarNode:
		return []string{n.Value}
	}
	var out []string
	for _, e := range n.Content {
		out = append(out, e.Value)
	}
	return out
}

// isNull says that there is no value, or an empty one.
func isNull(n *yaml.Node) bool {
	return n == nil || n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

// keyed reads what compose writes as a mapping or as a list of KEY=VALUE (or
// KEY:VALUE, for hosts), in order; values without one are nil.
func keyed(n *yaml.Node, seps string) (keys []string, values map[string]*yaml.Node) {
	values = map[string]*yaml.Node{}
	if n == nil {
		return nil, values
	}
	if n.Kind == yaml.MappingNode {
		for k, v := range pairs(n) {
			keys = append(keys, k.Value)
			values[k.Value] = v
		}
		return keys, values
	}
	for _, e := range n.Content {
		i := strings.IndexAny(e.Value, seps)
		if i < 0 {
			keys = append(keys, e.Value)
			values[e.Value] = nil
			continue
		}
		k := e.Value[:i]
		keys = append(keys, k)
		v := text(e.Value[i+1:])
		v.Line, v.Column = e.Line, e.Column
		values[k] = v
	}
	return keys, values
}
