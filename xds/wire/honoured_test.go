package wire

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/parrel-mesh/parrel/test/golden"
	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/resource/resourcetest"
)

func descriptor(t *testing.T, name protoreflect.FullName) protoreflect.MessageDescriptor {
	t.Helper()
	mt, err := protoregistry.GlobalTypes.FindMessageByName(name)
	if err != nil {
		t.Fatalf("%s stands in the table and is no message: %v", name, err)
	}
	return mt.Descriptor()
}

// TestHonouredTable lists every field of every message of the table. A field
// that a new version of Envoy's API brings shows up here as not honoured.
func TestHonouredTable(t *testing.T) {
	var names []string
	for n := range table {
		names = append(names, string(n))
	}
	slices.Sort(names)
	var b strings.Builder
	for _, n := range names {
		md := descriptor(t, protoreflect.FullName(n))
		rule := "warns"
		if isStrict(md.FullName()) {
			rule = "refuses"
		}
		fmt.Fprintf(&b, "%s (what is not honoured %s)\n", n, rule)
		known := map[protoreflect.Name]bool{}
		for i := range md.Fields().Len() {
			f := md.Fields().Get(i)
			known[f.Name()] = true
			mark := "-"
			if table[md.FullName()][f.Name()] {
				mark = "+"
			}
			fmt.Fprintf(&b, "  %s %s\n", mark, f.Name())
		}
		for f := range table[md.FullName()] {
			if !known[f] {
				t.Errorf("%s has no field %s", n, f)
			}
		}
	}
	golden.Check(t, "testdata/honoured.txt", b.String())
}

// leaves are messages that are read as a whole.
func leaf(n protoreflect.FullName) bool { return strings.HasPrefix(string(n), "google.protobuf.") }

// TestHonouredMessagesAreInTheTable: what an honoured field leads to is walked too.
func TestHonouredMessagesAreInTheTable(t *testing.T) {
	for n, fields := range table {
		md := descriptor(t, n)
		for f := range fields {
			fd := md.Fields().ByName(f)
			if fd == nil {
				continue // TestHonouredTable says so
			}
			m := fd.Message()
			if fd.IsMap() {
				m = fd.MapValue().Message()
			}
			if m != nil && !leaf(m.FullName()) && table[m.FullName()] == nil {
				t.Errorf("%s.%s leads to %s, which is not in the table", n, f, m.FullName())
			}
		}
	}
}

// TestHonouredFieldsAreUsed: each field that counts as honoured is written by
// Encode, or stands in one of the foreign documents that Decode is tested with.
func TestHonouredFieldsAreUsed(t *testing.T) {
	used := map[string]bool{}
	visit := func(a *anypb.Any) { collect(a.ProtoReflect(), used) }
	for i := range 400 {
		for _, r := range []resource.Resource{
			resourcetest.Listener().Example(i), resourcetest.RouteConfig().Example(i), resourcetest.Cluster().Example(i),
			resourcetest.Endpoints().Example(i), resourcetest.Secret().Example(i),
		} {
			a, err := Encode(r)
			if err != nil {
				t.Fatal(err)
			}
			visit(a)
		}
	}
	for _, d := range documents(t) {
		visit(d.any)
	}
	for typ, text := range staticDocuments {
		m, err := fromJSON(typ, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		collect(m.ProtoReflect(), used)
	}
	for n, fields := range table {
		for f := range fields {
			if key := string(n) + "." + string(f); !used[key] {
				t.Errorf("%s counts as honoured and no test has it", key)
			}
		}
	}
}

func collect(m protoreflect.Message, used map[string]bool) {
	eachMessage(m, func(m protoreflect.Message) {
		m.Range(func(fd protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
			used[string(m.Descriptor().FullName())+"."+string(fd.Name())] = true
			return true
		})
	})
}

// eachMessage visits m and every message below it; an Any is what it holds.
func eachMessage(m protoreflect.Message, f func(protoreflect.Message)) {
	if a, ok := m.Interface().(*anypb.Any); ok {
		in, err := a.UnmarshalNew()
		if err != nil {
			return
		}
		m = in.ProtoReflect()
	}
	f(m)
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					eachMessage(v.Message(), f)
					return true
				})
			}
		case fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				eachMessage(v.List().Get(i).Message(), f)
			}
		default:
			eachMessage(v.Message(), f)
		}
		return true
	})
}

// TestUnhonouredFieldsAreReported populates every field that is not honoured,
// one at a time, and expects its name in a warning or a refusal.
func TestUnhonouredFieldsAreReported(t *testing.T) {
	for n, fields := range table {
		md := descriptor(t, n)
		mt, _ := protoregistry.GlobalTypes.FindMessageByName(n)
		for i := range md.Fields().Len() {
			fd := md.Fields().Get(i)
			if fields[fd.Name()] {
				continue
			}
			m := mt.New()
			populate(m, fd)
			d := &decoder{}
			d.walk("", m, false, 0)
			strict := isStrict(n)
			switch {
			case strict && (len(d.errs) != 1 || d.errs[0].Field != string(fd.Name())):
				t.Errorf("%s.%s is not refused: %v", n, fd.Name(), d.errs)
			case !strict && (len(d.warns)+len(d.errs) != 1):
				t.Errorf("%s.%s is not reported: %v %v", n, fd.Name(), d.warns, d.errs)
			}
		}
	}
}

// populate sets one field to something that is not its default.
func populate(m protoreflect.Message, fd protoreflect.FieldDescriptor) {
	switch {
	case fd.IsList():
		l := m.Mutable(fd).List()
		if fd.Message() != nil {
			l.AppendMutable()
		} else {
			l.Append(scalar(fd))
		}
	case fd.IsMap():
		mp := m.Mutable(fd).Map()
		key := scalar(fd.MapKey()).MapKey()
		if fd.MapValue().Message() != nil {
			mp.Mutable(key)
		} else {
			mp.Set(key, scalar(fd.MapValue()))
		}
	case fd.Message() != nil:
		m.Mutable(fd)
	default:
		m.Set(fd, scalar(fd))
	}
}

func scalar(fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("x")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("x"))
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(1)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(1)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(1)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(1)
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(1)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(1)
	}
	panic(fmt.Sprintf("no value for %s", fd.FullName()))
}
