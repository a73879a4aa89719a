package inject

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Where things are in a sidecar's container.
const (
	dataDir  = "/var/lib/parrel"
	tokenDir = "/run/parrel"
)

// sidecar is the service that a sidecar runs as.
func (p *project) sidecar(s *service, instance string) *yaml.Node {
	o, set1 := p.opts, s.settings
	transparent := set1.mode == Transparent
	id := o.IDPrefix + instance
	if set1.id != "" {
		id = o.IDPrefix + set1.id + strings.TrimPrefix(instance, s.name)
	}
	w := mapping("image", o.Image)

	args := []string{"supervise"}
	if transparent {
		args = append(args, "--redirect", "--proxy-uid="+strconv.Itoa(o.UID))
		if !set1.capture {
			for _, port := range published(s) {
				args = append(args, "--exclude-inbound-port="+port)
			}
		}
	}
	args = append(args, "--", "sidecar",
		"--service-definition="+definition(id, s, transparent),
		"--grpc-addr="+o.ControlPlane, "--http-addr="+o.Consul,
		"--token-file="+tokenDir+"/token", "--data-dir="+dataDir+"/sidecar", "--ready-bind=0.0.0.0:15021")
	if set1.protocol != "" {
		args = append(args, "--service-protocol="+set1.protocol)
	}
	command := texts(args...)
	for _, a := range command.Content {
		if strings.Contains(a.Value, `"`) && !strings.Contains(a.Value, "'") {
			a.Style = yaml.SingleQuotedStyle
		}
	}
	set(w, "command", command)
	env := mapping()
	for _, e := range o.Env {
		k, v, _ := strings.Cut(e, "=")
		set(env, k, text(v))
	}
	if len(env.Content) > 0 {
		set(w, "environment", env)
	}

	tokens := o.TokenDir + "/" + id
	if o.TokenVolume != "" {
		tokens = o.TokenVolume + "-" + id
	}
	set(w, "volumes", texts(tokens+":"+tokenDir+":ro", dataDir))

	if m := get(s.full, "network_mode"); !isNull(m) {
		set(w, "network_mode", clone(m))
	} else {
		set(w, "networks", p.networks(s))
	}
	for _, k := range []string{"ports", "expose", "external_links", "hostname", "domainname", "dns", "dns_search", "dns_opt", "extra_hosts", "mac_address"} {
		if v := get(s.full, k); !isNull(v) {
			set(w, k, clone(v))
		}
	}
	if l := p.links(s); l != nil {
		set(w, "links", l)
	}
	if net, _ := splitSysctls(get(s.full, "sysctls")); net != nil {
		set(w, "sysctls", net)
	}
	if len(o.After) > 0 {
		deps := mapping()
		for _, a := range o.After {
			name, cond, ok := strings.Cut(a, ":")
			if !ok {
				cond = "service_started"
			}
			set(deps, name, mapping("condition", plain(cond)))
		}
		set(w, "depends_on", deps)
	}
	for _, k := range []string{"profiles", "restart", "platform"} {
		if v := get(s.full, k); !isNull(v) {
			set(w, k, clone(v))
		}
	}

	// The first process applies the rules and starts the sidecar as a user of
	// its own, which has no capability at all.
	set(w, "cap_drop", flow(texts("ALL")))
	if transparent {
		set(w, "cap_add", flow(texts("NET_ADMIN", "SETUID", "SETGID", "KILL")))
	} else {
		set(w, "user", text(fmt.Sprintf("%d:%d", o.UID, o.UID)))
	}
	set(w, "security_opt", flow(texts("no-new-privileges:true")))
	set(w, "read_only", toNode(true))
	set(w, "stop_grace_period", plain("30s"))
	set(w, "healthcheck", mapping(
		"test", flow(texts("CMD", "/parrel", "check", "ready")),
		"interval", plain(o.HealthEvery.String()), "timeout", plain("5s"), "retries", toNode(30), "start_period", plain("60s")))
	return w
}

// definition is the service definition, in Consul's words, that the sidecar
// registers with the agent.
func definition(id string, s *service, transparent bool) string {
	type upstreamJSON struct {
		Name string `json:"destination_name"`
		Port int    `json:"local_bind_port"`
	}
	type proxyJSON struct {
		Mode      string         `json:"mode,omitempty"`
		Upstreams []upstreamJSON `json:"upstreams,omitempty"`
	}
	type sidecarJSON struct {
		Proxy *proxyJSON `json:"proxy,omitempty"`
	}
	type connectJSON struct {
		Sidecar sidecarJSON `json:"sidecar_service"`
	}
	type serviceJSON struct {
		ID      string            `json:"id"`
		Name    string            `json:"name"`
		Port    json.RawMessage   `json:"port,omitempty"`
		Tags    []string          `json:"tags,omitempty"`
		Meta    map[string]string `json:"meta,omitempty"`
		Connect connectJSON       `json:"connect"`
	}
	d := serviceJSON{ID: id, Name: s.settings.service, Tags: s.settings.tags}
	const standIn = 65535000 // no port: stands for an expression, which is no JSON
	port := s.settings.port
	switch {
	case isPort(port):
		d.Port = json.RawMessage(port)
	case port != "":
		d.Port = json.RawMessage(strconv.Itoa(standIn))
	}
	for _, m := range s.settings.meta {
		if d.Meta == nil {
			d.Meta = map[string]string{}
		}
		k, v, _ := strings.Cut(m, "=")
		d.Meta[k] = v
	}
	proxy := &proxyJSON{}
	if transparent {
		proxy.Mode = Transparent
	}
	for _, u := range s.settings.upstreams {
		proxy.Upstreams = append(proxy.Upstreams, upstreamJSON{u.name, u.port})
	}
	if proxy.Mode != "" || proxy.Upstreams != nil {
		d.Connect.Sidecar.Proxy = proxy
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(map[string]any{"service": d}); err != nil {
		panic(err) // strings and numbers only
	}
	out := strings.TrimSpace(b.String())
	if !isPort(port) && port != "" {
		out = strings.Replace(out, `"port":`+strconv.Itoa(standIn), `"port":`+port, 1)
	}
	return out
}
