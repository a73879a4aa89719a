package telemetry

import (
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestLogFilter(t *testing.T) {
	status := func(op resource.CompareOp, v uint32) resource.LogFilter {
		return resource.LogFilter{Status: &resource.Comparison{Op: op, Value: v}}
	}
	slow := resource.LogFilter{Duration: &resource.Comparison{Op: resource.CompareGE, Value: 100}}
	r := &Record{Status: 503, Duration: 120 * time.Millisecond, Code: NoHealthyUpstream}
	quick := &Record{Status: 200, Duration: 99 * time.Millisecond}
	for name, c := range map[string]struct {
		f             *resource.LogFilter
		wants, wantsQ bool // of r, of quick
	}{
		"none":         {nil, true, true},
		"equal":        {&resource.LogFilter{Status: &resource.Comparison{Value: 503}}, true, false},
		"not equal":    {&resource.LogFilter{Status: &resource.Comparison{Op: resource.CompareNE, Value: 503}}, false, true},
		"at most":      {&resource.LogFilter{Status: &resource.Comparison{Op: resource.CompareLE, Value: 499}}, false, true},
		"slow":         {&slow, true, false},
		"and":          {&resource.LogFilter{And: []resource.LogFilter{slow, status(resource.CompareLE, 499)}}, false, false},
		"or":           {&resource.LogFilter{Or: []resource.LogFilter{slow, status(resource.CompareLE, 499)}}, true, true},
		"any flag":     {&resource.LogFilter{AnyFlag: true}, true, false},
		"one flag":     {&resource.LogFilter{Flags: []string{"UF", "UH"}}, true, false},
		"another flag": {&resource.LogFilter{Flags: []string{"UF"}}, false, false},
	} {
		if got := logged(c.f, r); got != c.wants {
			t.Errorf("%s: a failure is logged: %v", name, got)
		}
		if got := logged(c.f, quick); got != c.wantsQ {
			t.Errorf("%s: a success is logged: %v", name, got)
		}
	}
	if n := testing.AllocsPerRun(100, func() { logged(&resource.LogFilter{Flags: []string{"UF"}}, r) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
