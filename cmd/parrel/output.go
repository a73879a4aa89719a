package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// outputFlag is -o of every command that reports.
type outputFlag struct{ format string }

func (o *outputFlag) bind(cmd *cobra.Command) {
	o.format = outputs[0]
	cmd.Flags().VarP(o, "output", "o", "table, json or yaml")
}

// outputs are the values of -o.
var outputs = []string{"table", "json", "yaml"}

// Set implements pflag.Value: a wrong format is said before anything is asked.
func (o *outputFlag) Set(s string) error {
	if !slices.Contains(outputs, s) {
		return errors.New("use table, json or yaml")
	}
	o.format = s
	return nil
}

func (o *outputFlag) String() string { return o.format }

// Type is what help shows.
func (o *outputFlag) Type() string { return "format" }

// table is what a command writes columns to, separated by tabs.
type table struct{ *tabwriter.Writer }

// row writes one row.
func (t *table) row(cells ...any) {
	s := make([]string, len(cells))
	for i, c := range cells {
		s[i] = fmt.Sprint(c)
	}
	fmt.Fprintln(t, strings.Join(s, "\t"))
}

// print writes v as JSON or YAML, or calls show for a table.
func (o *outputFlag) print(w io.Writer, v any, show func(*table)) error {
	switch o.format {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case "yaml":
		b, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	}
	t := &table{tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)}
	show(t)
	return t.Flush()
}

// orDash shows that a cell is empty.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
