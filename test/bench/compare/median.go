package main

import (
	"maps"
	"slices"
)

// Sample is one turn of one contender.
type Sample struct {
	Load
	CPU, Core, Both float64 // seconds for a unit of the series
	Others          float64 // share of the two cores that others took
	RSS             float64 // MB
}

// Row is what came of all turns of one contender. Ratios are to the anchor: the
// median of the ratios of each round, so that what slowed a whole round does not
// count.
type Row struct {
	Name    string             `json:"name"`
	Rate    float64            `json:"rate"`
	Least   float64            `json:"least"`
	Most    float64            `json:"most"`
	CPU     float64            `json:"cpu"`
	Core    float64            `json:"core"`
	Both    float64            `json:"both"`
	Others  float64            `json:"others"`
	RSS     float64            `json:"rss"`
	Latency map[string]float64 `json:"latency,omitempty"`
	Ratio   map[metric]float64 `json:"ratio"`
}

// median returns the middle value, the mean of the two middle ones of an even
// number, and 0 of none.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	m := len(s) / 2
	if len(s)%2 == 1 {
		return s[m]
	}
	return (s[m-1] + s[m]) / 2
}

func each(s []Sample, f func(*Sample) float64) []float64 {
	out := make([]float64, len(s))
	for i := range s {
		out[i] = f(&s[i])
	}
	return out
}

// ratio is the median of a[i]/b[i] over the rounds in which b is not 0.
func ratio(a, b []float64) float64 {
	var out []float64
	for i := range min(len(a), len(b)) {
		if b[i] > 0 {
			out = append(out, a[i]/b[i])
		}
	}
	return median(out)
}

// rows condenses the turns of a series. Each contender of names has one for each
// round in samples.
func rows(names []string, samples map[string][]Sample, anchor string) []Row {
	base := samples[anchor]
	plain := samples[direct]
	var out []Row
	for _, n := range names {
		s := samples[n]
		if len(s) == 0 {
			continue
		}
		of := func(f func(*Sample) float64) float64 { return median(each(s, f)) }
		rates := each(s, rateOf)
		r := Row{
			Name: n, Rate: median(rates), Least: slices.Min(rates), Most: slices.Max(rates),
			CPU: of(cpuOf), Core: of(coreOf), Both: of(bothOf), Others: of(func(x *Sample) float64 { return x.Others }),
			RSS: of(func(x *Sample) float64 { return x.RSS }), Latency: map[string]float64{}, Ratio: map[metric]float64{},
		}
		for k := range maps.Keys(s[0].Latency) {
			r.Latency[k] = of(func(x *Sample) float64 { return x.Latency[k] })
		}
		r.Ratio[mRate] = ratio(rates, each(base, rateOf))
		if n != direct {
			r.Ratio[mCPU] = ratio(each(s, cpuOf), each(base, cpuOf))
			r.Ratio[mCore] = ratio(each(s, coreOf), each(base, coreOf))
			if len(plain) > 0 {
				r.Ratio[mAdded] = ratio(added(s, plain), added(base, plain))
			}
		}
		out = append(out, r)
	}
	return out
}

func rateOf(s *Sample) float64 { return s.Rate }
func cpuOf(s *Sample) float64  { return s.CPU }
func coreOf(s *Sample) float64 { return s.Core }
func bothOf(s *Sample) float64 { return s.Both }

// added is what a proxy adds to the median latency of the same round.
func added(s, plain []Sample) []float64 {
	out := make([]float64, min(len(s), len(plain)))
	for i := range out {
		out[i] = s[i].Latency["p50"] - plain[i].Latency["p50"]
	}
	return out
}
