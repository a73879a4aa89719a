//go:build !race

package decide

import (
	"testing"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// The race detector makes sync.Pool, which regexp stands on, forget at random:
// what allocates is told without it.

func TestAuthoriseDoesNotAllocate(t *testing.T) {
	c, err := CompileRBAC(rules(resource.RBACAllow,
		pol("a", resource.Permission{Header: &resource.HeaderMatch{Name: "x-a", String: str(resource.StringRegex, "b+")}}, anyone),
		pol("b", resource.Permission{And: []resource.Permission{{Path: str(resource.StringPrefix, "/a")}, {DestinationIP: "10.0.0.0/8"}}},
			resource.Principal{Authenticated: &resource.AuthenticatedPrincipal{Name: str(resource.StringRegex, "spiffe://.*/web")}})))
	if err != nil {
		t.Fatal(err)
	}
	h, f := get("/a?x", "x-a", "a"), facts()
	var v AuthVerdict
	if n := testing.AllocsPerRun(200, func() { v = c.Authorise(h, f, nil) }); n != 0 || v.Policy != "b" {
		t.Errorf("%v allocations, %+v", n, v)
	}
}
