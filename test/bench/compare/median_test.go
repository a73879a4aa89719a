package main

import "testing"

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1}, 5}, {[]float64{5, 100, 1}, 5}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(c.in); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.in, got, c.want)
		}
	}
	in := []float64{3, 1, 2}
	if median(in); in[0] != 3 {
		t.Error("median sorts its argument")
	}
}

func TestRatio(t *testing.T) {
	// The middle round is slow for both: the ratio does not see it.
	if got := ratio([]float64{8, 80, 9}, []float64{10, 100, 10}); got != 0.8 {
		t.Errorf("got %v", got)
	}
	if got := ratio([]float64{1, 6}, []float64{0, 3}); got != 2 {
		t.Errorf("a round without an anchor counts: %v", got)
	}
	if got := ratio([]float64{1}, nil); got != 0 {
		t.Errorf("got %v", got)
	}
}

func sample(rate, cpu, core, p50 float64) Sample {
	return Sample{Load: Load{Rate: rate, N: rate, Latency: map[string]float64{"p50": p50}}, CPU: cpu, Core: core}
}

func TestRows(t *testing.T) {
	got := rows([]string{direct, "haproxy", "absent", "parrel"}, map[string][]Sample{
		direct:    {sample(100, 0, .01, 100), sample(100, 0, .01, 120), sample(100, 0, .01, 110)},
		"haproxy": {sample(10, 4, 5, 200), sample(5, 8, 10, 320), sample(11, 4, 5, 210)},
		"parrel":  {sample(15, 3, 5, 180), sample(7.5, 6, 10, 280), sample(33, 1, 1, 190)},
	}, "haproxy")
	if len(got) != 3 || got[0].Name != direct || got[2].Name != "parrel" {
		t.Fatalf("rows %+v", got)
	}
	p := got[2]
	if p.Rate != 15 || p.Least != 7.5 || p.Most != 33 || p.CPU != 3 || p.Latency["p50"] != 190 {
		t.Errorf("medians %+v", p)
	}
	for m, want := range map[metric]float64{mRate: 1.5, mCPU: .75, mCore: 1, mAdded: .8} {
		if !near(p.Ratio[m], want) {
			t.Errorf("ratio of %s is %v, want %v", m, p.Ratio[m], want)
		}
	}
	if _, ok := got[0].Ratio[mCPU]; ok {
		t.Error("no proxy has a ratio of CPU")
	}
}

func TestJudge(t *testing.T) {
	cpu, rate := Target{mCPU, 0.9, 0.8}, Target{mRate, 1.5, 1.7}
	for _, c := range []struct {
		t    Target
		v    float64
		want string
	}{
		{cpu, 0.8, "goal reached"}, {cpu, 0.85, "reached"}, {cpu, 0.91, "MISSED"}, {cpu, 0, "not measured"},
		{rate, 1.7, "goal reached"}, {rate, 1.6, "reached"}, {rate, 1.4, "MISSED"},
	} {
		if got := c.t.judge(c.v); got != c.want {
			t.Errorf("%s %v: %s, want %s", c.t.Metric, c.v, got, c.want)
		}
	}
}
