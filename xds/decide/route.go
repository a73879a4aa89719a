package decide

import "github.com/parrel-mesh/parrel/xds/resource"

// Routes is a route configuration, compiled. Immutable.
type Routes struct{}

// CompileRoutes compiles a route configuration; its error names the field that
// cannot be compiled.
func CompileRoutes(rc *resource.RouteConfig) (*Routes, error) { return &Routes{}, nil }

// Route decides where a request goes and writes it to out, which may be reused
// from request to request.
func (r *Routes) Route(h Head, f *Facts, tr *Trace, out *RouteVerdict) {
	*out = RouteVerdict{NotFound: true}
}
