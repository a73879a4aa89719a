package wire

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/parrel-mesh/parrel/xds/resource"
)

var compareOps = [...]accesslogv3.ComparisonFilter_Op{
	resource.CompareEQ: accesslogv3.ComparisonFilter_EQ, resource.CompareGE: accesslogv3.ComparisonFilter_GE,
	resource.CompareLE: accesslogv3.ComparisonFilter_LE, resource.CompareNE: accesslogv3.ComparisonFilter_NE,
}

func comparison(c *resource.Comparison, key string) *accesslogv3.ComparisonFilter {
	return &accesslogv3.ComparisonFilter{Op: compareOps[c.Op],
		Value: &corev3.RuntimeUInt32{DefaultValue: c.Value, RuntimeKey: "parrel.access_log." + key}}
}

func (e *encoder) logFilter(f *resource.LogFilter) *accesslogv3.AccessLogFilter {
	out := &accesslogv3.AccessLogFilter{}
	switch {
	case f.Status != nil:
		out.FilterSpecifier = &accesslogv3.AccessLogFilter_StatusCodeFilter{StatusCodeFilter: &accesslogv3.StatusCodeFilter{Comparison: comparison(f.Status, "min_status")}}
	case f.Duration != nil:
		out.FilterSpecifier = &accesslogv3.AccessLogFilter_DurationFilter{DurationFilter: &accesslogv3.DurationFilter{Comparison: comparison(f.Duration, "duration")}}
	case len(f.And) > 0:
		out.FilterSpecifier = &accesslogv3.AccessLogFilter_AndFilter{AndFilter: &accesslogv3.AndFilter{Filters: each(f.And, e.logFilter)}}
	case len(f.Or) > 0:
		out.FilterSpecifier = &accesslogv3.AccessLogFilter_OrFilter{OrFilter: &accesslogv3.OrFilter{Filters: each(f.Or, e.logFilter)}}
	default:
		out.FilterSpecifier = &accesslogv3.AccessLogFilter_ResponseFlagFilter{ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: f.Flags}}
	}
	return out
}

// logFilter is nil where a part of the filter is not known: half of one would
// leave out what is wanted.
func (d *decoder) logFilter(at string, f *accesslogv3.AccessLogFilter, depth int) *resource.LogFilter {
	if depth > maxAny {
		d.failf(at, "is nested deeper than %d", maxAny)
		return nil
	}
	switch x := f.GetFilterSpecifier().(type) {
	case *accesslogv3.AccessLogFilter_StatusCodeFilter:
		return &resource.LogFilter{Status: d.comparison(at+".status_code_filter.comparison", x.StatusCodeFilter.GetComparison())}
	case *accesslogv3.AccessLogFilter_DurationFilter:
		return &resource.LogFilter{Duration: d.comparison(at+".duration_filter.comparison", x.DurationFilter.GetComparison())}
	case *accesslogv3.AccessLogFilter_ResponseFlagFilter:
		flags := x.ResponseFlagFilter.GetFlags()
		return &resource.LogFilter{Flags: flags, AnyFlag: len(flags) == 0}
	case *accesslogv3.AccessLogFilter_AndFilter:
		if all, ok := d.logFilters(at+".and_filter.filters", x.AndFilter.GetFilters(), depth); ok {
			return &resource.LogFilter{And: all}
		}
	case *accesslogv3.AccessLogFilter_OrFilter:
		if all, ok := d.logFilters(at+".or_filter.filters", x.OrFilter.GetFilters(), depth); ok {
			return &resource.LogFilter{Or: all}
		}
	}
	return nil
}

func (d *decoder) logFilters(at string, fs []*accesslogv3.AccessLogFilter, depth int) ([]resource.LogFilter, bool) {
	var out []resource.LogFilter
	for i, f := range fs {
		one := d.logFilter(index(at, i), f, depth+1)
		if one == nil {
			return nil, false
		}
		out = append(out, *one)
	}
	if len(out) == 0 {
		d.fail(at, "there is none; nothing could be decided")
	}
	return out, len(out) > 0
}

func (d *decoder) comparison(at string, c *accesslogv3.ComparisonFilter) *resource.Comparison {
	out := &resource.Comparison{Value: c.GetValue().GetDefaultValue()}
	for op, v := range compareOps {
		if v == c.GetOp() {
			out.Op = resource.CompareOp(op)
			return out
		}
	}
	d.failf(at+".op", "unknown value %d", c.GetOp())
	return out
}
