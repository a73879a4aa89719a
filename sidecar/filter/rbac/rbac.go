package rbac

import (
	"context"

	"github.com/parrel-mesh/parrel/sidecar/filter"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Entry is the filter's line in the registry.
func Entry() filter.Entry {
	return filter.Entry{
		Kind:       "rbac",
		Configured: func(f *resource.HTTPFilter) bool { return f.RBAC != nil },
		New: func(f *resource.HTTPFilter, d filter.Deps) (filter.Filter, error) {
			if f.RBAC.Rules == nil && f.RBAC.Shadow == nil {
				return nil, nil // enforces nothing
			}
			rules, err := decide.CompileRBAC(f.RBAC)
			if err != nil {
				return nil, err
			}
			return &rbac{rules: rules}, nil
		},
	}
}

type rbac struct{ rules *decide.RBAC }

var _ filter.Filter = (*rbac)(nil)

func (r *rbac) Request(_ context.Context, x *filter.Exchange, req *stream.Request) (*stream.Response, any, error) {
	v := r.rules.Authorise(x.Head(req), x.Facts, nil)
	if v.ShadowAllowed != v.Allowed {
		x.Record.ShadowPolicy, x.Record.ShadowDenied = v.ShadowPolicy, !v.ShadowAllowed
	}
	if v.Allowed {
		return nil, nil, nil
	}
	detail := "no policy allows the request"
	if v.Policy != "" {
		detail = "denied by policy " + v.Policy
	}
	return nil, nil, &filter.Abort{Status: telemetry.RBACDenied.Info().Status, Code: telemetry.RBACDenied, Detail: detail}
}

func (*rbac) Response(context.Context, *filter.Exchange, any, *stream.Response) error { return nil }

func (*rbac) Done(*filter.Exchange, any) {}
