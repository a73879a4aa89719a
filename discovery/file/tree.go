package file

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl"
	"github.com/hashicorp/hcl/hcl/ast"
	"github.com/hashicorp/hcl/hcl/token"
)

// maxFile bounds what is parsed: a definition is some kilobytes.
const maxFile = 1 << 20

// tree is what a file says, with the line of everything. Exactly one of object,
// list and scalar is meant: object if keys is not nil, list if isList.
type tree struct {
	line   int
	object []pair
	list   []*tree
	isList bool
	scalar any // string, bool, int64, float64, json.Number or nil
	isObj  bool
}

type pair struct {
	key   string
	line  int
	value *tree
}

// syntaxError is a file that does not parse.
type syntaxError struct {
	line int
	err  error
}

func (e *syntaxError) Error() string { return e.err.Error() }
func (e *syntaxError) Unwrap() error { return e.err }

// parse reads HCL or, where the name or the first byte says so, JSON.
func parse(name string, src []byte) (t *tree, err error) {
	if len(src) > maxFile {
		return nil, &syntaxError{err: fmt.Errorf("the file has %d bytes, more than the %d that a definition may have", len(src), maxFile)}
	}
	src = bytes.TrimPrefix(src, []byte("\xef\xbb\xbf"))
	if strings.HasSuffix(name, ".json") || bytes.HasPrefix(bytes.TrimSpace(src), []byte("{")) {
		return parseJSON(src)
	}
	// HCL 1's parser is known to panic on some malformed input.
	defer func() {
		if p := recover(); p != nil {
			t, err = nil, &syntaxError{err: fmt.Errorf("the HCL parser gave up: %v", p)}
		}
	}()
	if d := depth(src); d > 200 {
		return nil, &syntaxError{err: fmt.Errorf("brackets are nested %d deep", d)}
	}
	f, err := hcl.ParseBytes(src)
	if err != nil {
		return nil, hclError(err)
	}
	root, ok := f.Node.(*ast.ObjectList)
	if !ok {
		return nil, &syntaxError{err: errors.New("the file is no list of fields")}
	}
	return fromObject(root, 1)
}

func depth(src []byte) int {
	d, most := 0, 0
	for _, b := range src {
		switch b {
		case '{', '[':
			d++
			most = max(most, d)
		case '}', ']':
			d--
		}
	}
	return most
}

var hclPlace = regexp.MustCompile(`^At (\d+):\d+: |^At (\d+):\d+|line (\d+)`)

func hclError(err error) error {
	text := err.Error()
	line := 0
	if m := hclPlace.FindStringSubmatch(text); m != nil {
		for _, s := range m[1:] {
			if n, convErr := strconv.Atoi(s); convErr == nil {
				line = n
			}
		}
		text = strings.TrimPrefix(text, m[0])
	}
	return &syntaxError{line: line, err: errors.New(strings.TrimSpace(text))}
}

func fromObject(list *ast.ObjectList, line int) (*tree, error) {
	t := &tree{line: line, isObj: true}
	for _, item := range list.Items {
		v, err := fromNode(item.Val)
		if err != nil {
			return nil, err
		}
		// `service "web" { … }` means service { web { … } }.
		for i := len(item.Keys) - 1; i > 0; i-- {
			v = &tree{line: item.Keys[i].Pos().Line, isObj: true, object: []pair{{keyOf(item.Keys[i]), item.Keys[i].Pos().Line, v}}}
		}
		if len(item.Keys) == 0 {
			return nil, &syntaxError{line: line, err: errors.New("a value without a key")}
		}
		t.put(keyOf(item.Keys[0]), item.Keys[0].Pos().Line, v)
	}
	return t, nil
}

// put adds a field; a block written again makes a list, as in HCL.
func (t *tree) put(key string, line int, v *tree) {
	for i, p := range t.object {
		if p.key != key {
			continue
		}
		if !p.value.isList {
			t.object[i].value = &tree{line: p.line, isList: true, list: []*tree{p.value}}
		}
		if v.isList {
			t.object[i].value.list = append(t.object[i].value.list, v.list...)
		} else {
			t.object[i].value.list = append(t.object[i].value.list, v)
		}
		return
	}
	t.object = append(t.object, pair{key, line, v})
}

func keyOf(k *ast.ObjectKey) string {
	if s, ok := k.Token.Value().(string); ok {
		return s
	}
	return k.Token.Text
}

func fromNode(n ast.Node) (*tree, error) {
	switch n := n.(type) {
	case *ast.ObjectType:
		return fromObject(n.List, n.Lbrace.Line)
	case *ast.ListType:
		t := &tree{line: n.Lbrack.Line, isList: true}
		for _, e := range n.List {
			v, err := fromNode(e)
			if err != nil {
				return nil, err
			}
			t.list = append(t.list, v)
		}
		return t, nil
	case *ast.LiteralType:
		switch n.Token.Type {
		case token.STRING, token.HEREDOC, token.BOOL, token.NUMBER, token.FLOAT:
			return &tree{line: n.Token.Pos.Line, scalar: n.Token.Value()}, nil
		}
		return nil, &syntaxError{line: n.Token.Pos.Line, err: fmt.Errorf("%s is no value", n.Token.Text)}
	}
	return nil, &syntaxError{err: fmt.Errorf("%T is no value", n)}
}

func parseJSON(src []byte) (*tree, error) {
	p := &jsonParser{src: src, dec: json.NewDecoder(bytes.NewReader(src))}
	p.dec.UseNumber()
	t, err := p.value()
	if err == nil {
		if _, more := p.dec.Token(); more != io.EOF {
			err = errors.New("something follows the end of the JSON value")
		}
	}
	if err != nil {
		if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errors.New("the file ends before its JSON does")
		}
		line := p.line()
		var syn *json.SyntaxError
		if errors.As(err, &syn) {
			line = lineAt(src, int(syn.Offset))
		}
		return nil, &syntaxError{line: line, err: err}
	}
	if !t.isObj {
		return nil, &syntaxError{line: 1, err: errors.New("the file holds no JSON object")}
	}
	return t, nil
}

type jsonParser struct {
	src []byte
	dec *json.Decoder
	at  int // offset that line was counted to
	n   int
}

// line is that of the token read last.
func (p *jsonParser) line() int {
	to := min(int(p.dec.InputOffset()), len(p.src))
	p.n += bytes.Count(p.src[p.at:to], []byte("\n"))
	p.at = to
	return p.n + 1
}

func lineAt(src []byte, offset int) int {
	return 1 + bytes.Count(src[:min(max(offset, 0), len(src))], []byte("\n"))
}

func (p *jsonParser) value() (*tree, error) {
	tok, err := p.dec.Token()
	if err != nil {
		return nil, err
	}
	t := &tree{line: p.line()}
	switch tok := tok.(type) {
	case json.Delim:
		if tok == '[' {
			t.isList = true
			for p.dec.More() {
				v, err := p.value()
				if err != nil {
					return nil, err
				}
				t.list = append(t.list, v)
			}
		} else {
			t.isObj = true
			if err := p.fields(t); err != nil {
				return nil, err
			}
		}
		_, err = p.dec.Token() // the closing bracket
		return t, err
	default:
		t.scalar = tok
		return t, nil
	}
}

func (p *jsonParser) fields(t *tree) error {
	seen := map[string]bool{}
	for p.dec.More() {
		k, err := p.dec.Token()
		if err != nil {
			return err
		}
		key, _ := k.(string)
		line := p.line()
		if seen[key] {
			return fmt.Errorf("the field %q stands twice in one object", key)
		}
		seen[key] = true
		v, err := p.value()
		if err != nil {
			return err
		}
		t.object = append(t.object, pair{key, line, v})
	}
	return nil
}

// plain gives the tree as maps, lists and scalars.
func (t *tree) plain() any {
	switch {
	case t == nil:
		return nil
	case t.isObj:
		m := make(map[string]any, len(t.object))
		for _, p := range t.object {
			m[p.key] = p.value.plain()
		}
		return m
	case t.isList:
		l := make([]any, len(t.list))
		for i, e := range t.list {
			l[i] = e.plain()
		}
		return l
	}
	return t.scalar
}

var pathStep = regexp.MustCompile(`[^.\[\]]+|\[\d+\]`)

// lineOf finds the line of a path such as "Sources[1].Action", as far as the
// file has it.
func (t *tree) lineOf(path string) int {
	line := t.line
	for _, step := range pathStep.FindAllString(path, -1) {
		if strings.HasPrefix(step, "[") {
			i, _ := strconv.Atoi(step[1 : len(step)-1])
			if t.isList && i < len(t.list) {
				t = t.list[i]
				line = t.line
			}
			continue
		}
		if t.isList && len(t.list) > 0 {
			t = t.list[0]
		}
		p := t.find(step)
		if p == nil {
			return line
		}
		t, line = p.value, p.line
	}
	return line
}

func (t *tree) find(key string) *pair {
	for i, p := range t.object {
		if fold(p.key) == fold(key) {
			return &t.object[i]
		}
	}
	return nil
}

func fold(s string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(s))
}
