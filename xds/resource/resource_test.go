package resource_test

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/resource/resourcetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestGeneratedResourcesAreValid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := resourcetest.Resource().Draw(t, "r")
		if err := r.Validate(); err != nil {
			b, _ := json.Marshal(r)
			t.Fatalf("%v\n%s", err, b)
		}
		if !reflect.DeepEqual(resource.Normalise(clone(t, r)), r) {
			t.Fatal("Normalise changes what is normalised")
		}
	})
}

// clone copies by JSON, which turns nothing of what is modelled into something else.
func clone(t *rapid.T, r resource.Resource) resource.Resource {
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	c := reflect.New(reflect.TypeOf(r).Elem())
	if err := json.Unmarshal(b, c.Interface()); err != nil {
		t.Fatal(err)
	}
	return c.Interface().(resource.Resource)
}

func TestEqualAndHashAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := resourcetest.Resource().Draw(t, "a")
		b := clone(t, a)
		if !resource.Equal(a, b) || resource.Hash(a) != resource.Hash(b) {
			t.Fatal("a copy is another resource")
		}
		c := resourcetest.Resource().Draw(t, "c")
		if resource.Equal(a, c) != (resource.Hash(a) == resource.Hash(c)) {
			t.Fatal("Equal and Hash disagree")
		}
	})
}

// TestEveryFieldCounts changes one leaf at a time: Equal and Hash must see it.
func TestEveryFieldCounts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := resourcetest.Resource().Draw(t, "r")
		hash := resource.Hash(r)
		var visit func(v reflect.Value, path string)
		changed := func(path string) {
			if resource.Hash(r) == hash {
				t.Fatalf("Hash does not see %s", path)
			}
		}
		visit = func(v reflect.Value, path string) {
			switch v.Kind() {
			case reflect.Pointer:
				if !v.IsNil() {
					visit(v.Elem(), path)
				}
			case reflect.Struct:
				for i := range v.NumField() {
					if v.Type().Field(i).IsExported() {
						visit(v.Field(i), path+"."+v.Type().Field(i).Name)
					}
				}
			case reflect.Slice:
				for i := range v.Len() {
					visit(v.Index(i), path+"[]")
				}
			case reflect.String:
				old := v.String()
				v.SetString(old + "x")
				changed(path)
				v.SetString(old)
			case reflect.Bool:
				v.SetBool(!v.Bool())
				changed(path)
				v.SetBool(!v.Bool())
			}
		}
		visit(reflect.ValueOf(r), "")
	})
}

func TestNilAndEmptyAreTheSame(t *testing.T) {
	a := &resource.Endpoints{Cluster: "c", Localities: []resource.Locality{{Endpoints: []resource.Endpoint{{Metadata: resource.Metadata{}}}}}}
	b := &resource.Endpoints{Cluster: "c", Localities: []resource.Locality{{Endpoints: []resource.Endpoint{{}}}}}
	if !resource.Equal(a, b) || resource.Hash(a) != resource.Hash(b) {
		t.Fatal("an empty map is not nil")
	}
	if resource.Equal(a, &resource.Cluster{}) || resource.Equal(a, nil) || !resource.Equal(nil, nil) {
		t.Fatal("types are mixed up")
	}
}

func TestNormaliseCanonicalForms(t *testing.T) {
	r := resource.Normalise(&resource.RouteConfig{Name: "r", VirtualHosts: []resource.VirtualHost{{Routes: []resource.Route{
		{Redirect: &resource.Redirect{Code: 301}},
		{Forward: &resource.Forward{Retry: &resource.Retry{On: []string{"reset", "5xx", "reset"}}}},
	}}}})
	if c := r.VirtualHosts[0].Routes[0].Redirect.Code; c != 0 {
		t.Errorf("code %d", c)
	}
	if on := strings.Join(r.VirtualHosts[0].Routes[1].Forward.Retry.On, " "); on != "5xx reset" {
		t.Errorf("retry on %q", on)
	}
	c := resource.Normalise(&resource.Cluster{Name: "c", EDSName: "c", LB: resource.LBPolicy{LeastRequest: &resource.LeastRequest{}},
		TLS: &resource.UpstreamTLS{TLSParams: resource.TLSParams{MinVersion: "1.3", MaxVersion: "1.3"}}})
	if c.EDSName != "" || c.LB.LeastRequest != nil || c.TLS.MinVersion != "" || c.TLS.MaxVersion != "" {
		t.Errorf("%+v", c)
	}
}

// TestValidate breaks one thing of a good resource at a time and expects the
// path of the field that is wrong.
func TestValidate(t *testing.T) {
	for _, tc := range invalid() {
		t.Run(tc.field, func(t *testing.T) {
			err := tc.r.Validate()
			var fe *resource.FieldError
			if !errors.As(err, &fe) {
				t.Fatalf("want a field error at %s, got %v", tc.field, err)
			}
			if !strings.Contains("\n"+err.Error(), "\n"+tc.field+": ") {
				t.Fatalf("want an error at %s, got\n%v", tc.field, err)
			}
		})
	}
}
