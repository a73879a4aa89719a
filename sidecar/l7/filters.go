package l7

import (
	"fmt"
	"log/slog"

	"github.com/parrel-mesh/parrel/sidecar/filter"
	"github.com/parrel-mesh/parrel/sidecar/filter/rbac"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// filters is the list of HTTP filters that this sidecar runs: a new one is one
// line here. (The list is here and not in package filter, which the filters
// import.) The router is the engine itself.
func filters() []filter.Entry {
	return []filter.Entry{
		rbac.Entry(),
	}
}

// Filters builds the filters of a connection manager; its error names the one
// that cannot be run.
func Filters(m *resource.HTTPManager, d filter.Deps) (*filter.Chain, error) {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	c, err := filter.Build(filters(), m.Filters, d)
	if err != nil {
		return nil, fmt.Errorf("l7: %w", err)
	}
	return c, nil
}
