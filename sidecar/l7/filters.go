package l7

import (
	"github.com/parrel-mesh/parrel/sidecar/filter"
	"github.com/parrel-mesh/parrel/sidecar/filter/rbac"
)

// filters is the list of HTTP filters that this sidecar runs: a new one is one
// line here. (The list is here and not in package filter, which the filters
// import.) The router is the engine itself.
func filters() []filter.Entry {
	return []filter.Entry{
		rbac.Entry(),
	}
}
