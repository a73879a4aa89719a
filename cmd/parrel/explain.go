package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parrel-mesh/parrel/controlplane/api"
)

func explainCommand() *cobra.Command {
	var (
		from      apiFlag
		out       outputFlag
		source    string
		dest      string
		authority string
		headers   []string
		steps     bool
	)
	cmd := &cobra.Command{
		Use:   "explain --from web --to api [METHOD] [PATH]",
		Short: "Say where a call would go, and whether it is allowed, and why",
		Long: `Decides a call that is not made, with the very functions by which the sidecars
decide: the caller's chain, route and cluster, the candidates and why each is in
or out, then the callee's chain, the intention, and its application.

The exit code is 0 when the call would be allowed, 2 when it would not, and 1
when that could not be found out.

    parrel explain --from web --to api GET /orders?id=7`,
		Args: atMost(2, "--from web --to api [METHOD] [PATH]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if source == "" || dest == "" {
				return errors.New("explain: from whom to whom? Give --from SERVICE and --to SERVICE")
			}
			q := url.Values{"from": {source}, "to": {dest}, "method": {http.MethodGet}, "path": {"/"}}
			if err := methodAndPath(q, args); err != nil {
				return err
			}
			if authority != "" {
				q.Set("authority", authority)
			}
			for _, h := range headers {
				if !strings.Contains(h, ":") {
					return fmt.Errorf("explain: --header %q: write NAME: VALUE", h)
				}
				q.Add("header", h)
			}
			var e api.Explanation
			if err := from.get(cmd.Context(), "/v1/explain", q, &e); err != nil {
				return err
			}
			if err := out.print(cmd.OutOrStdout(), e, func(t *table) { showExplanation(t, e, steps) }); err != nil {
				return err
			}
			if e.Verdict != "allowed" {
				return exitCode(2)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&source, "from", "", "the caller: a service, or the id of a proxy")
	f.StringVar(&dest, "to", "", "the callee: a service, or the id of a proxy")
	f.StringVar(&authority, "authority", "", "the request's authority (default: the callee's name)")
	f.StringArrayVarP(&headers, "header", "H", nil, "a header as NAME: VALUE; repeat for several")
	f.BoolVar(&steps, "steps", true, "show every comparison")
	from.bind(cmd)
	out.bind(cmd)
	return cmd
}

// methodAndPath reads "GET /x", "/x" or "GET".
func methodAndPath(q url.Values, args []string) error {
	for _, a := range args {
		if strings.HasPrefix(a, "/") {
			q.Set("path", a)
		} else if a == strings.ToUpper(a) {
			q.Set("method", a)
		} else {
			return fmt.Errorf("explain: %q is neither a method (GET) nor a path (/x)", a)
		}
	}
	return nil
}

func showExplanation(t *table, e api.Explanation, steps bool) {
	fmt.Fprintf(t, "%s: %s\n", strings.ToUpper(e.Verdict), e.Reason)
	fmt.Fprintf(t, "\n%s %s%s from %s (%s) to %s (%s)\n", e.Request.Method, e.Request.Authority, e.Request.Path, e.From.Service, e.From.SPIFFEID, e.To.Service, e.To.SPIFFEID)
	showHop(t, "at the caller's sidecar", e.Outbound, steps)
	if len(e.Candidates) > 0 {
		fmt.Fprintf(t, "\ncandidates\n")
		t.row("  ADDRESS", "INSTANCE", "VERSION", "WEIGHT", "IN", "WHY")
		for _, c := range e.Candidates {
			in := "no"
			if c.In {
				in = "yes"
			}
			t.row("  "+c.Address, c.Workload, orDash(c.Version), c.Weight, in, c.Why)
		}
	}
	showHop(t, "at the callee's sidecar", e.Inbound, steps)
}

func showHop(t *table, where string, h *api.Hop, steps bool) {
	if h == nil {
		return
	}
	fmt.Fprintf(t, "\n%s: listener %s at %s", where, h.Listener, h.Address)
	for _, part := range []struct{ name, value string }{{"captured on the way to", h.Destination}, {"chain", h.Chain}, {"virtual host", h.VirtualHost}, {"route", h.Route}, {"cluster", h.Cluster}, {"from", h.Entry}} {
		if part.value != "" {
			fmt.Fprintf(t, ", %s %s", part.name, part.value)
		}
	}
	fmt.Fprintln(t)
	if h.Authorisation != nil {
		verdict := "denied"
		if h.Authorisation.Allowed {
			verdict = "allowed"
		}
		fmt.Fprintf(t, "  authorisation: %s", verdict)
		if h.Authorisation.Policy != "" {
			fmt.Fprintf(t, " by %s", h.Authorisation.Policy)
		}
		fmt.Fprintln(t)
	}
	if !steps {
		return
	}
	for _, s := range h.Steps {
		mark := "-"
		if s.Matched {
			mark = "+"
		}
		fmt.Fprintf(t, "  %s %s: %s\n", mark, s.Subject, s.Reason)
	}
}
