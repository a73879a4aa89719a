package consul

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/test/consultest"
)

// shipped reads a policy of deploy/consul-acl for a service.
func shipped(t *testing.T, name, service string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "deploy", "consul-acl", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(b), "SERVICE", service)
}

var aclRule = regexp.MustCompile(`(?ms)^(?:\w+ "[^"]*" \{.*?^\}|\w+ = "\w+")$`)

// aclAgent is an agent that denies by default.
type aclAgent struct {
	*consultest.Agent
	t    *testing.T
	root *api.Client
	n    int
}

func newACLAgent(t *testing.T) *aclAgent {
	t.Helper()
	a := &aclAgent{t: t, Agent: consultest.Dev(t, consultest.Options{HCL: `acl { enabled = true default_policy = "deny" tokens { initial_management = "` + rootToken + `" agent = "` + rootToken + `" default = "` + rootToken + `" } }`})} // requests without a token are the test's own
	a.root = a.client(rootToken)
	return a
}

func (a *aclAgent) client(token string) *api.Client {
	a.t.Helper()
	c, err := api.NewClient(&api.Config{Address: a.HTTP, Token: token})
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// token makes a token with these rules.
func (a *aclAgent) token(rules string) string {
	a.t.Helper()
	a.n++
	p, _, err := a.root.ACL().PolicyCreate(&api.ACLPolicy{Name: fmt.Sprintf("p%d", a.n), Rules: rules}, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	tok, _, err := a.root.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLTokenPolicyLink{{ID: p.ID}}}, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	return tok.SecretID
}

// sidecarLife is all that a sidecar does with its agent.
func (a *aclAgent) sidecarLife(ctx context.Context, token string) error {
	reg, err := NewRegistrar(Config{Address: a.HTTP, Token: token})
	if err != nil {
		return err
	}
	defer reg.Close()
	d, err := ParseDefinition(`{"name":"web","id":"web-1","port":8080,"connect":{"sidecar_service":{"proxy":{"mode":"transparent"}}}}`)
	if err != nil {
		return err
	}
	at := d.At("", "")
	if err := reg.Register(ctx, at); err != nil {
		return err
	}
	l, err := reg.Lookup(ctx, "web-1")
	switch {
	case err != nil:
		return err
	case l.Proxy == nil:
		return fmt.Errorf("the proxy is not seen")
	case l.Node == "":
		return fmt.Errorf("the agent does not say who it is")
	}
	if err := reg.Report(ctx, at, true); err != nil {
		return err
	}
	if err := reg.RegisterProxy(ctx, ProxyRegistration{Service: "web", ServiceID: "web-1", Port: 21000, ServicePort: 8080}); err != nil {
		return err
	}
	if _, err := reg.Declare(ctx, "web", "http"); err != nil {
		return err
	}
	return reg.Deregister(ctx, at)
}

// TestSidecarPolicy: deploy/consul-acl/sidecar.hcl allows all that the sidecar of
// a service does and nothing else, and none of its rules is too much.
func TestSidecarPolicy(t *testing.T) {
	a := newACLAgent(t)
	rules := shipped(t, "sidecar.hcl", "web")
	token := a.token(rules)
	if err := a.sidecarLife(t.Context(), token); err != nil {
		t.Fatalf("the shipped policy does not suffice: %v", err)
	}
	parts := aclRule.FindAllString(rules, -1)
	if len(parts) != 3 {
		t.Fatalf("%d rules were found: %q", len(parts), parts)
	}
	for _, p := range parts {
		if _, _, err := a.root.ConfigEntries().Get(api.ServiceDefaults, "web", nil); err == nil {
			if _, err := a.root.ConfigEntries().Delete(api.ServiceDefaults, "web", nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.sidecarLife(t.Context(), a.token(strings.Replace(rules, p, "", 1))); err == nil {
			t.Errorf("a sidecar does as well without the rule\n%s", p)
		}
	}

	c := a.client(token)
	for what, try := range map[string]func() error{
		"register another service": func() error { return c.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "api"}) },
		"register a proxy for another service": func() error {
			return c.Agent().ServiceRegister(&api.AgentServiceRegistration{Kind: api.ServiceKindConnectProxy, Name: "web-sidecar-proxy", ID: "x", Port: 1,
				Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: "api"}})
		},
		"declare another service's protocol": func() error {
			_, _, err := c.ConfigEntries().Set(&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "api", Protocol: "http"}, nil)
			return err
		},
		"write intentions, of its own service too": func() error {
			_, _, err := c.ConfigEntries().Set(&api.ServiceIntentionsConfigEntry{Kind: api.ServiceIntentions, Name: "web",
				Sources: []*api.SourceIntention{{Name: "*", Action: api.IntentionActionAllow}}}, nil)
			return err
		},
		"read used tokens": func() error {
			_, _, err := c.KV().Get("parrel/x", nil)
			return err
		},
		"write proxy-defaults": func() error {
			_, _, err := c.ConfigEntries().Set(&api.ProxyConfigEntry{Kind: api.ProxyDefaults, Name: "global"}, nil)
			return err
		},
		"make tokens": func() error {
			_, _, err := c.ACL().TokenCreate(&api.ACLToken{}, nil)
			return err
		},
		"make the agent leave": func() error { return c.Agent().Leave() },
	} {
		if err := try(); err == nil || !strings.Contains(err.Error(), "403") {
			t.Errorf("a sidecar's token can %s: %v", what, err)
		}
	}
	if nodes, _, err := c.Catalog().Nodes(nil); err != nil || len(nodes) > 0 {
		t.Errorf("a sidecar's token sees nodes: %v %v", nodes, err)
	}
}

// TestControlPlanePolicy: deploy/consul-acl/controlplane.hcl lets a control plane
// see everything and record used tokens, write nothing else, and has no rule
// too many.
func TestControlPlanePolicy(t *testing.T) {
	a := newACLAgent(t)
	root := a.client(rootToken)
	if err := root.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "web", Port: 1, Connect: &api.AgentServiceConnect{Native: true}}); err != nil {
		t.Fatal(err)
	}
	for _, e := range []api.ConfigEntry{
		&api.ServiceIntentionsConfigEntry{Kind: api.ServiceIntentions, Name: "web", Sources: []*api.SourceIntention{{Name: "*", Action: api.IntentionActionDeny}}},
		&api.MeshConfigEntry{TransparentProxy: api.TransparentProxyMeshConfig{MeshDestinationsOnly: true}},
		&api.ExportedServicesConfigEntry{Name: "default", Services: []api.ExportedService{{Name: "web", Consumers: []api.ServiceConsumer{{Peer: "far"}}}}},
	} {
		if _, _, err := root.ConfigEntries().Set(e, nil); err != nil {
			t.Fatal(err)
		}
	}
	rules := shipped(t, "controlplane.hcl", "")
	token := a.token(rules)
	v, stop := run(t, Config{Address: a.HTTP, Token: token})
	defer stop()
	v.await(t, patience, "everything, by the shipped policy", func(v *view) bool {
		return len(proxies(v, "web")) == 1 && len(v.entries) >= 2 && v.policy == discovery.Deny && v.roots != nil
	})
	if len(v.status.Problems) > 0 || v.status.Stale {
		t.Errorf("status %+v", v.status)
	}
	c := a.client(token)
	if _, err := c.KV().Put(&api.KVPair{Key: "parrel/tokens/x"}, nil); err != nil {
		t.Errorf("it cannot record a used token: %v", err)
	}

	// What each rule is for, asked with a token that lacks it.
	needs := map[string]func(c *api.Client) bool{
		"node_prefix": func(c *api.Client) bool {
			n, _, err := c.Health().Service("web", "", false, nil)
			return err == nil && len(n) == 1
		},
		"service_prefix": func(c *api.Client) bool {
			n, _, err := c.Health().Service("web", "", false, nil)
			return err == nil && len(n) == 1
		},
		"agent_prefix": func(c *api.Client) bool { _, err := c.Agent().Self(); return err == nil },
		"mesh": func(c *api.Client) bool {
			e, _, err := c.ConfigEntries().List(api.ExportedServices, nil)
			return err == nil && len(e) == 1
		},
		"key_prefix": func(c *api.Client) bool { _, err := c.KV().Put(&api.KVPair{Key: "parrel/y"}, nil); return err == nil },
	}
	parts := aclRule.FindAllString(rules, -1)
	if len(parts) != len(needs) {
		t.Fatalf("%d rules were found: %q", len(parts), parts)
	}
	for _, p := range parts {
		need := needs[strings.Fields(p)[0]]
		if need == nil || !need(c) {
			t.Errorf("with the rule it does not work: %s", p)
		} else if need(a.client(a.token(strings.Replace(rules, p, "", 1)))) {
			t.Errorf("it works as well without the rule\n%s", p)
		}
	}

	for what, try := range map[string]func() error{
		"register a service": func() error { return c.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "web", Port: 2}) },
		"write intentions": func() error {
			_, _, err := c.ConfigEntries().Set(&api.ServiceIntentionsConfigEntry{Kind: api.ServiceIntentions, Name: "web",
				Sources: []*api.SourceIntention{{Name: "*", Action: api.IntentionActionAllow}}}, nil)
			return err
		},
		"write service-defaults": func() error {
			_, _, err := c.ConfigEntries().Set(&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "web", Protocol: "http"}, nil)
			return err
		},
		"write another key": func() error {
			_, err := c.KV().Put(&api.KVPair{Key: "other"}, nil)
			return err
		},
		"read tokens": func() error {
			_, _, err := c.ACL().TokenList(nil)
			return err
		},
		"make the agent leave": func() error { return c.Agent().Leave() },
	} {
		if err := try(); err == nil || !strings.Contains(err.Error(), "403") {
			t.Errorf("a control plane's token can %s: %v", what, err)
		}
	}
}
