package wire

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// Warning names a populated field that parrel does not honour, or honours in
// another way than its author may expect. The resource is used all the same.
type Warning struct {
	Type   resource.Type
	Name   string
	Field  string // path in Envoy's field names: filter_chains[0].filters[1]
	Reason string
}

func (w Warning) String() string {
	return fmt.Sprintf("%s %q: %s: %s", w.Type.Short(), w.Name, w.Field, w.Reason)
}

// Error says why a resource was refused.
type Error struct {
	Type   resource.Type
	Name   string // "" where the resource could not be read far enough
	Field  string
	Reason string
}

func (e *Error) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("wire: %s %q: %s", e.Type.Short(), e.Name, e.Reason)
	}
	return fmt.Sprintf("wire: %s %q: %s: %s", e.Type.Short(), e.Name, e.Field, e.Reason)
}

// Encode makes the Envoy proto of a resource. The bytes are deterministic:
// equal resources give equal bytes. An invalid resource is refused with an
// [*Error], or a join of several.
func Encode(r resource.Resource) (*anypb.Any, error) {
	d := &decoder{typ: r.ResourceType(), name: r.ResourceName()}
	d.invalid(r.Validate())
	if len(d.errs) > 0 {
		return nil, d.err()
	}
	e := &encoder{}
	var m proto.Message
	switch x := r.(type) {
	case *resource.Listener:
		m = e.listener(x)
	case *resource.RouteConfig:
		m = e.routeConfig(x)
	case *resource.Cluster:
		m = e.cluster(x)
	case *resource.Endpoints:
		m = e.endpoints(x)
	case *resource.Secret:
		m = e.secret(x)
	default:
		return nil, &Error{Type: r.ResourceType(), Name: r.ResourceName(), Reason: fmt.Sprintf("%T is no resource that travels", r)}
	}
	a := e.pack(m)
	if e.err != nil {
		return nil, &Error{Type: r.ResourceType(), Name: r.ResourceName(), Reason: e.err.Error()}
	}
	return a, nil
}

// encoder keeps the first failure of marshalling.
type encoder struct{ err error }

// pack wraps a message deterministically.
func (e *encoder) pack(m proto.Message) *anypb.Any {
	a := &anypb.Any{}
	if err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}); err != nil && e.err == nil {
		e.err = err
	}
	return a
}

// Decode makes the resource of an Envoy proto. A non-nil error is an [*Error]
// or a join of several (errors.As finds the first); warnings are given with
// either outcome. The resource is normalised and valid.
func Decode(a *anypb.Any) (resource.Resource, []Warning, error) {
	d := &decoder{typ: resource.Type(a.GetTypeUrl())}
	r := d.resource(a)
	if r != nil && len(d.errs) == 0 {
		r = resource.Normalise(r)
		d.invalid(r.Validate())
	}
	d.sort()
	if len(d.errs) > 0 {
		return nil, d.warns, d.err()
	}
	return r, d.warns, nil
}

func (d *decoder) resource(a *anypb.Any) resource.Resource {
	switch d.typ {
	case resource.TypeListener:
		m := &listenerv3.Listener{}
		if d.open(a, m, func() string { return m.GetName() }) {
			return d.listener(m)
		}
	case resource.TypeRoute:
		m := &routev3.RouteConfiguration{}
		if d.open(a, m, func() string { return m.GetName() }) {
			return d.routeConfig("", m)
		}
	case resource.TypeCluster:
		m := &clusterv3.Cluster{}
		if d.open(a, m, func() string { return m.GetName() }) {
			return d.cluster(m)
		}
	case resource.TypeEndpoints:
		m := &endpointv3.ClusterLoadAssignment{}
		if d.open(a, m, func() string { return m.GetClusterName() }) {
			return d.endpoints("", m)
		}
	case resource.TypeSecret:
		m := &tlsv3.Secret{}
		if d.open(a, m, func() string { return m.GetName() }) {
			return d.secret(m)
		}
	default:
		d.fail("", "unknown resource type")
	}
	return nil
}

// open unmarshals the resource, learns its name and walks its fields.
func (d *decoder) open(a *anypb.Any, m proto.Message, name func() string) bool {
	if err := proto.Unmarshal(a.GetValue(), m); err != nil {
		d.fail("", "cannot be read: "+err.Error())
		return false
	}
	d.name = name()
	d.walk("", m.ProtoReflect(), false, 0)
	return true
}

// decoder collects what is to be said of one resource.
type decoder struct {
	typ   resource.Type
	name  string
	warns []Warning
	errs  []*Error

	static  bool               // the resource stands in a file: see DecodeStatic
	secrets []*resource.Secret // that a static resource brings along
}

func (d *decoder) fail(field, reason string) {
	d.errs = append(d.errs, &Error{Type: d.typ, Name: d.name, Field: field, Reason: reason})
}

func (d *decoder) failf(field, format string, a ...any) { d.fail(field, fmt.Sprintf(format, a...)) }

func (d *decoder) warn(field, reason string) {
	d.warns = append(d.warns, Warning{Type: d.typ, Name: d.name, Field: field, Reason: reason})
}

func (d *decoder) warnf(field, format string, a ...any) { d.warn(field, fmt.Sprintf(format, a...)) }

// invalid takes over the errors of Validate.
func (d *decoder) invalid(err error) {
	switch x := err.(type) {
	case nil:
	case *resource.FieldError:
		d.fail(x.Field, x.Reason)
	case interface{ Unwrap() []error }:
		for _, e := range x.Unwrap() {
			d.invalid(e)
		}
	default:
		d.fail("", err.Error())
	}
}

// sort makes what is said independent of the order of maps.
func (d *decoder) sort() {
	slices.SortStableFunc(d.warns, func(a, b Warning) int {
		return cmp.Or(cmp.Compare(a.Field, b.Field), cmp.Compare(a.Reason, b.Reason))
	})
	slices.SortStableFunc(d.errs, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Field, b.Field), cmp.Compare(a.Reason, b.Reason))
	})
}

func (d *decoder) err() error {
	if len(d.errs) == 1 {
		return d.errs[0]
	}
	out := make([]error, len(d.errs))
	for i, e := range d.errs {
		out[i] = e
	}
	return errors.Join(out...)
}

// unpack reads an Any into m, which must be of its type.
func (d *decoder) unpack(field string, a *anypb.Any, m proto.Message) bool {
	if err := a.UnmarshalTo(m); err != nil {
		d.fail(field, "cannot be read: "+err.Error())
		return false
	}
	return true
}
