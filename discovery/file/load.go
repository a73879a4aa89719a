package file

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/parrel-mesh/parrel/discovery"
)

// definitions are what one file defines.
type definitions struct {
	registrations []*discovery.Registration
	entries       []*discovery.ConfigEntry
}

// load reads one file's text. path is for messages.
func load(path string, src []byte, node discovery.Node) (*definitions, *discovery.Problem) {
	l := &loader{place: "file " + path, node: node, out: &definitions{}}
	t, err := parse(path, src)
	if err != nil {
		p := &discovery.Problem{Origin: discovery.Origin{Place: l.place}, Reason: err.Error(), Remedy: "write it in HCL or JSON, as for `consul services register`"}
		var syn *syntaxError
		if errors.As(err, &syn) {
			p.Origin.Line = syn.line
		}
		return nil, p
	}
	if len(t.object) == 0 {
		// An editor truncates before it writes; that must remove nothing.
		return nil, l.problem(0, "the file is empty", "write a definition into it, or delete it to remove what it defined")
	}
	if p := l.file(t); p != nil {
		return nil, p
	}
	return l.out, nil
}

type loader struct {
	place string
	node  discovery.Node
	out   *definitions
}

func (l *loader) problem(line int, reason, remedy string) *discovery.Problem {
	return &discovery.Problem{Origin: l.origin(line), Reason: reason, Remedy: remedy}
}

func (l *loader) origin(line int) discovery.Origin {
	return discovery.Origin{Place: l.place, Line: line}
}

func (l *loader) file(t *tree) *discovery.Problem {
	if t.find("kind") != nil {
		return l.entry(t)
	}
	for _, p := range t.object {
		var bad *discovery.Problem
		switch fold(p.key) {
		case "service", "services":
			bad = each(p.value, l.service)
		case "configentries":
			bad = each(p.value, l.configEntries)
		case "name", "id", "port":
			bad = l.problem(p.line, strconv.Quote(p.key)+" stands outside of any service", "put the definition into service { … }")
		case "check", "checks":
			bad = l.problem(p.line, "a check outside of its service", "put it into the service { … } that it checks")
		default:
			bad = l.problem(p.line, strconv.Quote(p.key)+" defines neither a service nor a config entry", "keep `service`, `services`, `config_entries` or one config entry with its Kind here; the agent's own settings belong elsewhere")
		}
		if bad != nil {
			return bad
		}
	}
	return nil
}

// each calls f for one value or for all of a list.
func each(t *tree, f func(*tree) *discovery.Problem) *discovery.Problem {
	if !t.isList {
		return f(t)
	}
	for _, e := range t.list {
		if p := each(e, f); p != nil {
			return p
		}
	}
	return nil
}

func (l *loader) configEntries(t *tree) *discovery.Problem {
	for _, p := range t.object {
		if fold(p.key) != "bootstrap" {
			return l.problem(p.line, strconv.Quote(p.key)+" is no part of config_entries", "write config_entries { bootstrap = [ { kind = … } ] }")
		}
		if bad := each(p.value, l.entry); bad != nil {
			return bad
		}
	}
	return nil
}

func (l *loader) entry(t *tree) *discovery.Problem {
	fields, ok := t.plain().(map[string]any)
	if !ok {
		return l.problem(t.line, "a config entry is a block of fields", "write { kind = … name = … }")
	}
	e, err := discovery.DecodeConfigEntry(fields, l.origin(t.line))
	if err != nil {
		return l.fieldProblem(t, err)
	}
	for _, o := range l.out.entries {
		if o.Key == e.Key {
			return l.problem(t.line, fmt.Sprintf("the entry %s %q stands in this file twice, first in line %d", e.Key.Kind, e.Key.Name, o.Origin.Line), "write it once")
		}
	}
	l.out.entries = append(l.out.entries, e)
	return nil
}

func (l *loader) service(t *tree) *discovery.Problem {
	fields, ok := t.plain().(map[string]any)
	if !ok {
		return l.problem(t.line, "a service is a block of fields", "write service { name = … }")
	}
	// service "web" { … } names it by its label.
	if len(t.object) == 1 && t.object[0].value.isObj && !known(t.object[0].key) {
		t = t.object[0].value
		fields, _ = t.plain().(map[string]any)
	}
	r, err := discovery.DecodeRegistration(fields, l.node, l.origin(t.line))
	if err != nil {
		return l.fieldProblem(t, err)
	}
	for _, o := range l.out.registrations {
		for _, mine := range ids(r) {
			for _, other := range ids(o) {
				if mine == other {
					return l.problem(t.line, fmt.Sprintf("the service id %q stands in this file twice, first in line %d", mine, o.Instance.Origin.Line), "give each instance an id of its own")
				}
			}
		}
	}
	l.out.registrations = append(l.out.registrations, r)
	return nil
}

// known says whether a lone field of a service can be a field at all.
func known(key string) bool {
	return fold(key) != "" && (fold(key) == "name" || fold(key) == "connect" || fold(key) == "proxy" || fold(key) == "check" || fold(key) == "meta")
}

func (l *loader) fieldProblem(t *tree, err error) *discovery.Problem {
	var f *discovery.FieldError
	if !errors.As(err, &f) {
		return l.problem(t.line, err.Error(), "")
	}
	reason := f.Reason
	if f.Path != "" {
		reason = f.Path + ": " + reason
	}
	return l.problem(t.lineOf(f.Path), reason, f.Remedy)
}

// ids are the ids that a registration takes, its sidecar's among them.
func ids(r *discovery.Registration) []string {
	if r.Sidecar != nil {
		return []string{r.Instance.ID, r.Sidecar.Instance.ID}
	}
	return []string{r.Instance.ID}
}
