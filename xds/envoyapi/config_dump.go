package envoyapi

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/wire"
)

// redacted stands where a private key was, as in Envoy.
const redacted = "[redacted]"

// Held is one resource as a sidecar holds it.
type Held struct {
	Resource resource.Resource
	Version  string
	Updated  time.Time
	// Refused says why the newest version was refused; "" where it was not.
	Refused        string
	RefusedVersion string
}

// Dump is what /config_dump shows.
type Dump struct {
	NodeID, NodeCluster string
	Metadata            map[string]string
	Held                []Held
}

// ConfigDump is the JSON of envoy.admin.v3.ConfigDump: bootstrap, clusters,
// endpoints, listeners, routes and secrets, each in the order of their names.
// Private keys are redacted.
func ConfigDump(d Dump) ([]byte, error) {
	held := slices.Clone(d.Held)
	slices.SortStableFunc(held, func(a, b Held) int {
		return cmp.Compare(a.Resource.ResourceName(), b.Resource.ResourceName())
	})
	b := &dumper{}
	for _, h := range held {
		b.add(h)
	}
	if b.err != nil {
		return nil, b.err
	}
	node := &corev3.Node{Id: d.NodeID, Cluster: d.NodeCluster, UserAgentName: "parrel"}
	if len(d.Metadata) > 0 {
		node.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{}}
		for k, v := range d.Metadata {
			node.Metadata.Fields[k] = structpb.NewStringValue(v)
		}
	}
	out := &adminv3.ConfigDump{}
	for _, m := range []proto.Message{
		&adminv3.BootstrapConfigDump{Bootstrap: &bootstrapv3.Bootstrap{Node: node}},
		&b.clusters, &b.endpoints, &b.listeners, &b.routes, &b.secrets,
	} {
		a, err := anypb.New(m)
		if err != nil {
			return nil, fmt.Errorf("envoyapi: config dump: %w", err)
		}
		out.Configs = append(out.Configs, a)
	}
	return marshal(out)
}

type dumper struct {
	clusters  adminv3.ClustersConfigDump
	endpoints adminv3.EndpointsConfigDump
	listeners adminv3.ListenersConfigDump
	routes    adminv3.RoutesConfigDump
	secrets   adminv3.SecretsConfigDump
	err       error
}

func (b *dumper) add(h Held) {
	r := h.Resource
	if s, ok := r.(*resource.Secret); ok && len(s.KeyPEM) > 0 {
		shown := *s
		shown.KeyPEM = []byte(redacted)
		r = &shown
	}
	a, err := wire.Encode(r)
	if err != nil {
		b.err = cmp.Or(b.err, fmt.Errorf("envoyapi: config dump: %w", err))
		return
	}
	at := timestamppb.New(h.Updated)
	var failure *adminv3.UpdateFailureState
	status := adminv3.ClientResourceStatus_ACKED
	if h.Refused != "" {
		failure = &adminv3.UpdateFailureState{Details: h.Refused, VersionInfo: h.RefusedVersion}
		status = adminv3.ClientResourceStatus_NACKED
	}
	switch r.ResourceType() {
	case resource.TypeCluster:
		b.clusters.DynamicActiveClusters = append(b.clusters.DynamicActiveClusters, &adminv3.ClustersConfigDump_DynamicCluster{
			VersionInfo: h.Version, Cluster: a, LastUpdated: at, ErrorState: failure, ClientStatus: status})
	case resource.TypeEndpoints:
		b.endpoints.DynamicEndpointConfigs = append(b.endpoints.DynamicEndpointConfigs, &adminv3.EndpointsConfigDump_DynamicEndpointConfig{
			VersionInfo: h.Version, EndpointConfig: a, LastUpdated: at, ErrorState: failure, ClientStatus: status})
	case resource.TypeListener:
		b.listeners.DynamicListeners = append(b.listeners.DynamicListeners, &adminv3.ListenersConfigDump_DynamicListener{
			Name:        r.ResourceName(),
			ActiveState: &adminv3.ListenersConfigDump_DynamicListenerState{VersionInfo: h.Version, Listener: a, LastUpdated: at},
			ErrorState:  failure, ClientStatus: status})
	case resource.TypeRoute:
		b.routes.DynamicRouteConfigs = append(b.routes.DynamicRouteConfigs, &adminv3.RoutesConfigDump_DynamicRouteConfig{
			VersionInfo: h.Version, RouteConfig: a, LastUpdated: at, ErrorState: failure, ClientStatus: status})
	case resource.TypeSecret:
		b.secrets.DynamicActiveSecrets = append(b.secrets.DynamicActiveSecrets, &adminv3.SecretsConfigDump_DynamicSecret{
			Name: r.ResourceName(), VersionInfo: h.Version, Secret: a, LastUpdated: at, ErrorState: failure, ClientStatus: status})
	}
}

// marshal gives Envoy's field names and a spacing of our own: protojson's
// changes from build to build on purpose.
func marshal(m proto.Message) ([]byte, error) {
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("envoyapi: %w", err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", " "); err != nil {
		return nil, fmt.Errorf("envoyapi: %w", err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}
