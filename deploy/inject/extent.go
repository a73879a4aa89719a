package inject

import (
	"strings"

	"go.yaml.in/yaml/v3"
)

// document is a parsed file with its lines; yaml.v3 says where a value begins,
// these methods say where it ends.
type document struct {
	file  string
	lines []line
	root  *yaml.Node // the root mapping
	last  int        // last line of the document, 1-based
}

// lastLine finds the last line, 1-based, of a value whose key stands on line
// key and which ends on line bound at the latest. Comments and blank lines
// behind it belong to what follows.
func (d *document) lastLine(key int, v *yaml.Node, bound int) int {
	leaf, key := lastLeaf(v, key)
	switch {
	case leaf.Kind == yaml.ScalarNode && leaf.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		return d.blockEnd(leaf, bound)
	case leaf.Kind == yaml.ScalarNode && leaf.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0,
		leaf.Style&yaml.FlowStyle != 0:
		return min(d.flowEnd(leaf), bound)
	}
	end := key
	for i := key; i <= bound && i <= len(d.lines); i++ {
		if t := strings.TrimSpace(d.lines[i-1].text); t != "" && t[0] != '#' {
			end = i
		}
	}
	return end
}

// lastLeaf is the last scalar or flow collection of a value, and a line, 1-based,
// on which or after which it begins: at least key.
func lastLeaf(v *yaml.Node, key int) (*yaml.Node, int) {
	for v.Style&yaml.FlowStyle == 0 && (v.Kind == yaml.MappingNode || v.Kind == yaml.SequenceNode) && len(v.Content) > 0 {
		if v.Kind == yaml.MappingNode {
			key = max(key, v.Content[len(v.Content)-2].Line)
		}
		v = v.Content[len(v.Content)-1]
	}
	return v, max(key, v.Line)
}

// appendable says that lines may follow the value without changing it. A block
// scalar at the end of a file without a last newline has none either.
func (d *document) appendable(v *yaml.Node, last int) bool {
	leaf, _ := lastLeaf(v, 0)
	return last < len(d.lines) || d.lines[last-1].eol != "" || leaf.Style&(yaml.LiteralStyle|yaml.FoldedStyle) == 0
}

// blockEnd is the last line of a literal or folded scalar.
func (d *document) blockEnd(n *yaml.Node, bound int) int {
	header := d.lines[n.Line-1].text
	keep := false
	if i := strings.LastIndexAny(header, "|>"); i >= 0 {
		keep = strings.Contains(strings.SplitN(header[i:], "#", 2)[0], "+")
	}
	indent, end := -1, n.Line
	for i := n.Line + 1; i <= bound && i <= len(d.lines); i++ {
		t := d.lines[i-1].text
		body := strings.TrimLeft(t, " ")
		if body == "" {
			if keep {
				end = i
			}
			continue
		}
		at := len(t) - len(body)
		if indent < 0 {
			if indent = at; n.Value == "" {
				return end
			}
		}
		if at < indent {
			// An indentation indicator allows deeper first lines: content is
			// everything deeper than what follows, which bound has cut.
			if body[0] == '#' || !strings.ContainsAny(header, "123456789") {
				break
			}
		}
		end = i
	}
	return end
}

// flowEnd is the line on which a quoted scalar or a flow collection ends.
func (d *document) flowEnd(n *yaml.Node) int {
	depth, start := 0, true // start: a token may begin here
	for i := n.Line; i <= len(d.lines); i++ {
		r := []rune(d.lines[i-1].text)
		j := 0
		if i == n.Line {
			j = n.Column - 1
		}
		for ; j < len(r); j++ {
			c := r[j]
			switch {
			case c == ' ' || c == '\t':
				continue
			case c == '#' && (j == 0 || r[j-1] == ' ' || r[j-1] == '\t'):
				j = len(r)
			case start && (c == '&' || c == '!' || c == '*'):
				for j+1 < len(r) && !strings.ContainsRune(" \t,]}", r[j+1]) {
					j++
				}
				start = c != '*'
			case start && (c == '"' || c == '\''):
				var ok bool
				if i, j, ok = d.quoteEnd(i, j+1, c); !ok {
					return i
				}
				r = []rune(d.lines[i-1].text)
				if depth == 0 {
					return i
				}
				start = false
			case c == '[' || c == '{':
				depth++
				start = true
			case c == ']' || c == '}':
				if depth--; depth <= 0 {
					return i
				}
				start = false
			case c == ',' || c == ':':
				start = true
			default:
				start = false
			}
		}
	}
	return len(d.lines)
}

// quoteEnd finds the closing quote, from rune j of line i on.
func (d *document) quoteEnd(i, j int, quote rune) (int, int, bool) {
	for ; i <= len(d.lines); i, j = i+1, 0 {
		r := []rune(d.lines[i-1].text)
		for ; j < len(r); j++ {
			switch {
			case quote == '"' && r[j] == '\\':
				j++
			case r[j] != quote:
			case quote == '\'' && j+1 < len(r) && r[j+1] == '\'':
				j++
			default:
				return i, j, true
			}
		}
	}
	return len(d.lines), 0, false
}
