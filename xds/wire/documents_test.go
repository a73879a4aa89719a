package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/parrel-mesh/parrel/test/golden"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// document is one resource as another control plane sends it, in protojson.
type document struct {
	name string
	any  *anypb.Any
}

// documents reads testdata/foreign.txtar: files NAME.json, each an Any.
func documents(t testing.TB) []document {
	t.Helper()
	ar, err := txtar.ParseFile("testdata/foreign.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var out []document
	for _, f := range ar.Files {
		a := &anypb.Any{}
		if err := protojson.Unmarshal(f.Data, a); err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
		out = append(out, document{f.Name, a})
	}
	return out
}

// TestForeign decodes what other control planes send and compares resource,
// warnings and errors with testdata/foreign.golden.
func TestForeign(t *testing.T) {
	var b strings.Builder
	for _, d := range documents(t) {
		fmt.Fprintf(&b, "-- %s --\n", d.name)
		r, warns, err := Decode(d.any)
		for _, w := range warns {
			fmt.Fprintln(&b, "warning:", w)
		}
		if err != nil {
			fmt.Fprintln(&b, "refused:", err)
			var e *Error
			if !errors.As(err, &e) {
				t.Errorf("%s: %T is no *Error", d.name, err)
			}
			continue
		}
		roundTrip(t, r)
		j, err := json.MarshalIndent(pruned(t, r), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s\n", j)
	}
	golden.Check(t, "testdata/foreign.golden", b.String())
}

// TestEncoding pins what parrel sends, in protojson, to testdata/encoding.golden.
func TestEncoding(t *testing.T) {
	var b strings.Builder
	for _, r := range samples() {
		a, err := Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		j, err := protojson.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := json.Unmarshal(j, &v); err != nil {
			t.Fatal(err)
		}
		out, _ := json.MarshalIndent(v, "", "  ") // protojson's own spacing is not stable
		fmt.Fprintf(&b, "-- %s %s --\n%s\n", r.ResourceType().Short(), r.ResourceName(), out)
	}
	golden.Check(t, "testdata/encoding.golden", b.String())
}

// pruned is the resource's JSON without zero values.
func pruned(t *testing.T, r resource.Resource) any {
	t.Helper()
	j, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(j, &v); err != nil {
		t.Fatal(err)
	}
	return prune(v)
}

func prune(v any) any {
	switch x := v.(type) {
	case map[string]any:
		for k, e := range x {
			if empty(e) {
				delete(x, k)
			} else {
				x[k] = prune(e)
			}
		}
	case []any:
		for i := range x {
			x[i] = prune(x[i])
		}
	}
	return v
}

func empty(v any) bool {
	switch x := v.(type) {
	case nil:
		return true
	case bool:
		return !x
	case string:
		return x == ""
	case float64:
		return x == 0
	}
	return false
}
