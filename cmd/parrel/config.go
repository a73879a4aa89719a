package main

import (
	"encoding/json"
	"fmt"
	"net/url"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// configTypes are what `parrel config` shows, with what each is.
var configTypes = []struct{ name, what string }{
	{"clusters", "upstreams: how they are reached, balanced and authenticated"},
	{"listeners", "what the sidecar accepts, and what then happens"},
	{"routes", "which request goes to which cluster"},
	{"endpoints", "addresses of the clusters, with health and weight"},
	{"secrets", "trust bundles; keys are never served"},
}

// configDump is api.ConfigDump as a client reads it: the resources stay as the
// JSON that they came in.
type configDump struct {
	Node      string           `json:"node"`
	Service   string           `json:"service"`
	Type      string           `json:"type"`
	Dialect   string           `json:"dialect"`
	Resources []configResource `json:"resources"`
}

type configResource struct {
	Name    string          `json:"name"`
	Private bool            `json:"private"`
	Entry   string          `json:"entry,omitempty"`
	Config  json.RawMessage `json:"config"`
}

func configCommand() *cobra.Command {
	var subs []*cobra.Command
	for _, t := range configTypes {
		subs = append(subs, configTypeCommand(t.name, t.what))
	}
	return group(&cobra.Command{
		Use:   "config",
		Short: "Show the configuration that a sidecar is served",
	}, subs...)
}

func configTypeCommand(name, what string) *cobra.Command {
	var (
		from apiFlag
		out  outputFlag
	)
	cmd := &cobra.Command{
		Use:   name + " NODE",
		Short: "Show " + name + ": " + what,
		Long:  "NODE is the id of a proxy (web-1-sidecar-proxy) or the name of a service, whose first proxy it then is.",
		Args:  oneArg("NODE", "web-1-sidecar-proxy"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var d configDump
			if err := from.get(cmd.Context(), "/v1/config/"+name+"/"+url.PathEscape(args[0]), nil, &d); err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), d, func(t *table) { showConfig(t, d) })
		},
	}
	from.bind(cmd)
	out.bind(cmd)
	return cmd
}

func showConfig(t *table, d configDump) {
	fmt.Fprintf(t, "%s of %s (service %s, dialect %s): %d\n", d.Type, d.Node, d.Service, d.Dialect, len(d.Resources))
	for _, r := range d.Resources {
		fmt.Fprintf(t, "\n%s", r.Name)
		if r.Entry != "" {
			fmt.Fprintf(t, "  (from %s)", r.Entry)
		}
		fmt.Fprintln(t)
		y, err := yaml.JSONToYAML(r.Config)
		if err != nil {
			y = r.Config
		}
		for _, line := range splitLines(string(y)) {
			fmt.Fprintf(t, "  %s\n", line)
		}
	}
}
