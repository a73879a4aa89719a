package l7

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// TestUnderscores: fields with an underscore go, or the request does.
func TestUnderscores(t *testing.T) {
	h := stream.Header{{Name: "x_user", Value: "1"}, {Name: "x-user", Value: "2"}, {Name: "a_", Value: "3"}}
	if err := underscores(&h, resource.DropUnderscores); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(stream.Header{{Name: "x-user", Value: "2"}}, h); d != "" {
		t.Error(d)
	}
	if err := underscores(&h, resource.RejectUnderscores); err != nil {
		t.Errorf("a request without them is refused: %v", err)
	}
	h.Add("x_user", "1")
	if err := underscores(&h, resource.RejectUnderscores); err == nil {
		t.Error("a request with one is taken")
	}
}
