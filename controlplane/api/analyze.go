package api

import (
	"cmp"

	"github.com/parrel-mesh/parrel/controlplane/generate"
	"github.com/parrel-mesh/parrel/controlplane/mesh"
)

// Analysis is the answer of /v1/analyze.
type Analysis struct {
	Findings []Finding `json:"findings"` // gravest first
	// Counts by severity: error, warning, info.
	Counts map[string]int `json:"counts"`
}

// Finding is one thing that is not as its author may think.
type Finding struct {
	Severity string `json:"severity"`
	Place    string `json:"place,omitempty"` // file or "consul"
	Entry    string `json:"entry"`           // "service-defaults/api", "registration web-sidecar-proxy"
	Field    string `json:"field,omitempty"`
	Problem  string `json:"problem"`
	Instead  string `json:"instead,omitempty"` // what parrel does
	Remedy   string `json:"remedy,omitempty"`
}

func (h *handler) analyze() Analysis {
	m := h.deps.Mesh()
	a := Analysis{Findings: []Finding{}, Counts: map[string]int{}}
	findings := generate.Analyze(m)
	for _, st := range h.deps.Streams() {
		findings = append(findings, refusals(m, sidecar(m, st))...)
	}
	generate.SortFindings(findings)
	for _, f := range findings {
		a.Findings = append(a.Findings, Finding{
			Severity: f.Severity.String(), Place: f.Place, Entry: f.Entry, Field: f.Field,
			Problem: f.Problem, Instead: f.Instead, Remedy: f.Remedy,
		})
		a.Counts[f.Severity.String()]++
	}
	return a
}

// refusals are what a sidecar refused and still wants.
func refusals(m *mesh.Snapshot, sc Sidecar) []generate.Finding {
	var out []generate.Finding
	for _, t := range sc.Types {
		for _, r := range t.Refused {
			out = append(out, generate.Finding{
				Severity: generate.SeverityError, Place: "sidecar " + sc.Node,
				Entry: cmp.Or(r.Entry, t.Type+" "+r.Name), Field: t.Type + " " + r.Name,
				Problem: "the sidecar refused it: " + r.Reason,
				Instead: "the version before it stays in force",
				Remedy:  "correct what caused it; the sidecar takes the next version at once",
			})
		}
	}
	return out
}
