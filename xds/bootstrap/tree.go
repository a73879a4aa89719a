package bootstrap

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxJSON bounds what a file with aliases may grow to, and maxProblems how much
// is said of it.
const (
	maxJSON     = 32 << 20
	maxProblems = 100
)

// tree is a YAML or JSON document with its places.
type tree struct {
	file    string
	p       *[]Problem
	written int // bytes of JSON
}

func (t *tree) fail(n *yaml.Node, path, format string, a ...any) {
	if len(*t.p) < maxProblems {
		*t.p = append(*t.p, problem(t.file, n, path, fmt.Sprintf(format, a...)))
	}
}

func problem(file string, n *yaml.Node, path, reason string) Problem {
	p := Problem{File: file, Path: path, Reason: reason}
	if n != nil {
		p.Line, p.Column = n.Line, n.Column
	}
	return p
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// read parses the document's text; nil with a problem where it is none.
func (t *tree) read(text []byte) *yaml.Node {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		p := Problem{File: t.file, Reason: err.Error()}
		if at := yamlLine.FindStringSubmatch(p.Reason); at != nil {
			p.Line, _ = strconv.Atoi(at[1])
			p.Reason = "is neither YAML nor JSON: " + p.Reason[len(at[0]):]
		}
		*t.p = append(*t.p, p)
		return nil
	}
	if len(doc.Content) == 0 {
		*t.p = append(*t.p, Problem{File: t.file, Reason: "is empty; a bootstrap needs static_resources"})
		return nil
	}
	return doc.Content[0]
}

// entry is one key of a mapping.
type entry struct {
	name       string // as the protos write it
	key, value *yaml.Node
}

// entries are the keys of a mapping, in order. Whatever else n is, is a problem.
func (t *tree) entries(path string, n *yaml.Node) []entry {
	n = follow(n)
	if n == nil || n.Tag == "!!null" {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		t.fail(n, path, "is %s where fields are expected (name: value)", kind(n))
		return nil
	}
	out := make([]entry, 0, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		out = append(out, entry{snake(n.Content[i].Value), n.Content[i], n.Content[i+1]})
	}
	return out
}

// items are the elements of a list.
func (t *tree) items(path string, n *yaml.Node) []*yaml.Node {
	n = follow(n)
	if n == nil || n.Tag == "!!null" {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		t.fail(n, path, "is %s where a list is expected (- item)", kind(n))
		return nil
	}
	return n.Content
}

func (t *tree) text(path string, n *yaml.Node) string {
	n = follow(n)
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		t.fail(n, path, "is %s where text is expected; put it in quotes", kind(n))
		return ""
	}
	return n.Value
}

func follow(n *yaml.Node) *yaml.Node {
	for n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		switch n.Tag {
		case "!!null":
			return "nothing"
		case "!!str":
			return fmt.Sprintf("the text %q", n.Value)
		}
		return "the value " + n.Value
	}
	return "something"
}

// snake writes a field's JSON name as the protos do; both are read.
func snake(s string) string {
	if strings.ToLower(s) == s {
		return s
	}
	var b strings.Builder
	for _, c := range s {
		if 'A' <= c && c <= 'Z' {
			b.WriteByte('_')
			c += 'a' - 'A'
		}
		b.WriteRune(c)
	}
	return b.String()
}

// writer makes JSON of a node with at most one key or value in each line, so
// that a place in the JSON is a place in the file.
type writer struct {
	t     *tree
	out   bytes.Buffer
	lines []*yaml.Node // by line of out, from 0
	depth int
	big   bool
}

// json writes a node. ok is false where there is a problem.
func (t *tree) json(path string, n *yaml.Node) (w *writer, ok bool) {
	before := len(*t.p)
	w = &writer{t: t, big: t.written > maxJSON}
	w.value(path, n)
	if w.big {
		t.fail(n, path, "the file grows beyond %d MiB by its aliases", maxJSON>>20)
	}
	return w, !w.big && len(*t.p) == before
}

// at is the node that stands in a line of the JSON, counted from 1.
func (w *writer) at(line int) *yaml.Node {
	if line < 1 || len(w.lines) == 0 {
		return nil
	}
	return w.lines[min(line, len(w.lines))-1]
}

func (w *writer) put(n *yaml.Node, text string) {
	w.lines = append(w.lines, n)
	w.out.WriteString(text)
	w.out.WriteByte('\n')
	w.t.written += len(text) + 1
	w.big = w.big || w.t.written > maxJSON
}

func (w *writer) value(path string, n *yaml.Node) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	// An alias within what it names never ends: no depth is that great.
	if w.depth++; w.depth > 200 {
		w.t.fail(n, path, "is nested deeper than 200")
		w.big = true
	}
	defer func() { w.depth-- }()
	if w.big {
		return
	}
	switch n.Kind {
	case yaml.MappingNode:
		w.mapping(path, n)
	case yaml.SequenceNode:
		w.put(n, "[")
		for i, c := range n.Content {
			if i > 0 {
				w.put(c, ",")
			}
			w.value(fmt.Sprintf("%s[%d]", path, i), c)
		}
		w.put(n, "]")
	case yaml.ScalarNode:
		text, err := scalar(n)
		if err != nil {
			w.t.fail(n, path, "%v", err)
			text = "null"
		}
		w.put(n, text)
	default:
		w.t.fail(n, path, "is nothing that JSON has")
	}
}

func (w *writer) mapping(path string, n *yaml.Node) {
	w.put(n, "{")
	seen := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		at := join(path, k.Value)
		switch first := seen[k.Value]; {
		case k.Kind != yaml.ScalarNode:
			w.t.fail(k, path, "a key is %s; keys are names", kind(k))
			continue
		case k.Tag == "!!merge":
			w.t.fail(k, at, "merge keys are no part of the bootstrap's YAML; write the fields out, or use an alias for the whole value")
			continue
		case first != nil:
			w.t.fail(k, at, "stands there twice, first in line %d; leave one out", first.Line)
			continue
		}
		if len(seen) > 0 {
			w.put(k, ",")
		}
		seen[k.Value] = k
		w.put(k, quote(k.Value)+":")
		w.value(at, v)
	}
	w.put(n, "}")
}

// scalar is a YAML scalar as JSON.
func scalar(n *yaml.Node) (string, error) {
	switch n.Tag {
	case "!!null":
		return "null", nil
	case "!!bool", "!!int", "!!float":
		var v any
		if err := n.Decode(&v); err != nil {
			return "", fmt.Errorf("is no value that YAML knows: %w", err)
		}
		if f, ok := v.(float64); ok && (math.IsInf(f, 0) || math.IsNaN(f)) {
			return "", errors.New("is no number that can be configured")
		}
		b, err := json.Marshal(v)
		return string(b), err
	case "!!str", "!!timestamp", "!!binary":
		return quote(n.Value), nil
	}
	return "", fmt.Errorf("has the tag %s, which is not known", n.Tag)
}

func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil { // a string always can
		panic(err)
	}
	return string(b)
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

var step = regexp.MustCompile(`^([^.\[\]]+)|^\[(\d+)\]|^\["((?:[^"\\]|\\.)*)"\]|^\[([^\]]+)\]`)

// find follows a path of field names to the innermost node that the document
// has of it; where it does not go all the way, the last key that matched.
func find(n *yaml.Node, path string) *yaml.Node {
	n = follow(n)
	place := n
	for path != "" {
		path = strings.TrimPrefix(path, ".")
		m := step.FindStringSubmatch(path)
		if m == nil {
			return place
		}
		path = path[len(m[0]):]
		n = follow(n)
		if n == nil {
			return place
		}
		if m[2] != "" {
			i, _ := strconv.Atoi(m[2])
			if n.Kind != yaml.SequenceNode || i >= len(n.Content) {
				return place
			}
			n = n.Content[i]
			place = n
			continue
		}
		name := m[1] + m[3] + m[4]
		next := (*yaml.Node)(nil)
		if n.Kind == yaml.MappingNode {
			for i := 0; i+1 < len(n.Content); i += 2 {
				if k := n.Content[i]; k.Value == name || snake(k.Value) == name {
					place, next = k, n.Content[i+1]
				}
			}
		}
		if next == nil {
			return place
		}
		n = next
	}
	return place
}

// pathOf is the path of a key, a value or an element below n.
func pathOf(n, of *yaml.Node) (string, bool) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, v := n.Content[i], n.Content[i+1]
			if k == of || v == of {
				return k.Value, true
			}
			if rest, ok := pathOf(v, of); ok {
				return k.Value + dot(rest), true
			}
		}
	case yaml.SequenceNode:
		for i, v := range n.Content {
			if v == of {
				return fmt.Sprintf("[%d]", i), true
			}
			if rest, ok := pathOf(v, of); ok {
				return fmt.Sprintf("[%d]", i) + dot(rest), true
			}
		}
	}
	return "", false
}

func dot(path string) string {
	if strings.HasPrefix(path, "[") {
		return path
	}
	return "." + path
}
