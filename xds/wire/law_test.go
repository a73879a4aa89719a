package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"pgregory.net/rapid"

	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/resource/resourcetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func law[R resource.Resource](gen *rapid.Generator[R]) func(*testing.T) {
	return func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			x := gen.Draw(t, "x")
			constraints(t, roundTrip(t, x).ProtoReflect())
		})
	}
}

// roundTrip holds x to the law: Decode(Encode(x)) == x, without a warning, and
// encoding is deterministic.
func roundTrip(t interface {
	Helper()
	Fatalf(string, ...any)
}, x resource.Resource) *anypb.Any {
	t.Helper()
	a, err := Encode(x)
	if err != nil {
		t.Fatalf("encode: %v", err)
	}
	if resource.Type(a.TypeUrl) != x.ResourceType() {
		t.Fatalf("type %s", a.TypeUrl)
	}
	y, warns, err := Decode(a)
	if err != nil {
		t.Fatalf("decode: %v", err)
	}
	if len(warns) > 0 {
		t.Fatalf("warnings about our own encoding: %v", warns)
	}
	if !resource.Equal(x, y) {
		bx, _ := json.MarshalIndent(x, "", " ")
		by, _ := json.MarshalIndent(y, "", " ")
		t.Fatalf("the law is broken:\n%s\n%s", bx, by)
	}
	b, err := Encode(y)
	if err != nil || !bytes.Equal(a.Value, b.Value) {
		t.Fatalf("encoding is not deterministic (%v)", err)
	}
	return a
}

// constraints holds what is sent to the rules that Envoy itself refuses by
// (protoc-gen-validate), through every Any.
func constraints(t interface {
	Helper()
	Fatalf(string, ...any)
}, m protoreflect.Message) {
	t.Helper()
	eachMessage(m, func(m protoreflect.Message) {
		if v, ok := m.Interface().(interface{ ValidateAll() error }); ok {
			if err := v.ValidateAll(); err != nil {
				t.Fatalf("Envoy would refuse it: %v", err)
			}
		}
	})
}

func TestLawListener(t *testing.T)  { law(resourcetest.Listener())(t) }
func TestLawRoute(t *testing.T)     { law(resourcetest.RouteConfig())(t) }
func TestLawCluster(t *testing.T)   { law(resourcetest.Cluster())(t) }
func TestLawEndpoints(t *testing.T) { law(resourcetest.Endpoints())(t) }
func TestLawSecret(t *testing.T)    { law(resourcetest.Secret())(t) }

func TestEncodeRefusesWhatIsInvalid(t *testing.T) {
	_, err := Encode(&resource.Cluster{})
	var e *Error
	if !errors.As(err, &e) || e.Field != "name" {
		t.Fatal(err)
	}
}

func TestDecodeRefusesWhatItCannotRead(t *testing.T) {
	for _, a := range []*anypb.Any{nil, {}, {TypeUrl: "type.googleapis.com/x"}, {TypeUrl: string(resource.TypeCluster), Value: []byte{0xff}}} {
		if r, _, err := Decode(a); err == nil || r != nil {
			t.Errorf("%v: %v, %v", a, r, err)
		}
	}
}

func fuzz(f *testing.F, typ resource.Type, seeds []resource.Resource) {
	for _, s := range seeds {
		a, err := Encode(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(a.Value)
	}
	for _, d := range documents(f) {
		if d.any.TypeUrl == string(typ) {
			f.Add(d.any.Value)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, _, err := Decode(&anypb.Any{TypeUrl: string(typ), Value: b})
		if err != nil {
			return
		}
		if err := r.Validate(); err != nil {
			t.Fatalf("what was decoded is not valid: %v", err)
		}
		roundTrip(t, r)
	})
}

// seeds are the first few resources of a generator, always the same.
func seeds[R resource.Resource](gen *rapid.Generator[R]) []resource.Resource {
	var out []resource.Resource
	for i := range 8 {
		out = append(out, gen.Example(i))
	}
	return out
}

func FuzzDecodeListener(f *testing.F) {
	fuzz(f, resource.TypeListener, seeds(resourcetest.Listener()))
}
func FuzzDecodeRoute(f *testing.F) { fuzz(f, resource.TypeRoute, seeds(resourcetest.RouteConfig())) }
func FuzzDecodeCluster(f *testing.F) {
	fuzz(f, resource.TypeCluster, seeds(resourcetest.Cluster()))
}
func FuzzDecodeEndpoints(f *testing.F) {
	fuzz(f, resource.TypeEndpoints, seeds(resourcetest.Endpoints()))
}
func FuzzDecodeSecret(f *testing.F) { fuzz(f, resource.TypeSecret, seeds(resourcetest.Secret())) }
