package inject

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// keptAnchors is where anchors stay whose lines had to go: an extension field,
// which compose does not look at.
const keptAnchors = "x-parrel-anchors"

// editor collects the edits of one file.
type editor struct {
	p       *project
	edits   []*edit
	changed map[*yaml.Node]bool // values of services that are edited
	removed map[int]bool
}

// edit is one mapping that gets a block of made lines, or loses keys.
type edit struct {
	id      string
	before  int // 0-based line before which the block stands
	indent  int
	emitted *yaml.Node   // what the block says
	gone    []*yaml.Node // keys and values whose lines were taken out
	whole   string       // the block is the service of that name, with its key
	parent  *edit        // the edit of the service
}

// write edits the text.
func (p *project) write(text string) (string, error) {
	e := &editor{p: p, changed: map[*yaml.Node]bool{}, removed: map[int]bool{}}
	for _, s := range p.services {
		if !equal(s.own, s.want) {
			e.changed[target(s.val)] = true
		}
	}
	end := p.last
	for i := 0; i+1 < len(p.root.Content); i += 2 {
		if l := p.root.Content[i].Line; l > p.key.Line {
			end = min(end, l-1)
		}
	}
	if err := e.services(end); err != nil {
		return "", err
	}
	last := p.lastLine(p.key.Line, p.val, end)
	indent := p.services[0].key.Column - 1
	if !p.appendable(p.val, last) {
		last = p.services[0].key.Line - 1
	}
	for _, o := range p.sidecars {
		e.edits = append(e.edits, &edit{id: o.name, before: last, indent: indent, emitted: o.body, whole: o.name})
	}
	if err := e.volumes(); err != nil {
		return "", err
	}
	e.keepAnchors()
	var ins []insertion
	for _, d := range e.edits {
		if len(d.emitted.Content) == 0 {
			continue
		}
		m := d.emitted
		if d.whole != "" {
			body := *d.emitted
			body.Style &^= yaml.FlowStyle
			m = mapping(d.whole, &body)
		}
		lines, err := emit(m, d.indent)
		if err != nil {
			return "", p.errorf(nil, "%s cannot be written as YAML: %v", d.id, err)
		}
		ins = append(ins, insertion{d.before, d.indent, d.id, lines})
	}
	slices.SortStableFunc(ins, func(a, b insertion) int { return a.before - b.before })
	return splice(text, p.opts.head(), e.removed, ins), nil
}

// services edits each service; end is the last line that may be theirs.
func (e *editor) services(end int) error {
	p := e.p
	for i, s := range p.services {
		bound := end
		if i+1 < len(p.services) {
			bound = p.services[i+1].key.Line - 1
		}
		if err := e.ownLine(s.key); err != nil {
			return err
		}
		if s.val.Kind == yaml.MappingNode && s.val.Style&yaml.FlowStyle == 0 && len(s.val.Content) > 0 {
			if _, err := e.mapping(s.val, bound, s.want, s.name, nil); err != nil {
				return err
			}
			continue
		}
		now, err := resolve(s.val)
		if err != nil {
			return p.errorf(s.val, "%s: %v", s.name, err)
		}
		if equal(now, s.want) && !(s.val.Kind == yaml.AliasNode && e.changed[s.val.Alias]) {
			continue
		}
		d := &edit{id: s.name, before: s.key.Line - 1, indent: s.key.Column - 1, emitted: clone(s.want), whole: s.name}
		e.take(d, s.key, s.val, bound)
		e.edits = append(e.edits, d)
	}
	return nil
}

// ownLine refuses a key that does not begin its line.
func (e *editor) ownLine(k *yaml.Node) error {
	before := string([]rune(e.p.lines[k.Line-1].text)[:k.Column-1])
	if strings.TrimLeft(before, " ") != "" {
		return e.p.errorf(k, "%q does not begin its line, and inject edits by lines: put it on a line of its own", k.Value)
	}
	return nil
}

// take comments a key and its value out.
func (e *editor) take(d *edit, k, v *yaml.Node, bound int) {
	for l := k.Line; l <= e.p.lastLine(k.Line, v, bound); l++ {
		e.removed[l-1] = true
	}
	d.gone = append(d.gone, k, v)
}

// mapping edits a block mapping that ends before line bound, so that it says
// what want says. It returns its edit, nil if there was nothing to do.
func (e *editor) mapping(m *yaml.Node, bound int, want *yaml.Node, id string, parent *edit) (*edit, error) {
	d := &edit{id: id, before: m.Content[0].Line - 1, indent: m.Content[0].Column - 1, emitted: mapping(), parent: parent}
	if parent == nil {
		parent = d
	}
	type merge struct {
		k, v  *yaml.Node
		bound int
	}
	kept := map[string]bool{}
	var merges []merge
	for i := 0; i+1 < len(m.Content); i += 2 {
		k, v, end := m.Content[i], m.Content[i+1], bound
		if i+2 < len(m.Content) {
			end = m.Content[i+2].Line - 1
		}
		if err := e.ownLine(k); err != nil {
			return nil, err
		}
		if isMerge(k) {
			merges = append(merges, merge{k, v, end})
			continue
		}
		now, err := resolve(v)
		if err != nil {
			return nil, e.p.errorf(v, "%s: %v: write it out", id, err)
		}
		w := get(want, k.Value)
		switch {
		case equal(now, w):
			kept[k.Value] = true
		case w != nil && editable(v, now, w):
			if _, err := e.mapping(v, end, w, id+"/"+k.Value, parent); err != nil {
				return nil, err
			}
			kept[k.Value] = true
		default:
			e.take(d, k, v, end)
		}
	}
	// The merge keys stay if all that they bring is wanted.
	brought := map[string]*yaml.Node{}
	stay := true
	for _, g := range merges {
		sources, err := mergeSources(g.v)
		if err != nil {
			return nil, e.p.errorf(g.v, "%s: %v", id, err)
		}
		for _, src := range sources {
			if e.changed[src] {
				stay = false
				continue
			}
			v, err := resolve(src)
			if err != nil {
				return nil, e.p.errorf(g.v, "%s: %v: write it out", id, err)
			}
			for k, v := range pairs(v) {
				if brought[k.Value] == nil {
					brought[k.Value] = v
				}
				if !kept[k.Value] && get(want, k.Value) == nil {
					stay = false
				}
			}
		}
	}
	if !stay {
		for _, g := range merges {
			e.take(d, g.k, g.v, g.bound)
		}
	}
	for k, v := range pairs(want) {
		if kept[k.Value] || stay && equal(brought[k.Value], v) {
			continue
		}
		d.emitted.Content = append(d.emitted.Content, keyNode(k.Value), v)
	}
	e.edits = append(e.edits, d)
	return d, nil
}

// editable says that a value can be edited key by key instead of being written
// anew: a block mapping of its own, of which something stays.
func editable(v, now, want *yaml.Node) bool {
	if v.Kind != yaml.MappingNode || v.Style&yaml.FlowStyle != 0 || v.Anchor != "" || want.Kind != yaml.MappingNode {
		return false
	}
	some := false
	for k := range pairs(v) {
		if isMerge(k) {
			return false
		}
		some = some || equal(get(now, k.Value), get(want, k.Value))
	}
	return some
}

// volumes declares the named volumes that hold the join tokens.
func (e *editor) volumes() error {
	p := e.p
	if p.opts.TokenVolume == "" || len(p.sidecars) == 0 {
		return nil
	}
	need := mapping()
	for _, o := range p.sidecars {
		if v := list(get(o.body, "volumes")); len(v) > 0 && get(o.body, "healthcheck") != nil && strings.HasSuffix(o.name, "-sidecar") {
			name, _, _ := strings.Cut(v[0], ":")
			set(need, name, flow(mapping()))
		}
	}
	for i := 0; i+1 < len(p.root.Content); i += 2 {
		k, v := p.root.Content[i], p.root.Content[i+1]
		if k.Value != "volumes" || isMerge(k) {
			continue
		}
		bound := p.last
		if i+2 < len(p.root.Content) {
			bound = p.root.Content[i+2].Line - 1
		}
		now, err := resolve(v)
		if err != nil {
			return p.errorf(v, "volumes: %v", err)
		}
		want := clone(now)
		if isNull(now) {
			want = mapping()
		}
		for name, n := range pairs(need) {
			if have := get(want, name.Value); have == nil {
				set(want, name.Value, n)
			}
		}
		if v.Kind == yaml.MappingNode && v.Style&yaml.FlowStyle == 0 && len(v.Content) > 0 {
			_, err := e.mapping(v, bound, want, "volumes", nil)
			return err
		}
		d := &edit{id: "volumes", before: k.Line - 1, indent: k.Column - 1, emitted: want, whole: "volumes"}
		e.take(d, k, v, bound)
		e.edits = append(e.edits, d)
		return nil
	}
	n := len(p.root.Content)
	last := p.lastLine(p.root.Content[n-2].Line, p.root.Content[n-1], p.last)
	if !p.appendable(p.root.Content[n-1], last) {
		last = p.root.Content[0].Line - 1
	}
	e.edits = append(e.edits, &edit{id: "volumes", before: last, indent: p.root.Column - 1, emitted: need, whole: "volumes"})
	return nil
}

// keepAnchors keeps anchors that lines which stay refer to and that stood on
// lines which went.
func (e *editor) keepAnchors() {
	gone := map[*yaml.Node]bool{}
	for _, d := range e.edits {
		for _, n := range d.gone {
			walk(n, func(n *yaml.Node) { gone[n] = true })
		}
	}
	needed := map[*yaml.Node]bool{}
	walk(e.p.root, func(n *yaml.Node) {
		if n.Kind == yaml.AliasNode && !gone[n] && gone[n.Alias] {
			needed[n.Alias] = true
		}
	})
	if len(needed) == 0 {
		return
	}
	for _, d := range e.edits {
		to := d
		if d.parent != nil {
			to = d.parent
		}
		for _, n := range d.gone {
			for _, c := range outermost(n, needed) {
				seq := get(to.emitted, keptAnchors)
				if seq == nil {
					seq = sequence()
					to.emitted = &yaml.Node{Kind: yaml.MappingNode, Content: append([]*yaml.Node{plain(keptAnchors), seq}, to.emitted.Content...)}
				}
				seq.Content = append(seq.Content, anchored(c, needed))
			}
		}
	}
}

// walk visits a node and all below it, aliases not followed.
func walk(n *yaml.Node, f func(*yaml.Node)) {
	f(n)
	for _, c := range n.Content {
		walk(c, f)
	}
}

// outermost lists the needed nodes that are below no other needed one.
func outermost(n *yaml.Node, needed map[*yaml.Node]bool) []*yaml.Node {
	if needed[n] {
		return []*yaml.Node{n}
	}
	var out []*yaml.Node
	for _, c := range n.Content {
		out = append(out, outermost(c, needed)...)
	}
	return out
}

// anchored copies a node with the anchors that are needed; everything else is
// resolved.
func anchored(n *yaml.Node, needed map[*yaml.Node]bool) *yaml.Node {
	c, err := resolve(n)
	if err != nil || n.Kind == yaml.AliasNode {
		return c // load has resolved it before
	}
	if needed[n] {
		c.Anchor = n.Anchor
	}
	// Where the shapes agree, the anchors below are kept too.
	if !slices.ContainsFunc(n.Content, isMerge) && len(c.Content) == len(n.Content) {
		for i := range n.Content {
			c.Content[i] = anchored(n.Content[i], needed)
		}
	}
	return c
}

// verify holds the result to its promises: it reads as YAML, every service says
// what it has to, everything else says what it said, and it can be taken back.
func (p *project) verify(before, after string) error {
	fail := func(err error) error {
		return p.errorf(nil, "cannot be injected without changing something else: %v; this is a fault of parrel, please report it with the file", err)
	}
	d, err := parse(p.file, after)
	if err != nil {
		return fail(err)
	}
	now, err := resolve(d.root)
	if err != nil {
		return fail(err)
	}
	was, err := resolve(p.root)
	if err != nil {
		return fail(err)
	}
	got := get(now, "services")
	for _, s := range p.services {
		v := get(got, s.name)
		if drop(v, keptAnchors); !equal(v, s.want) {
			return fail(fmt.Errorf("the service %q would not be what it has to be", s.name))
		}
		drop(got, s.name)
	}
	for _, o := range p.sidecars {
		if !equal(get(got, o.name), o.body) {
			return fail(fmt.Errorf("the service %q would not be what it has to be", o.name))
		}
		drop(got, o.name)
	}
	if got == nil || len(got.Content) > 0 {
		return fail(errors.New("there would be other services"))
	}
	for _, n := range []*yaml.Node{now, was} {
		drop(n, "services")
		drop(n, keptAnchors)
		if p.opts.TokenVolume != "" {
			drop(n, "volumes")
		}
		// An extension field may repeat a service by an alias.
		for _, k := range keysOf(n) {
			if strings.HasPrefix(k, "x-") {
				drop(n, k)
			}
		}
	}
	if !equal(now, was) {
		return fail(errors.New("something beside the services would change"))
	}
	back, err := Uninject(p.file, after, false)
	if err != nil {
		return fail(err)
	}
	if back != before {
		return fail(errors.New("it could not be taken back byte for byte"))
	}
	return nil
}

func keysOf(m *yaml.Node) []string {
	var out []string
	for k := range pairs(m) {
		out = append(out, k.Value)
	}
	return out
}
