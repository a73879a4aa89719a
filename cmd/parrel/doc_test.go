package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/parrel-mesh/parrel/controlplane/api"
	"github.com/parrel-mesh/parrel/test/golden"
)

const document = "../../docs/cli.md"

// TestReference: the reference in docs/cli.md is what the commands say.
func TestReference(t *testing.T) {
	golden.Part(t, document, "./cmd/parrel", reference())
}

func reference() string {
	var out strings.Builder
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Hidden || cmd.Name() == "help" || cmd.Name() == "completion" {
			return
		}
		if cmd.HasParent() {
			describe(&out, cmd)
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(newRoot().Command)
	return out.String()
}

func describe(out *strings.Builder, cmd *cobra.Command) {
	fmt.Fprintf(out, "\n### parrel %s\n\n%s.\n\n", name(cmd), cmd.Short)
	if cmd.HasSubCommands() && !cmd.LocalFlags().HasFlags() {
		return
	}
	fmt.Fprintf(out, "    %s\n\n", cmd.UseLine())
	if cmd.Long != "" {
		fmt.Fprintf(out, "%s\n\n", strings.TrimSpace(cmd.Long))
	}
	if !cmd.LocalFlags().HasAvailableFlags() {
		return
	}
	fmt.Fprintf(out, "| flag | value | default | meaning |\n|---|---|---|---|\n")
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		flag := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			flag += ", `-" + f.Shorthand + "`"
		}
		def := ""
		if f.DefValue != "" && f.DefValue != "[]" {
			def = "`" + f.DefValue + "`"
		}
		value := strings.NewReplacer("stringArray", "string, repeated", "bool", "–").Replace(f.Value.Type())
		fmt.Fprintf(out, "| %s | %s | %s | %s |\n", flag, value, def, strings.ReplaceAll(f.Usage, "|", "\\|"))
	})
}

// reports are the values that -o json prints, by the section that documents them.
func reports() map[string]any {
	return map[string]any{
		"status":  api.Status{},
		"config":  configDump{},
		"explain": api.Explanation{},
		"analyze": api.Analysis{},
		"version": versionInfo{},
	}
}

// keyRow is a row of a table of keys: | `source.age_ms` | integer, ms | meaning |.
var keyRow = regexp.MustCompile("(?m)^\\| `([a-z0-9_.\\[\\]<>]+)` \\| ([^|]+) \\| ([^|]+) \\|$")

// TestKeysAreDocumented: docs/cli.md has every key that -o json prints, with its
// type, and no other.
func TestKeysAreDocumented(t *testing.T) {
	b, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	for command, v := range reports() {
		_, section, found := strings.Cut(string(b), "\n### JSON of "+command+"\n")
		if !found {
			t.Errorf("%s has no section \"JSON of %s\"", document, command)
			continue
		}
		section, _, _ = strings.Cut(section, "\n#")
		documented := map[string]string{}
		for _, row := range keyRow.FindAllStringSubmatch(section, -1) {
			documented[row[1]] = row[2]
			if len(strings.TrimSpace(row[3])) < 3 {
				t.Errorf("%s: %s has no meaning", command, row[1])
			}
		}
		keys := map[string]string{}
		walkKeys(reflect.TypeOf(v), "", keys)
		for key, typ := range keys {
			switch said, ok := documented[key]; {
			case !ok:
				t.Errorf("%s: key %s (%s) is not documented", command, key, typ)
			case said != typ && !strings.HasPrefix(said, typ+","):
				t.Errorf("%s: key %s is documented as %q and is %q", command, key, said, typ)
			}
		}
		for key := range documented {
			if _, ok := keys[key]; !ok {
				t.Errorf("%s: the documented key %s does not exist", command, key)
			}
		}
	}
}

// walkKeys collects the JSON keys below a type, with the word for their type.
func walkKeys(t reflect.Type, at string, out map[string]string) {
	switch t.Kind() {
	case reflect.Pointer:
		walkKeys(t.Elem(), at, out)
		return
	case reflect.Struct:
		if t == reflect.TypeFor[time.Time]() {
			break
		}
		for f := range fields(t) {
			tag, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
			path := cmp.Or(tag, f.Name)
			if at != "" {
				path = at + "." + path
			}
			word := typeWord(f.Type)
			if strings.Contains(opts, "omitempty") {
				word += " or absent"
			}
			switch elem := f.Type; {
			case elem.Kind() == reflect.Slice && elem != reflect.TypeFor[json.RawMessage]():
				out[path+"[]"] = word
				if e := elem.Elem(); e.Kind() == reflect.Struct {
					walkKeys(e, path+"[]", out)
				}
			case elem.Kind() == reflect.Map:
				out[path+".<key>"] = word
			default:
				out[path] = word
				if e := deref(elem); e.Kind() == reflect.Struct && e != reflect.TypeFor[time.Time]() {
					walkKeys(e, path, out)
				}
			}
		}
	}
}

func deref(t reflect.Type) reflect.Type {
	if t.Kind() == reflect.Pointer {
		return t.Elem()
	}
	return t
}

func fields(t reflect.Type) func(func(reflect.StructField) bool) {
	return slices.Values(reflect.VisibleFields(t))
}

func typeWord(t reflect.Type) string {
	t = deref(t)
	switch {
	case t == reflect.TypeFor[time.Time]():
		return "time"
	case t == reflect.TypeFor[json.RawMessage]():
		return "object"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "boolean"
	case reflect.String:
		return "string"
	case reflect.Int, reflect.Int64, reflect.Uint32, reflect.Uint64:
		return "integer"
	case reflect.Slice:
		return "list of " + typeWord(t.Elem()) + "s"
	case reflect.Map:
		return "map to " + typeWord(t.Elem())
	}
	return "object"
}
