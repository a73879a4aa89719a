package rbac

import (
	"errors"
	"testing"

	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/sidecar/filter"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const web = "spiffe://td/ns/default/dc/dc1/svc/web"

func rules(a resource.RBACAction, names ...string) *resource.RBACRules {
	r := &resource.RBACRules{Action: a}
	for _, n := range names {
		r.Policies = append(r.Policies, resource.RBACPolicy{Name: n, Permissions: []resource.Permission{{Any: true}},
			Principals: []resource.Principal{{Authenticated: &resource.AuthenticatedPrincipal{Name: &resource.StringMatch{Value: web}}}}})
	}
	return r
}

func TestVerdicts(t *testing.T) {
	for name, tt := range map[string]struct {
		c            resource.RBAC
		peer         string
		denied       bool
		shadow       string
		shadowDenied bool
	}{
		"allowed":            {c: resource.RBAC{Rules: rules(resource.RBACAllow, "p")}, peer: web},
		"another peer":       {c: resource.RBAC{Rules: rules(resource.RBACAllow, "p")}, peer: web + "x", denied: true},
		"no peer":            {c: resource.RBAC{Rules: rules(resource.RBACAllow, "p")}, denied: true},
		"allow of nothing":   {c: resource.RBAC{Rules: rules(resource.RBACAllow)}, peer: web, denied: true},
		"deny of nothing":    {c: resource.RBAC{Rules: rules(resource.RBACDeny)}, peer: web},
		"denied":             {c: resource.RBAC{Rules: rules(resource.RBACDeny, "p")}, peer: web, denied: true},
		"shadow only denies": {c: resource.RBAC{Shadow: rules(resource.RBACDeny, "s")}, peer: web, shadow: "s", shadowDenied: true},
		"shadow would allow": {c: resource.RBAC{Rules: rules(resource.RBACDeny, "p"), Shadow: rules(resource.RBACAllow, "s")}, peer: web, denied: true, shadow: "s"},
		"shadow agrees":      {c: resource.RBAC{Rules: rules(resource.RBACAllow, "p"), Shadow: rules(resource.RBACAllow, "s")}, peer: web},
	} {
		e := Entry()
		f, err := e.New(&resource.HTTPFilter{RBAC: &tt.c}, filter.Deps{})
		if err != nil {
			t.Fatal(name, err)
		}
		x := &filter.Exchange{Facts: &decide.Facts{PeerID: tt.peer}, Record: &telemetry.Record{}}
		resp, _, err := f.Request(t.Context(), x, &stream.Request{Head: stream.RequestHead{Method: "GET", Path: "/"}})
		var a *filter.Abort
		if resp != nil || errors.As(err, &a) != tt.denied || tt.denied && (a.Code != telemetry.RBACDenied || a.Status != 403 || a.Detail == "") {
			t.Errorf("%s: %v %v", name, resp, err)
		}
		if x.Record.ShadowPolicy != tt.shadow || x.Record.ShadowDenied != tt.shadowDenied {
			t.Errorf("%s: shadow %q %v", name, x.Record.ShadowPolicy, x.Record.ShadowDenied)
		}
	}
}

func TestNothingToEnforce(t *testing.T) {
	if f, err := Entry().New(&resource.HTTPFilter{RBAC: &resource.RBAC{}}, filter.Deps{}); f != nil || err != nil {
		t.Errorf("%v %v", f, err)
	}
}

// Rules that do not compile leave no chain, and so no unprotected listener.
func TestBadRules(t *testing.T) {
	r := rules(resource.RBACAllow, "p")
	r.Policies[0].Permissions = []resource.Permission{{Path: &resource.StringMatch{Kind: resource.StringRegex, Value: "("}}}
	if _, err := Entry().New(&resource.HTTPFilter{RBAC: &resource.RBAC{Rules: r}}, filter.Deps{}); err == nil {
		t.Error("a broken regular expression was accepted")
	}
}

// TestParameters: a target with path parameters passes only if it would pass
// without them, too.
func TestParameters(t *testing.T) {
	only := func(a resource.RBACAction, path string) *resource.RBAC {
		return &resource.RBAC{Rules: &resource.RBACRules{Action: a, Policies: []resource.RBACPolicy{{Name: "p", Principals: []resource.Principal{{Any: true}},
			Permissions: []resource.Permission{{Path: &resource.StringMatch{Kind: resource.StringExact, Value: path}}}}}}}
	}
	for _, tt := range []struct {
		rules  *resource.RBAC
		path   string
		denied bool
	}{
		{only(resource.RBACDeny, "/secret"), "/secret;x", true}, {only(resource.RBACDeny, "/secret"), "/;x/secret", true},
		{only(resource.RBACDeny, "/secret;x"), "/secret;x", true}, {only(resource.RBACDeny, "/secret"), "/public;x", false},
		{only(resource.RBACAllow, "/public"), "/public;x", true}, {only(resource.RBACAllow, "/public"), "/public", false},
	} {
		f, err := Entry().New(&resource.HTTPFilter{RBAC: tt.rules}, filter.Deps{})
		if err != nil {
			t.Fatal(err)
		}
		x := &filter.Exchange{Facts: &decide.Facts{}, Record: &telemetry.Record{}}
		_, _, err = f.Request(t.Context(), x, &stream.Request{Head: stream.RequestHead{Method: "GET", Path: tt.path}})
		if (err != nil) != tt.denied {
			t.Errorf("%s: %v, want denied %v", tt.path, err, tt.denied)
		}
	}
}
