package wire

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// maxAny bounds Any within Any: each level is unmarshalled anew, so that deep
// nesting would cost the square of its size.
const maxAny = 16

// strictPackages are those where a field that is not honoured refuses the
// resource: what says who may do what must not be half understood.
var strictPackages = []string{
	"envoy.config.rbac.v3.",
	"envoy.extensions.filters.http.rbac.v3.",
	"envoy.extensions.filters.network.rbac.v3.",
	"envoy.extensions.transport_sockets.tls.v3.",
	"envoy.extensions.filters.http.jwt_authn.v3.",
}

// limits refuse a resource of static configuration where they are not honoured:
// whoever wrote such a limit or check relies on it.
var limits = map[string]bool{
	"envoy.config.core.v3.HttpProtocolOptions.max_stream_duration":                              true,
	"envoy.config.core.v3.HttpProtocolOptions.max_requests_per_connection":                      true,
	"envoy.config.core.v3.HttpProtocolOptions.max_response_headers_kb":                          true,
	"envoy.config.route.v3.RouteAction.max_stream_duration":                                     true,
	"envoy.config.route.v3.RouteAction.rate_limits":                                             true,
	"envoy.config.route.v3.VirtualHost.rate_limits":                                             true,
	"envoy.config.route.v3.VirtualHost.require_tls":                                             true,
	"envoy.config.cluster.v3.Cluster.health_checks":                                             true,
	"envoy.config.cluster.v3.Cluster.outlier_detection":                                         true,
	"envoy.config.cluster.v3.CircuitBreakers.Thresholds.retry_budget":                           true,
	"envoy.config.cluster.v3.CircuitBreakers.per_host_thresholds":                               true,
	"envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.max_downstream_connection_duration": true,
}

func isStrict(m protoreflect.FullName) bool {
	for _, p := range strictPackages {
		if strings.HasPrefix(string(m), p) {
			return true
		}
	}
	return false
}

// walk reports every populated field below m that the table does not honour.
// Messages that are not in the table are leaves.
func (d *decoder) walk(path string, m protoreflect.Message, strict bool, depth int) {
	name := m.Descriptor().FullName()
	strict = strict || isStrict(name)
	fields, ok := table[name]
	if !ok {
		return
	}
	if len(m.GetUnknown()) > 0 {
		d.unhonoured(strict, join(path, "(unknown)"), "holds fields that this version of Envoy's API does not name")
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		p := join(path, string(fd.Name()))
		if !fields[fd.Name()] {
			if d.static && limits[string(name)+"."+string(fd.Name())] {
				d.fail(p, "parrel does not do this; leave it out, so that nobody relies on it")
				return true
			}
			d.unhonoured(strict || carriesStrict(fd, v, 0), p, "parrel does not honour this field")
			return true
		}
		d.walkValue(p, fd, v, strict, depth)
		return true
	})
}

func (d *decoder) unhonoured(strict bool, field, reason string) {
	if strict {
		d.fail(field, reason)
	} else {
		d.warn(field, reason)
	}
}

func (d *decoder) walkValue(p string, fd protoreflect.FieldDescriptor, v protoreflect.Value, strict bool, depth int) {
	switch {
	case fd.IsMap():
		if fd.MapValue().Message() == nil {
			return
		}
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			d.walkMessage(fmt.Sprintf("%s[%q]", p, k.String()), v.Message(), strict, depth)
			return true
		})
	case fd.Message() == nil:
	case fd.IsList():
		for i := range v.List().Len() {
			d.walkMessage(fmt.Sprintf("%s[%d]", p, i), v.List().Get(i).Message(), strict, depth)
		}
	default:
		d.walkMessage(p, v.Message(), strict, depth)
	}
}

func (d *decoder) walkMessage(p string, m protoreflect.Message, strict bool, depth int) {
	a, ok := m.Interface().(*anypb.Any)
	if !ok {
		d.walk(p, m, strict, depth)
		return
	}
	if depth >= maxAny {
		d.failf(p, "is nested deeper than %d", maxAny)
		return
	}
	// What cannot be opened, or is not modelled, is the business of the decoder
	// of the field: whether it may be left out is written beside it.
	if _, modelled := table[a.MessageName()]; !modelled {
		return
	}
	if in, err := a.UnmarshalNew(); err == nil {
		d.walk(p, in.ProtoReflect(), strict, depth+1)
	}
}

// carriesStrict says whether a field that is not honoured holds configuration
// of a strict package: an RBAC override per route must not vanish in a warning.
func carriesStrict(fd protoreflect.FieldDescriptor, v protoreflect.Value, depth int) bool {
	found := false
	look := func(m protoreflect.Message) {
		if found || depth > maxAny {
			return
		}
		if a, ok := m.Interface().(*anypb.Any); ok {
			if found = isStrict(a.MessageName()); found {
				return
			}
			in, err := a.UnmarshalNew()
			if err != nil {
				return
			}
			m = in.ProtoReflect()
		}
		if found = isStrict(m.Descriptor().FullName()); found {
			return
		}
		m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			found = found || carriesStrict(fd, v, depth+1)
			return !found
		})
	}
	switch {
	case fd.IsMap():
		if fd.MapValue().Message() != nil {
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				look(v.Message())
				return !found
			})
		}
	case fd.Message() == nil:
	case fd.IsList():
		for i := range v.List().Len() {
			look(v.List().Get(i).Message())
		}
	default:
		look(v.Message())
	}
	return found
}

// honours says whether nothing below m is unhonoured; the walk reports what is.
// A matcher that is only half understood would match too much.
func (d *decoder) honours(m proto.Message) bool {
	probe := &decoder{}
	probe.walk("", m.ProtoReflect(), false, 0)
	return len(probe.warns) == 0 && len(probe.errs) == 0
}

func join(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}
