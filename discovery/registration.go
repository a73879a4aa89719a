package discovery

import (
	"cmp"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// registrationKind is the key of EntryFields under which the fields of a
// service registration are listed.
const registrationKind = "service"

// Consul's range of ports for sidecars that name none.
const (
	SidecarMinPort = 21000
	SidecarMaxPort = 21255
)

// Node is the node that a registration is on.
type Node struct {
	Name       string
	Address    string
	Datacenter string
}

// Registration is one service definition, decoded.
type Registration struct {
	Instance *Instance         // Health and Checks are still to be filled; Port 0 of a sidecar is still to be assigned
	Checks   []CheckDefinition // of this instance
	Sidecar  *Registration     // connect { sidecar_service {} }; nil where there is none
}

// DecodeRegistration decodes what a user wrote as `service { … }` for `consul
// services register`, in snake case or in API names. The sidecar that is nested
// in it takes address, tags, meta and locality from the service, and an alias
// check of it, where it names none itself. The error is a *[FieldError].
//
// See https://developer.hashicorp.com/consul/docs/reference/service.
func DecodeRegistration(fields map[string]any, node Node, origin Origin) (*Registration, error) {
	c := &canonicaliser{origin: origin}
	body := make(map[string]any, len(fields))
	head := record{}
	for k, v := range fields {
		if f := fold(k); f == "name" || f == "kind" {
			s, err := leafValue('s', v)
			if err != nil {
				return nil, c.fail(k, err.Error(), "write it as Consul documents it")
			}
			head[f] = s
		} else {
			body[k] = v
		}
	}
	canonical, err := c.object(schemas()[registrationKind], body, "", "")
	if err != nil {
		return nil, err
	}
	d := &registrationDecoder{c: c, node: node}
	r := record(canonical)
	r["Name"], r["Kind"] = head.str("name"), head.str("kind")
	reg, err := d.registration(r, "")
	if err != nil {
		return nil, err
	}
	if side := r.rec("Connect"); side.has("SidecarService") {
		if reg.Instance.Kind != KindService {
			return nil, c.fail("Connect.SidecarService", "a proxy has no sidecar of its own", "remove it")
		}
		reg.Sidecar, err = d.sidecar(reg, side.rec("SidecarService"))
	}
	return reg, err
}

type registrationDecoder struct {
	c    *canonicaliser
	node Node
}

func (d *registrationDecoder) registration(r record, at string) (*Registration, error) {
	in := &Instance{
		Service: ServiceName{
			Partition: cmp.Or(r.str("Partition"), DefaultPartition), Namespace: cmp.Or(r.str("Namespace"), DefaultNamespace),
			Datacenter: d.node.Datacenter, Name: r.str("Name"),
		},
		ID: cmp.Or(r.str("ID"), r.str("Name")), Node: d.node.Name, Kind: Kind(r.str("Kind")),
		Address: cmp.Or(r.str("Address"), d.node.Address), Port: r.num("Port"), SocketPath: r.str("SocketPath"),
		Tagged: tagged(r.rec("TaggedAddresses")),
		Tags:   r.strs("Tags"), Meta: r.strMap("Meta"), Native: r.rec("Connect").flag("Native"),
		Region: r.rec("Locality").str("Region"), Zone: r.rec("Locality").str("Zone"),
		Weights: Weights{Passing: 1, Warning: 1}, Origin: d.c.origin,
	}
	if err := d.check(in, r, at); err != nil {
		return nil, err
	}
	if w := r.rec("Weights"); r.has("Weights") {
		in.Weights = Weights{Passing: w.num("Passing"), Warning: w.num("Warning")}
		if !w.has("Passing") {
			in.Weights.Passing = 1
		}
		if !w.has("Warning") {
			in.Weights.Warning = 1
		}
	}
	if in.Kind != KindService {
		p, err := d.proxy(r, in, at)
		if err != nil {
			return nil, err
		}
		in.Proxy = p
	} else if r.has("Proxy") {
		return nil, d.c.fail(join(at, "Proxy"), "a service that is no proxy has no proxy block",
			"put it into connect { sidecar_service { proxy { … } } }, or write kind = \"connect-proxy\"")
	}
	checks, err := d.checks(r, in, at)
	return &Registration{Instance: in, Checks: checks}, err
}

func (d *registrationDecoder) check(in *Instance, r record, at string) error {
	switch in.Kind {
	case KindService, KindConnectProxy, KindMeshGateway, KindTerminatingGateway, KindIngressGateway, KindAPIGateway:
	default:
		return d.c.fail(join(at, "Kind"), strconv.Quote(string(in.Kind))+" is no kind of service", `write "connect-proxy", a gateway kind, or leave it out`)
	}
	w := r.rec("Weights")
	switch {
	case in.Service.Name == "":
		return d.c.fail(join(at, "Name"), "a service must have a name", `write name = "…"`)
	case in.Port < 0 || in.Port > 65535:
		return d.c.fail(join(at, "Port"), strconv.Itoa(in.Port)+" is no port", "write a number from 0 to 65535")
	case in.Port != 0 && in.SocketPath != "":
		return d.c.fail(join(at, "SocketPath"), "the service has a port and a socket", "write one of them")
	case !validVirtual(in.Tagged):
		return d.c.fail(join(at, "TaggedAddresses."+virtualTag(in.Tagged)+".Address"), strconv.Quote(in.Tagged[virtualTag(in.Tagged)])+" is no IP address", "write the service's virtual address, or leave it out")
	case w.has("Passing") && w.num("Passing") < 1:
		return d.c.fail(join(at, "Weights.Passing"), "is below 1", "write 1 to 65535")
	case w.num("Warning") < 0 || w.num("Warning") > 65535 || w.num("Passing") > 65535:
		return d.c.fail(join(at, "Weights"), "is not from 0 to 65535", "write 1 to 65535")
	}
	return nil
}

func (d *registrationDecoder) proxy(r record, in *Instance, at string) (*Proxy, error) {
	p := r.rec("Proxy")
	out := &Proxy{
		DestinationService: p.str("DestinationServiceName"), DestinationServiceID: p.str("DestinationServiceID"),
		LocalServiceAddress: p.str("LocalServiceAddress"), LocalServicePort: p.num("LocalServicePort"),
		LocalServiceSocket: p.str("LocalServiceSocketPath"), Mode: p.str("Mode"), Config: p.any("Config"),
		Set: setOf(p, "Proxy"),
	}
	if out.LocalServiceAddress == "" && out.LocalServiceSocket == "" && out.DestinationServiceID != "" {
		out.LocalServiceAddress = "127.0.0.1"
	}
	where := join(at, "Proxy")
	var err error
	if out.TransparentProxy, err = transparentProxy(p.rec("TransparentProxy"), where+".TransparentProxy", d.c); err != nil {
		return nil, err
	}
	switch {
	case in.Kind == KindConnectProxy && out.DestinationService == "" && at == "":
		return nil, d.c.fail(where+".DestinationServiceName", "a connect-proxy must say which service it stands for", `write proxy { destination_service_name = "…" }`)
	case out.LocalServicePort < 0 || out.LocalServicePort > 65535:
		return nil, d.c.fail(where+".LocalServicePort", strconv.Itoa(out.LocalServicePort)+" is no port", "write a number from 1 to 65535")
	case !slices.Contains([]string{"", ModeDirect, ModeTransparent}, out.Mode):
		return nil, d.c.fail(where+".Mode", strconv.Quote(out.Mode)+" is no mode", `write "direct", "transparent", or leave it out`)
	}
	out.Upstreams, err = d.upstreams(p, where)
	return out, err
}

func (d *registrationDecoder) upstreams(p record, where string) ([]Upstream, error) {
	var out []Upstream
	bound := map[string]string{}
	for i, v := range p.list("Upstreams") {
		m, _ := v.(map[string]any)
		r, at := record(m), where+".Upstreams["+strconv.Itoa(i)+"]"
		u := Upstream{
			DestinationType: cmp.Or(r.str("DestinationType"), "service"), DestinationName: r.str("DestinationName"),
			DestinationNamespace: r.str("DestinationNamespace"), DestinationPartition: r.str("DestinationPartition"),
			DestinationPeer: r.str("DestinationPeer"), Datacenter: r.str("Datacenter"),
			LocalBindAddress: r.str("LocalBindAddress"), LocalBindPort: r.num("LocalBindPort"),
			LocalBindSocketPath: r.str("LocalBindSocketPath"), Config: r.any("Config"),
		}
		if u.LocalBindAddress == "" && u.LocalBindSocketPath == "" {
			u.LocalBindAddress = "127.0.0.1"
		}
		bind := cmp.Or(u.LocalBindSocketPath, net.JoinHostPort(u.LocalBindAddress, strconv.Itoa(u.LocalBindPort)))
		switch {
		case u.DestinationName == "":
			return nil, d.c.fail(at+".DestinationName", "an upstream must name the service it leads to", `write destination_name = "…"`)
		case u.DestinationType != "service" && u.DestinationType != "prepared_query":
			return nil, d.c.fail(at+".DestinationType", strconv.Quote(u.DestinationType)+" is no type of destination", `write "service" or "prepared_query"`)
		case u.LocalBindPort < 0 || u.LocalBindPort > 65535:
			return nil, d.c.fail(at+".LocalBindPort", strconv.Itoa(u.LocalBindPort)+" is no port", "write a number from 1 to 65535")
		case u.LocalBindPort == 0 && u.LocalBindSocketPath == "" && p.str("Mode") != ModeTransparent:
			return nil, d.c.fail(at+".LocalBindPort", "the upstream "+strconv.Quote(u.DestinationName)+" has no port to listen on", "write local_bind_port or local_bind_socket_path")
		case u.LocalBindPort != 0 && bound[bind] != "" || u.LocalBindSocketPath != "" && bound[bind] != "":
			return nil, d.c.fail(at+".LocalBindPort", bind+" is already the address of the upstream "+strconv.Quote(bound[bind]), "give each upstream an address of its own")
		}
		bound[bind] = u.DestinationName
		out = append(out, u)
	}
	return out, nil
}

// sidecar fills the nested definition as Consul's agent does.
func (d *registrationDecoder) sidecar(parent *Registration, r record) (*Registration, error) {
	const at = "Connect.SidecarService"
	app := parent.Instance
	r["Name"] = cmp.Or(r.str("Name"), app.Service.Name+"-sidecar-proxy")
	r["Kind"] = cmp.Or(r.str("Kind"), string(KindConnectProxy))
	if r.str("ID") != "" {
		return nil, d.c.fail(at+".ID", "the id of a nested sidecar is always that of its service with -sidecar-proxy", "remove it")
	}
	r["ID"] = app.ID + "-sidecar-proxy"
	r["Address"] = cmp.Or(r.str("Address"), app.Address)
	reg, err := d.registration(r, at)
	if err != nil {
		return nil, err
	}
	in := reg.Instance
	in.Service.Partition, in.Service.Namespace = app.Service.Partition, app.Service.Namespace
	if len(in.Tags) == 0 {
		in.Tags = app.Tags
	}
	if len(in.Meta) == 0 {
		in.Meta = app.Meta
	}
	if in.Region == "" && in.Zone == "" {
		in.Region, in.Zone = app.Region, app.Zone
	}
	p := in.Proxy
	p.DestinationService = cmp.Or(p.DestinationService, app.Service.Name)
	p.DestinationServiceID = cmp.Or(p.DestinationServiceID, app.ID)
	switch {
	case p.LocalServiceSocket != "" || p.LocalServiceAddress != "" && p.LocalServicePort > 0:
	case app.SocketPath != "":
		p.LocalServiceSocket = app.SocketPath
	default:
		p.LocalServiceAddress = cmp.Or(p.LocalServiceAddress, "127.0.0.1")
		p.LocalServicePort = cmp.Or(p.LocalServicePort, app.Port)
	}
	if len(reg.Checks) == 0 {
		reg.Checks = []CheckDefinition{{ID: "service:" + in.ID, Name: "Connect Sidecar Aliasing " + app.ID, Type: CheckAlias, Target: app.ID, Health: Critical}}
	}
	return reg, nil
}

// CheckType says how a check is made.
type CheckType string

const (
	CheckHTTP   CheckType = "http"
	CheckTCP    CheckType = "tcp"
	CheckGRPC   CheckType = "grpc"
	CheckAlias  CheckType = "alias"
	CheckTTL    CheckType = "ttl"
	CheckScript CheckType = "script"
	CheckDocker CheckType = "docker"
	CheckUDP    CheckType = "udp"
	CheckH2PING CheckType = "h2ping"
	CheckOS     CheckType = "os_service"
)

// CheckDefinition is one health check as the user wrote it.
// https://developer.hashicorp.com/consul/docs/reference/service/health-check
type CheckDefinition struct {
	ID            string
	Name          string
	Type          CheckType
	Target        string // URL, address or, of an alias, the id of the service
	UseTLS        bool
	TLSServerName string
	TLSSkipVerify bool
	Method        string
	Header        map[string][]string
	Body          string
	Interval      time.Duration
	Timeout       time.Duration
	Health        Health // before the first run: Critical unless `status` says otherwise

	SuccessBeforePassing   int // successes in a row before critical becomes passing; 0 means at once
	FailuresBeforeWarning  int
	FailuresBeforeCritical int
	Path                   string // where in the registration it stands, for messages
}

func (d *registrationDecoder) checks(r record, in *Instance, at string) ([]CheckDefinition, error) {
	var out []CheckDefinition
	add := func(v any, path string) error {
		m, _ := v.(map[string]any)
		c, err := d.checkDefinition(record(m), in, path)
		if err != nil {
			return err
		}
		out = append(out, c)
		return nil
	}
	if r.has("Check") {
		if err := add(r["Check"], join(at, "Check")); err != nil {
			return nil, err
		}
	}
	for i, v := range r.list("Checks") {
		if err := add(v, join(at, "Checks")+"["+strconv.Itoa(i)+"]"); err != nil {
			return nil, err
		}
	}
	seen := map[string]bool{}
	for i := range out {
		if out[i].ID == "" {
			out[i].ID = "service:" + in.ID
			if len(out) > 1 {
				out[i].ID += ":" + strconv.Itoa(i+1)
			}
		}
		if seen[out[i].ID] {
			return nil, d.c.fail(out[i].Path+".CheckID", "two checks have the id "+strconv.Quote(out[i].ID), "give each an id of its own")
		}
		seen[out[i].ID] = true
	}
	return out, nil
}

// checkTargets are the fields that say what a check does, in Consul's order.
var checkTargets = []struct {
	field string
	typ   CheckType
	tls   string
}{
	{"HTTP", CheckHTTP, ""}, {"TCP", CheckTCP, "TCPUseTLS"}, {"GRPC", CheckGRPC, "GRPCUseTLS"}, {"AliasService", CheckAlias, ""},
	{"AliasNode", CheckAlias, ""}, {"TTL", CheckTTL, ""}, {"DockerContainerID", CheckDocker, ""}, {"UDP", CheckUDP, ""},
	{"H2PING", CheckH2PING, "H2PingUseTLS"}, {"OSService", CheckOS, ""},
}

func (d *registrationDecoder) checkDefinition(r record, in *Instance, at string) (CheckDefinition, error) {
	c := CheckDefinition{
		ID: r.str("CheckID"), Name: cmp.Or(r.str("Name"), "Service '"+in.Service.Name+"' check"),
		TLSServerName: r.str("TLSServerName"), TLSSkipVerify: r.flag("TLSSkipVerify"),
		Method: strings.ToUpper(cmp.Or(r.str("Method"), "GET")), Body: r.str("Body"), Health: Critical,
		SuccessBeforePassing: r.num("SuccessBeforePassing"), FailuresBeforeWarning: r.num("FailuresBeforeWarning"),
		FailuresBeforeCritical: r.num("FailuresBeforeCritical"), Path: at,
	}
	for _, t := range checkTargets {
		if v := r.str(t.field); v != "" {
			if c.Type != "" && (c.Type != CheckAlias || t.typ != CheckAlias) {
				return c, d.c.fail(at+"."+t.field, "the check is already of type "+string(c.Type), "write one check for each")
			}
			c.Type, c.Target = t.typ, cmp.Or(c.Target, v)
			c.UseTLS = t.tls != "" && r.flag(t.tls)
		}
	}
	if len(r.list("ScriptArgs")) > 0 && c.Type == "" {
		c.Type, c.Target = CheckScript, strings.Join(r.strs("ScriptArgs"), " ")
	}
	if c.Type == "" {
		return c, d.c.fail(at, "the check says nothing to check", "write http, tcp, grpc, alias_service or another of Consul's checks")
	}
	if r.str("AliasNode") != "" && r.str("AliasNode") != d.node.Name {
		return c, d.c.fail(at+".AliasNode", "the node "+strconv.Quote(r.str("AliasNode"))+" is not this one", "write alias_service alone")
	}
	for k, v := range r.any("Header") {
		if c.Header == nil {
			c.Header = map[string][]string{}
		}
		c.Header[k] = record{"v": v}.strs("v")
	}
	if s := r.str("Status"); s != "" {
		if !slices.Contains([]string{"passing", "warning", "critical"}, s) {
			return c, d.c.fail(at+".Status", strconv.Quote(s)+" is no state", `write "passing", "warning" or "critical"`)
		}
		c.Health = ParseHealth(s)
	}
	return c, d.timing(&c, r, at)
}

func (d *registrationDecoder) timing(c *CheckDefinition, r record, at string) error {
	for name, to := range map[string]*time.Duration{"Interval": &c.Interval, "Timeout": &c.Timeout} {
		v, err := time.ParseDuration(cmp.Or(r.str(name), "0s"))
		if err != nil || v < 0 {
			return d.c.fail(at+"."+name, strconv.Quote(r.str(name))+" is no duration", `write it as "10s"`)
		}
		*to = v
	}
	for name, n := range map[string]int{"SuccessBeforePassing": c.SuccessBeforePassing, "FailuresBeforeWarning": c.FailuresBeforeWarning, "FailuresBeforeCritical": c.FailuresBeforeCritical} {
		if n < 0 {
			return d.c.fail(at+"."+name, "is negative", "write 0 or more")
		}
	}
	c.Timeout = cmp.Or(c.Timeout, 10*time.Second)
	if c.Interval == 0 && c.Type != CheckAlias && c.Type != CheckTTL {
		return d.c.fail(at+".Interval", "the check does not say how often it runs", `write interval = "10s"`)
	}
	return nil
}
