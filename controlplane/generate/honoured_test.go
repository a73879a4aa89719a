package generate

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/parrel-mesh/parrel/controlplane/internal/meshtest"
	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// baseline is the mesh in which one field at a time is changed: web calls api
// with everything set that other fields depend on.
const baseline = `{
 "default": "deny",
 "services": [
  {"Name": "web", "Port": 8080, "Connect": {"SidecarService": {"Port": 20000, "Proxy": {
     "Upstreams": [{"DestinationName": "api", "LocalBindPort": 9001}]}}}},
  {"Name": "api", "Port": 8081, "Connect": {"SidecarService": {"Port": 20001}}}
 ],
 "entries": [
  {"Kind": "proxy-defaults", "Name": "global", "Config": {}},
  {"Kind": "service-defaults", "Name": "web", "UpstreamConfig": {"Defaults": {}, "Overrides": [{"Name": "api", "ConnectTimeoutMs": 1111}]}},
  {"Kind": "mesh", "HTTP": {"Incoming": {"RequestNormalization": {}}}},
  {"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "api", "Action": "allow"}]}
 ]}`

// values gives each honoured field a value that is not the baseline's.
func values() map[string]any {
	v := map[string]any{
		"service-defaults Protocol":                             "http",
		"service-defaults MaxInboundConnections":                7,
		"service-defaults LocalConnectTimeoutMs":                70,
		"service-defaults LocalRequestTimeoutMs":                700,
		"service-defaults UpstreamConfig.Overrides[].Name":      "other",
		"service-defaults UpstreamConfig.Overrides[].Namespace": "other",
		"service-defaults UpstreamConfig.Overrides[].Partition": "other",

		"proxy-defaults Config.protocol": "http",

		"service-intentions Sources[].Name":      "other",
		"service-intentions Sources[].Namespace": "other",
		"service-intentions Sources[].Partition": "other",
		"service-intentions Sources[].Action":    "deny",
		"service-intentions Sources[].Peer":      "other",

		"mesh HTTP.Incoming.RequestNormalization.InsecureDisablePathNormalization": true,
		"mesh HTTP.Incoming.RequestNormalization.MergeSlashes":                     true,
		"mesh HTTP.Incoming.RequestNormalization.PathWithEscapedSlashesAction":     "KEEP_UNCHANGED",
		"mesh HTTP.Incoming.RequestNormalization.HeadersWithUnderscoresAction":     "DROP_HEADER",

		"service Proxy.DestinationServiceName":                "other",
		"service Proxy.DestinationServiceID":                  "other-1",
		"service Proxy.LocalServiceAddress":                   "127.0.0.9",
		"service Proxy.LocalServicePort":                      99,
		"service Proxy.LocalServiceSocketPath":                "/run/web.sock",
		"service Proxy.Upstreams[].DestinationName":           "other",
		"service Proxy.Upstreams[].DestinationNamespace":      "other",
		"service Proxy.Upstreams[].DestinationPartition":      "other",
		"service Proxy.Upstreams[].DestinationType":           "prepared_query",
		"service Proxy.Upstreams[].DestinationPeer":           "other",
		"service Proxy.Upstreams[].Datacenter":                "dc2",
		"service Proxy.Upstreams[].LocalBindAddress":          "127.0.0.9",
		"service Proxy.Upstreams[].LocalBindPort":             9009,
		"service Proxy.Upstreams[].LocalBindSocketPath":       "/run/up.sock",
		"service Proxy.Upstreams[].Config.connect_timeout_ms": 55,
	}
	for _, where := range []string{"service-defaults ", "proxy-defaults ", "service Proxy."} {
		v[where+"Mode"] = "transparent"
		v[where+"TransparentProxy.OutboundListenerPort"] = 16001
		v[where+"TransparentProxy.DialedDirectly"] = true
	}
	v["service-defaults Destination.Addresses[]"], v["service-defaults Destination.Port"] = []any{"outside.example"}, 443
	v["service-defaults MutualTLSMode"], v["proxy-defaults MutualTLSMode"] = "permissive", "permissive"
	v["mesh TransparentProxy.MeshDestinationsOnly"], v["mesh AllowEnablingPermissiveMutualTLS"] = true, true
	for _, limit := range []string{"max_connections", "max_pending_requests", "max_concurrent_requests"} {
		v["service Proxy.Upstreams[].Config.limits."+limit] = 5
		v["service Proxy.Upstreams[].Config.limits[]."+limit] = 5
	}
	for _, where := range []string{"Defaults", "Overrides[]"} {
		v["service-defaults UpstreamConfig."+where+".ConnectTimeoutMs"] = 123
		for _, limit := range []string{"MaxConnections", "MaxPendingRequests", "MaxConcurrentRequests"} {
			v["service-defaults UpstreamConfig."+where+".Limits."+limit] = 5
		}
	}
	for _, where := range []string{"proxy-defaults Config.", "service Proxy.Config."} {
		v[where+"bind_address"] = "127.0.0.8"
		v[where+"bind_port"] = 20008
		v[where+"local_connect_timeout_ms"] = 80
		v[where+"local_request_timeout_ms"] = 800
		v[where+"max_inbound_connections"] = 8
	}
	return v
}

// companions are fields that must be set together with one to have a meaning.
func companions(field string) map[string]any {
	if strings.HasPrefix(field, "mesh HTTP.") {
		return map[string]any{"proxy-defaults Config.protocol": "http"}
	}
	if strings.Contains(field, "TransparentProxy.") {
		return map[string]any{"proxy-defaults Mode": "transparent"}
	}
	switch field {
	case "service-defaults Destination.Addresses[]", "service-defaults Destination.Port":
		return map[string]any{"service Proxy.Mode": "transparent", "mesh TransparentProxy.MeshDestinationsOnly": true,
			"service-intentions Sources[].Name":        "web",
			"service-defaults Destination.Addresses[]": []any{"10.7.7.7"}, "service-defaults Destination.Port": 80}
	case "service-defaults MutualTLSMode", "proxy-defaults MutualTLSMode":
		return map[string]any{"proxy-defaults Mode": "transparent", "mesh AllowEnablingPermissiveMutualTLS": true}
	case "mesh AllowEnablingPermissiveMutualTLS":
		return map[string]any{"proxy-defaults Mode": "transparent", "proxy-defaults MutualTLSMode": "permissive"}
	case "service-defaults LocalRequestTimeoutMs", "proxy-defaults Config.local_request_timeout_ms", "service Proxy.Config.local_request_timeout_ms":
		return map[string]any{"proxy-defaults Config.protocol": "http"}
	case "service-defaults UpstreamConfig.Defaults.ConnectTimeoutMs":
		return map[string]any{"service-defaults UpstreamConfig.Overrides[].Name": "other"}
	}
	return nil
}

// TestHonoured changes each honoured field and requires what is generated to
// change with it; and each must be a field that Consul has.
func TestHonoured(t *testing.T) {
	given := values()
	for kind, table := range effects() {
		for field, e := range table {
			if !exists(kind, field) {
				t.Errorf("%s has no field %s", kind, field)
			}
			name := kind + " " + field
			value, ok := given[name]
			delete(given, name)
			switch {
			case e == honoured && !ok:
				t.Errorf("%s counts as honoured, and no test changes it", name)
			case e != honoured && ok:
				t.Errorf("%s is changed by the test and does not count as honoured", name)
			case e == honoured:
				before := everything(t, companions(name))
				with := companions(name)
				if with == nil {
					with = map[string]any{}
				}
				with[name] = value
				if everything(t, with) == before {
					t.Errorf("%s = %v changes nothing that is generated", name, value)
				}
			}
		}
	}
	for name := range given {
		t.Errorf("%s is not in the table", name)
	}
}

// exists says whether Consul has the field, or a map whose keys are free.
func exists(kind, field string) bool {
	fields := discovery.EntryFields[kind]
	if slices.Contains(fields, field) {
		return true
	}
	return slices.ContainsFunc(fields, func(f string) bool {
		prefix, free := strings.CutSuffix(f, "*")
		return free && strings.HasPrefix(field, prefix)
	})
}

// everything is all that is generated of the baseline with these fields set.
func everything(t *testing.T, set map[string]any) string {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal([]byte(baseline), &doc); err != nil {
		t.Fatal(err)
	}
	for name, value := range set {
		kind, field, _ := strings.Cut(name, " ")
		assign(object(t, doc, kind), strings.Split(field, "."), value)
	}
	text, _ := json.Marshal(doc)
	d, err := meshtest.Read(string(text))
	if err != nil {
		t.Fatalf("%v: %v", set, err)
	}
	m := build(d)
	var b strings.Builder
	for _, w := range m.Workloads() {
		for _, typ := range resource.Types() {
			v := View{Workload: w}
			for _, n := range Names(m, v, typ) {
				r, _, _ := Resource(m, v, typ, n)
				body, _ := json.Marshal(r)
				b.WriteString(w.NodeID + " " + typ.Short() + " " + n + " " + string(body) + "\n")
			}
		}
	}
	return b.String()
}

// object finds what a kind's fields belong to: web's registration, or its entry.
func object(t *testing.T, doc map[string]any, kind string) map[string]any {
	if kind == kindProxy {
		web := doc["services"].([]any)[0].(map[string]any)
		return web["Connect"].(map[string]any)["SidecarService"].(map[string]any)
	}
	for _, e := range doc["entries"].([]any) {
		if o := e.(map[string]any); o["Kind"] == kind {
			return o
		}
	}
	t.Fatalf("no entry of kind %s in the baseline", kind)
	return nil
}

func assign(o map[string]any, path []string, value any) {
	key, list := strings.CutSuffix(path[0], "[]")
	if len(path) == 1 {
		o[key] = value // a list as a whole
		return
	}
	var next map[string]any
	if list {
		l, _ := o[key].([]any)
		if len(l) == 0 {
			l = []any{map[string]any{}}
		}
		o[key] = l
		next = l[0].(map[string]any)
	} else {
		next, _ = o[key].(map[string]any)
		if next == nil {
			next = map[string]any{}
			o[key] = next
		}
	}
	assign(next, path[1:], value)
}

// TestAnalyzeNamesAll: every field that Consul has is honoured, inert, or named
// by Analyze when it is set. None is ignored in silence.
func TestAnalyzeNamesAll(t *testing.T) {
	table := effects()
	for kind, fields := range discovery.EntryFields {
		if kind == kindProxy {
			continue
		}
		for _, field := range fields {
			key := discovery.EntryKey{Kind: kind, Partition: "default", Namespace: "default", Name: "x"}
			set := strings.ReplaceAll(field, "*", "key")
			m := build(discovery.Delta{Full: true, Entries: map[discovery.EntryKey]*discovery.ConfigEntry{
				key: {Key: key, Set: []string{set}, Body: bodyWith(kind, field)},
			}})
			named := false
			for _, f := range Analyze(m) {
				named = named || f.Entry == mesh.EntryName(key) && f.Severity > SeverityInfo || f.Field == set || strings.HasPrefix(field, "Sources[].Permissions") && strings.HasSuffix(f.Field, ".Permissions")
			}
			if silent := effectOf(table[kind], set) == ignored && !named; silent {
				t.Errorf("%s %s is ignored and Analyze does not name it", kind, field)
			}
		}
	}
	for _, field := range discovery.EntryFields[kindProxy] {
		if !strings.HasPrefix(field, "Proxy.") {
			continue
		}
		set := strings.ReplaceAll(field, "*", "key")
		d := meshtest.MustRead(`services: [{name: web, port: 1, connect: {sidecar_service: {}}}]`)
		for _, s := range d.Services {
			s.Proxies[0].Proxy.Set = []string{set}
		}
		named := slices.ContainsFunc(Analyze(build(d)), func(f Finding) bool { return f.Field == set })
		if effectOf(table[kindProxy], set) == ignored && !named {
			t.Errorf("registration %s is ignored and Analyze does not name it", field)
		}
	}
}

func bodyWith(kind, field string) any {
	if kind == mesh.KindServiceIntentions && strings.HasPrefix(field, "Sources[].Permissions") {
		return &discovery.ServiceIntentions{Sources: []discovery.SourceIntention{{Name: "web", Permissions: []discovery.IntentionPermission{{}}}}}
	}
	return nil
}
