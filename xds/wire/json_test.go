package wire

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/resource/resourcetest"
)

// TestJSONLaw: what JSON wrote is read back as the same resource.
func TestJSONLaw(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := resourcetest.Resource().Draw(t, "resource")
		if s, ok := r.(*resource.Secret); ok && len(s.KeyPEM) > 0 {
			return // a key is redacted, see TestJSONRedacts
		}
		raw, err := JSON(r)
		if err != nil {
			t.Fatal(err)
		}
		back, _, err := FromJSON(r.ResourceType(), raw)
		if err != nil {
			t.Fatalf("%v in %s", err, raw)
		}
		if !resource.Equal(r, back) {
			t.Fatalf("%#v came back as %#v", r, back)
		}
	})
}

func TestJSONRedacts(t *testing.T) {
	raw, err := JSON(&resource.Secret{Name: "default", ChainPEM: []byte("CHAIN"), KeyPEM: []byte("THE PRIVATE KEY")})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(raw), "VEhFIFBSSVZBVEUgS0VZ") || strings.Contains(string(raw), "PRIVATE") {
		t.Errorf("the key is shown: %s", raw)
	}
}

func TestFromJSONErrors(t *testing.T) {
	for _, c := range []struct {
		typ  resource.Type
		json string
		want string
	}{
		{resource.TypeCluster, `{"name": "c", "colour": "red"}`, "colour"},
		{resource.TypeCluster, `{`, "unexpected"},
		{resource.Type("type.googleapis.com/x.Y"), `{}`, "no such type"},
	} {
		if _, _, err := FromJSON(c.typ, []byte(c.json)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.json, err, c.want)
		}
	}
}
