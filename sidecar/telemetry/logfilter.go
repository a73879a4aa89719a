package telemetry

import (
	"slices"
	"time"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// logged says whether a record passes the filter of an access log; nil: all do.
func logged(f *resource.LogFilter, r *Record) bool {
	switch {
	case f == nil:
		return true
	case f.Status != nil:
		return compares(f.Status, int64(r.Status))
	case f.Duration != nil:
		return compares(f.Duration, int64(r.Duration/time.Millisecond))
	case len(f.And) > 0:
		for i := range f.And {
			if !logged(&f.And[i], r) {
				return false
			}
		}
		return true
	case len(f.Or) > 0:
		for i := range f.Or {
			if logged(&f.Or[i], r) {
				return true
			}
		}
		return false
	case f.AnyFlag:
		flag := r.Code.Info().Flag
		return flag != "" && flag != "-"
	}
	return slices.Contains(f.Flags, r.Code.Info().Flag)
}

func compares(c *resource.Comparison, n int64) bool {
	switch v := int64(c.Value); c.Op {
	case resource.CompareGE:
		return n >= v
	case resource.CompareLE:
		return n <= v
	case resource.CompareNE:
		return n != v
	default:
		return n == v
	}
}
