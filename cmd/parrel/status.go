package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/parrel-mesh/parrel/controlplane/api"
)

func statusCommand() *cobra.Command {
	var (
		from apiFlag
		out  outputFlag
	)
	cmd := &cobra.Command{
		Use:   "status [NODE]",
		Short: "Show each sidecar and what it has acknowledged",
		Long: `Shows the control plane, its catalogue, and for each sidecar and type the
version wanted, the version acknowledged, for how long they have differed, and
the text of the last refusal. NODE shows one sidecar only.`,
		Args: atMost(1, "[NODE]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var s api.Status
			if err := from.get(cmd.Context(), "/v1/status", nil, &s); err != nil {
				return err
			}
			if len(args) == 1 {
				var found []api.Sidecar
				for _, c := range s.Sidecars {
					if c.Node == args[0] {
						found = append(found, c)
					}
				}
				if found == nil {
					return fmt.Errorf("status: no sidecar %q: `parrel status` lists all", args[0])
				}
				s.Sidecars = found
			}
			return out.print(cmd.OutOrStdout(), s, func(t *table) { showStatus(t, s) })
		},
	}
	from.bind(cmd)
	out.bind(cmd)
	return cmd
}

func showStatus(t *table, s api.Status) {
	cp := s.ControlPlane
	ready := "ready"
	if !cp.Ready {
		ready = "waiting for its catalogue"
	}
	fmt.Fprintf(t, "control plane %s: %s, trust domain %s, datacenter %s, mesh version %d, %d services, %d workloads, %d config entries, default %s\n",
		cp.Name, ready, cp.TrustDomain, cp.Datacenter, cp.MeshVersion, cp.Services, cp.Workloads, cp.Entries, cp.DefaultIntention)
	if s.Source.Stale {
		fmt.Fprintf(t, "catalogue: STALE: %s\n", s.Source.Reason)
	}
	for _, name := range s.Source.StaleService {
		fmt.Fprintf(t, "catalogue: %s is kept although the catalogue says that it is gone, which is not yet confirmed\n", name)
	}
	for _, p := range s.Source.Problems {
		fmt.Fprintf(t, "catalogue: %s: %s. %s\n", p.Place, p.Reason, p.Remedy)
	}
	fmt.Fprintln(t)
	t.row("SIDECAR", "SERVICE", "STATE", "TYPE", "WANTED", "ACKED", "BEHIND", "RESOURCES", "NACKS")
	for _, c := range s.Sidecars {
		if len(c.Types) == 0 {
			t.row(c.Node, c.Service, sidecarState(c), "-", "-", "-", "-", "-", "-")
		}
		for _, ty := range c.Types {
			t.row(c.Node, c.Service, sidecarState(c), ty.Type, short(ty.Wanted), short(ty.Acked), behind(ty), ty.Resources, ty.NACKs)
		}
	}
	for _, c := range s.Sidecars {
		for _, ty := range c.Types {
			if ty.LastNACK != nil {
				fmt.Fprintf(t, "\n%s refused %s at %s: %s\n", c.Node, ty.Type, ty.LastNACK.At.Format(time.RFC3339), ty.LastNACK.Text)
			}
			for _, r := range ty.Refused {
				fmt.Fprintf(t, "  %s %s", r.Name, r.Reason)
				if r.Entry != "" {
					fmt.Fprintf(t, " (from %s)", r.Entry)
				}
				fmt.Fprintln(t)
			}
		}
	}
}

func sidecarState(c api.Sidecar) string {
	switch {
	case !c.Connected:
		return "not connected"
	case !c.Registered:
		return "not registered"
	case c.InSync:
		return "in sync"
	}
	return "behind"
}

func behind(t api.TypeStatus) string {
	if t.InSync {
		return "-"
	}
	return (time.Duration(t.AgeMS) * time.Millisecond).String()
}

// short is a version as it is shown in a column.
func short(version string) string { return orDash(version[:min(len(version), 12)]) }
