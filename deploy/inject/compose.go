package inject

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Note is something that the user should know about a service: that it was left
// as it is, or that something is not what it seems.
type Note struct {
	File    string
	Line    int // 1-based
	Service string
	Text    string
}

func (n Note) String() string {
	return fmt.Sprintf("%s:%d: %s: %s", n.File, n.Line, n.Service, n.Text)
}

// Result of an injection.
type Result struct {
	Text     string
	Notes    []Note   // in the order of the file
	Injected []string // the sidecars' names
}

// Compose puts a sidecar beside each service of a compose file. file is its
// name in errors. A file that was injected before is given back first and
// injected again; options that it was injected with hold where o has none. The
// error is an [*Error] for whatever the file says; nothing is given then.
func Compose(file, text string, o Options) (*Result, error) {
	s, err := strip(file, text)
	if err != nil {
		return nil, err
	}
	if s.injected {
		if o, err = o.over(file, s.options); err != nil {
			return nil, err
		}
	}
	if err := o.fill(); err != nil {
		return nil, err
	}
	res, err := injectText(file, s.text, o)
	if err != nil {
		if e, ok := err.(*Error); ok && s.injected && e.Line > 0 {
			return nil, &Error{file, injectedLine(text, e.Line), e.Text}
		}
		return nil, err
	}
	if err := s.unedited(file, res.Text); err != nil && !o.Overwrite {
		return nil, err
	}
	return res, nil
}

// Uninject gives back the file as it was before [Compose], with all edits that
// were made outside of the made lines since. A file without marks is given back
// as it is. Edits of made lines are refused with their place, unless overwrite
// says that they may be lost.
func Uninject(file, text string, overwrite bool) (string, error) {
	s, err := strip(file, text)
	if err != nil {
		return "", err
	}
	again := ""
	if !overwrite && slices.ContainsFunc(s.blocks, func(b made) bool { return !b.whole }) {
		if o, err := (Options{}).over(file, s.options); err == nil && o.fill() == nil {
			if res, err := injectText(file, s.text, o); err == nil {
				again = res.Text
			}
		}
		if err := s.unedited(file, again); err != nil {
			return "", err
		}
	}
	return s.text, nil
}

// unedited returns an error for the first made line that is not as it was made;
// again is the file injected anew, where that can be had, and tells which.
func (s *stripped) unedited(file, again string) error {
	for _, b := range s.blocks {
		if b.whole {
			continue
		}
		at := b.first + 1
		if a, err := strip(file, again); err == nil {
			for _, c := range a.blocks {
				if c.id != b.id {
					continue
				}
				i := 0
				for i < len(b.lines) && i < len(c.lines) && strings.TrimRight(b.lines[i], " \t\r") == strings.TrimRight(c.lines[i], " \t\r") {
					i++
				}
				at = b.first + 1 + i
			}
		}
		return &Error{file, at, fmt.Sprintf("what parrel made for %q was changed by hand here (the block begins on line %d), and would be lost: write it into the service itself or into a label, or give --overwrite to let it go", b.id, b.first)}
	}
	return nil
}

// injectedLine turns a line number of the stripped text into one of the text.
func injectedLine(text string, n int) int {
	_, rest := cutBOM(text)
	in, kept := false, 0
	for i, l := range splitLines(rest) {
		switch mark(l) {
		case beginMark:
			in = true
		case endMark:
			in = false
		case headMark, aboutMark:
		default:
			if !in {
				kept++
			}
		}
		if kept == n {
			return i + 1
		}
	}
	return n
}

func injectText(file, text string, o Options) (*Result, error) {
	d, err := parse(file, text)
	if err != nil {
		return nil, err
	}
	p := &project{document: d, opts: o}
	if err := p.load(); err != nil {
		return nil, err
	}
	if err := p.decide(); err != nil {
		return nil, err
	}
	if err := p.transform(); err != nil {
		return nil, err
	}
	out, err := p.write(text)
	if err != nil {
		return nil, err
	}
	if err := p.verify(text, out); err != nil {
		return nil, err
	}
	slices.SortStableFunc(p.notes, func(a, b Note) int { return a.Line - b.Line })
	res := &Result{Text: out, Notes: p.notes}
	for _, c := range p.sidecars {
		res.Injected = append(res.Injected, c.name)
	}
	return res, nil
}

// parse reads the document and refuses what cannot be edited by lines.
func parse(file, text string) (*document, error) {
	_, rest := cutBOM(text)
	d := &document{file: file, lines: splitLines(rest)}
	if strings.HasPrefix(rest, "\xff\xfe") || strings.HasPrefix(rest, "\xfe\xff") || strings.Contains(rest, "\x00") {
		return nil, &Error{file, 0, "is no UTF-8: convert it, with `iconv -t UTF-8`"}
	}
	dec := yaml.NewDecoder(strings.NewReader(rest))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		return nil, yamlError(file, err)
	}
	var second yaml.Node
	if err := dec.Decode(&second); err == nil {
		return nil, &Error{file, max(second.Line, 1), "a second document begins here: a compose file is one; split the file at `---`"}
	} else if err.Error() != "EOF" {
		return nil, yamlError(file, err)
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, &Error{file, max(doc.Line, 1), "is no compose file: it has to be a mapping with `services`"}
	}
	d.root = doc.Content[0]
	d.last = len(d.lines)
	for i := d.root.Line; i < len(d.lines); i++ {
		if t := d.lines[i].text; t == "..." || strings.HasPrefix(t, "... ") || t == "---" {
			d.last = i
			break
		}
	}
	return d, nil
}

// yamlError gives a parser's error its place.
func yamlError(file string, err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	var n int
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if _, e := fmt.Sscanf(rest, "%d:", &n); e == nil {
			_, text, _ = strings.Cut(rest, ": ")
		}
	}
	if err.Error() == "EOF" {
		text = "it is empty"
	}
	return &Error{file, n, "is no YAML that can be read: " + text}
}

// project is one compose file on its way.
type project struct {
	*document
	opts     Options
	key, val *yaml.Node // the services
	services []*service
	byName   map[string]*service
	sidecars []*output // what is added, in order: sidecars, and further instances
	notes    []Note
}

// service is one service as the file has it.
type service struct {
	name     string
	key, val *yaml.Node // as written
	own      *yaml.Node // resolved: what it says itself
	full     *yaml.Node // own on top of what it extends in this file
	base     *service   // what it extends in this file
	baseFile string     // the other file whose service it extends

	inject   bool
	joins    *service // it shares the namespace of this one, which gets a sidecar
	replicas int
	counted  string // the key that says how many: "deploy" or "scale"
	settings settings

	want *yaml.Node // resolved: what it has to say afterwards
}

// output is a service that is added.
type output struct {
	name string
	body *yaml.Node
}

func (p *project) errorf(n *yaml.Node, format string, args ...any) error {
	at := 0
	if n != nil {
		at = n.Line
	}
	return &Error{p.file, at, fmt.Sprintf(format, args...)}
}

func (p *project) note(s *service, at *yaml.Node, format string, args ...any) {
	if at == nil || at.Line == 0 {
		at = s.key
	}
	p.notes = append(p.notes, Note{p.file, at.Line, s.name, fmt.Sprintf(format, args...)})
}

// load finds the services and resolves them.
func (p *project) load() error {
	if p.root.Style&yaml.FlowStyle != 0 {
		return p.errorf(p.root, "the file is written in braces (as JSON is), and inject edits by lines: convert it to YAML, with `docker-compose config`")
	}
	if err := p.unique(p.root, "the file"); err != nil {
		return err
	}
	for k, v := range pairs(p.root) {
		switch k.Value {
		case "services":
			p.key, p.val = k, v
		case "include":
			p.notes = append(p.notes, Note{p.file, k.Line, "include", "what the included files say is not read: inject them by themselves"})
		}
	}
	switch {
	case p.key == nil:
		return p.errorf(p.root, "there are no `services`: is this a compose file? (The format of version 1, without `services`, is not read: put everything below `services:`)")
	case p.val.Kind == yaml.AliasNode:
		return p.errorf(p.val, "`services` is an alias: write the services where they belong")
	case p.val.Kind != yaml.MappingNode || len(p.val.Content) == 0:
		return p.errorf(p.key, "`services` is empty: there is nothing to inject")
	case p.val.Style&yaml.FlowStyle != 0:
		return p.errorf(p.val, "`services` is written in braces, and inject edits by lines: write each service on lines of its own")
	}
	if err := p.unique(p.val, "services"); err != nil {
		return err
	}
	p.byName = map[string]*service{}
	for k, v := range pairs(p.val) {
		if isMerge(k) {
			return p.errorf(k, "`services` merges other services with <<: write them out, so that each can have its sidecar")
		}
		s := &service{name: k.Value, key: k, val: v, replicas: 1}
		own, err := resolve(v)
		if err != nil {
			return p.errorf(v, "%s: %v: write it out", s.name, err)
		}
		if own.Kind != yaml.MappingNode {
			return p.errorf(k, "%s is no mapping: a service needs at least `image` or `build`", s.name)
		}
		s.own = own
		if err := p.unique(target(v), s.name); err != nil {
			return err
		}
		p.services = append(p.services, s)
		p.byName[s.name] = s
	}
	for _, s := range p.services {
		if err := p.extend(s, nil); err != nil {
			return err
		}
	}
	return nil
}

// unique refuses a key that stands twice: one of them would be ignored.
func (p *project) unique(m *yaml.Node, what string) error {
	seen := map[string]int{}
	for k := range pairs(m) {
		if first, ok := seen[k.Value]; ok && !isMerge(k) {
			return p.errorf(k, "%s has %q twice, first on line %d: take one away", what, k.Value, first)
		}
		seen[k.Value] = k.Line
	}
	return nil
}

// extend resolves `extends` within the file. open are the services on the way.
func (p *project) extend(s *service, open []*service) error {
	if s.full != nil {
		return nil
	}
	e := get(s.own, "extends")
	if isNull(e) {
		s.full = s.own
		return nil
	}
	name := e
	if e.Kind == yaml.MappingNode {
		name = get(e, "service")
		if f := get(e, "file"); !isNull(f) {
			s.full, s.baseFile = s.own, f.Value
			return nil
		}
	}
	if name == nil || name.Kind != yaml.ScalarNode {
		return p.errorf(e, "%s extends what? Write `extends: {service: NAME}`", s.name)
	}
	base := p.byName[name.Value]
	if base == nil {
		return p.errorf(e, "%s extends %q, and there is no such service in this file: correct the name, or add `file`", s.name, name.Value)
	}
	if slices.Contains(open, base) || base == s {
		return p.errorf(e, "%s extends itself, by way of %s: break the circle", s.name, base.name)
	}
	if err := p.extend(base, append(open, s)); err != nil {
		return err
	}
	s.base = base
	s.full = overlay(base.full, s.own)
	drop(s.full, "extends")
	if base.baseFile != "" {
		s.baseFile = base.baseFile
		set(s.full, "extends", clone(get(base.full, "extends")))
	}
	return nil
}
