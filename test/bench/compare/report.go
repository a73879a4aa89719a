package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// Result is what came of one series: a section of results.md.
type Result struct {
	Series  string   `json:"series"`
	Title   string   `json:"title"`
	Client  string   `json:"client"`
	Unit    string   `json:"unit"`
	Anchor  string   `json:"anchor"`
	Rounds  int      `json:"rounds"`
	Secs    int      `json:"secs"`
	Machine Machine  `json:"machine"`
	Rows    []Row    `json:"rows,omitempty"`
	Mem     []MemRow `json:"mem,omitempty"`
	Targets []Target `json:"targets,omitempty"`
}

// disturbed is the share of the two cores from which on a row is marked: that
// much went to others while the contender ran.
const disturbed = 0.10

// reached returns what parrel came to for a target, 0 where it did not run.
func (r *Result) reached(t Target) float64 {
	for i := range r.Rows {
		if strings.HasPrefix(r.Rows[i].Name, "parrel") {
			return r.Rows[i].Ratio[t.Metric]
		}
	}
	for _, m := range r.Mem {
		switch {
		case t.Metric == mIdle && m.Name == hundred:
			return m.Idle
		case t.Metric == mConn && m.Name == "parrel":
			return m.PerConn
		}
	}
	return 0
}

func (r *Result) summary() string {
	var b strings.Builder
	for _, t := range r.Targets {
		v := r.reached(t)
		what := string(t.Metric)
		if r.Anchor != "" {
			what += " to " + r.Anchor
		}
		verdict := t.judge(v)
		if t.Metric != mCPU && r.spoilt() {
			verdict += ", disturbed"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %.2f | %s |\n", r.Series, what, t.limit(t.Required), t.limit(t.Goal), v, verdict)
	}
	return b.String()
}

// spoilt says whether others disturbed parrel or its anchor so much that only
// process time is to be believed.
func (r *Result) spoilt() bool {
	return slices.ContainsFunc(r.Rows, func(x Row) bool {
		return x.Others >= disturbed && (x.Name == r.Anchor || strings.HasPrefix(x.Name, "parrel"))
	})
}

const summaryHead = "| series | measure | required | goal | reached | |\n|---|---|---|---|---|---|\n"

// markdown is the section of a series.
func (r *Result) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "## %s: %s\n\n`%s`", r.Series, r.Title, r.Client)
	if r.Mem != nil {
		fmt.Fprintf(&b, "\n\n%s; %d cores, %s; %s\n\n", r.Machine.Versions, r.Machine.Cores, r.Machine.CPU, r.Machine.Kernel)
		b.WriteString("| proxy | idle MB | with connections MB | KB per connection |\n|---|---|---|---|\n")
		for _, m := range r.Mem {
			fmt.Fprintf(&b, "| %s | %.1f | %.1f | %.2f |\n", m.Name, m.Idle, m.Loaded, m.PerConn)
		}
	} else {
		fmt.Fprintf(&b, ", %d rounds of %d s; CPU in seconds for %s\n\n%s; %d cores, %s; %s\n\n", r.Rounds, r.Secs, r.Unit, r.Machine.Versions, r.Machine.Cores, r.Machine.CPU, r.Machine.Kernel)
		r.rowTable(&b)
	}
	if s := r.summary(); s != "" {
		b.WriteString("\n" + summaryHead + s)
	}
	return b.String()
}

func (r *Result) rowTable(b *strings.Builder) {
	var lats []string
	for _, k := range []string{"mean", "p50", "p90", "p99", "p999"} {
		if slices.ContainsFunc(r.Rows, func(x Row) bool { return x.Latency[k] > 0 }) {
			lats = append(lats, k)
		}
	}
	head := []string{"contender", "rate", "least–most", "ratio", "CPU", "ratio", "proxy core", "ratio", "both cores", "RSS MB"}
	for _, l := range lats {
		head = append(head, l+" µs")
	}
	plain := slices.ContainsFunc(r.Rows, func(x Row) bool { return x.Name == direct })
	if plain && slices.Contains(lats, "p50") {
		head = append(head, "added p50 ratio")
	}
	head = append(head, "others %")
	line := func(cells []string) { fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | ")) }
	line(head)
	line(strings.Split(strings.Repeat("---,", len(head)-1)+"---", ","))
	for i := range r.Rows {
		x := &r.Rows[i]
		cells := []string{x.Name, fmt.Sprintf("%.5g", x.Rate), fmt.Sprintf("%.4g–%.4g", x.Least, x.Most), fmt.Sprintf("%.2f", x.Ratio[mRate]),
			fmt.Sprintf("%.3f", x.CPU), optional(x.Ratio[mCPU]), fmt.Sprintf("%.3f", x.Core), optional(x.Ratio[mCore]), fmt.Sprintf("%.3f", x.Both), fmt.Sprintf("%.0f", x.RSS)}
		for _, l := range lats {
			cells = append(cells, fmt.Sprintf("%.0f", x.Latency[l]))
		}
		if plain && slices.Contains(lats, "p50") {
			cells = append(cells, optional(x.Ratio[mAdded]))
		}
		noise := fmt.Sprintf("%.0f", 100*x.Others)
		if x.Others >= disturbed {
			noise += " disturbed"
		}
		line(append(cells, noise))
	}
}

func optional(v float64) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", v)
}

// rank is the place of a series in the table.
func rank(series string) int {
	if i := slices.IndexFunc(table, func(s Series) bool { return s.name == series }); i >= 0 {
		return i
	}
	return len(table)
}

// save puts a result in the place of the last one of its series, in path.json,
// and renders path.md from all of them.
func save(path string, r *Result) error {
	var all []*Result
	text, err := os.ReadFile(path + ".json")
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(text, &all); err != nil {
			return fmt.Errorf("%s.json: %w", path, err)
		}
	}
	all = slices.DeleteFunc(all, func(x *Result) bool { return x.Series == r.Series })
	all = append(all, r)
	slices.SortFunc(all, func(a, b *Result) int { return cmp.Compare(rank(a.Series), rank(b.Series)) })
	if text, err = json.MarshalIndent(all, "", "  "); err != nil {
		return err
	}
	if err := os.WriteFile(path+".json", append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(path+".md", []byte(document(all)), 0o644)
}

// document is the whole of results.md.
func document(all []*Result) string {
	var b strings.Builder
	b.WriteString("# Side by side\n\nWritten by `make bench`; [docs/benchmarks.md](../../docs/benchmarks.md) says what the series and columns mean.\n")
	b.WriteString("Ratios are medians of each round's; the rest are medians of all rounds.\n\n" + summaryHead)
	for _, r := range all {
		b.WriteString(r.summary())
	}
	for _, r := range all {
		b.WriteString("\n" + r.markdown())
	}
	return b.String()
}
