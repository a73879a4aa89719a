package resource

import "fmt"

// Type is one of the xDS resource types. Its value is Envoy's v3 type URL.
type Type string

const (
	TypeListener  Type = "type.googleapis.com/envoy.config.listener.v3.Listener"
	TypeRoute     Type = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	TypeCluster   Type = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	TypeEndpoints Type = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	TypeSecret    Type = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
)

// Types lists every type in the make-before-break order of xDS: clusters
// before their endpoints, before listeners, before routes; secrets last, since
// nothing is taken away by one.
var types = []Type{TypeCluster, TypeEndpoints, TypeListener, TypeRoute, TypeSecret}

// Types returns all types in make-before-break order.
func Types() []Type { return append([]Type(nil), types...) }

// Short is the type's usual abbreviation: LDS, RDS, CDS, EDS, SDS.
func (t Type) Short() string {
	switch t {
	case TypeListener:
		return "LDS"
	case TypeRoute:
		return "RDS"
	case TypeCluster:
		return "CDS"
	case TypeEndpoints:
		return "EDS"
	case TypeSecret:
		return "SDS"
	}
	return string(t)
}

// Resource is one named, immutable piece of configuration: *Listener,
// *RouteConfig, *Cluster, *Endpoints or *Secret.
type Resource interface {
	ResourceType() Type
	ResourceName() string
	// Validate says whether parrel can execute the resource. Its error is a
	// [*FieldError] (or a join of several).
	Validate() error
}

// FieldError is what is wrong with one field of a resource.
type FieldError struct {
	Field  string // path in Envoy's field names: filter_chains[0].filters[1]
	Reason string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Reason }

func fieldErrorf(field, format string, a ...any) *FieldError {
	return &FieldError{Field: field, Reason: fmt.Sprintf(format, a...)}
}
