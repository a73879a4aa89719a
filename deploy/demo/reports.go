package demo

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/parrel-mesh/parrel/controlplane/api"
)

// report asks the control plane's API.
func (w *world) report(ctx context.Context, path string, v any) error {
	text, err := w.get(ctx, w.center(), w.l.apiURL()+path)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(text), v)
}

// synced wants every sidecar of the layout connected and in sync.
func synced(ctx context.Context, w *world) error {
	return w.eventually(ctx, func() error {
		var s api.Status
		if err := w.report(ctx, "/v1/status", &s); err != nil {
			return err
		}
		state := map[string]api.Sidecar{}
		for _, c := range s.Sidecars {
			state[c.Node] = c
		}
		for _, h := range w.l.hosts {
			for _, i := range h.instances {
				c := state[i.id+"-sidecar-proxy"]
				if !c.Connected || !c.InSync || len(c.Types) == 0 {
					return fmt.Errorf("the sidecar of %s: %+v", i.id, c)
				}
				for _, t := range c.Types {
					if t.NACKs > 0 {
						return fmt.Errorf("the sidecar of %s refused %s: %+v", i.id, t.Type, t.LastNACK)
					}
				}
			}
		}
		return nil
	})
}

func explained(ctx context.Context, w *world) error {
	never := "no_upstream" // without a port for it there is no way to ask
	if w.l.center != nil {
		never = "denied"
	}
	for _, c := range []struct{ from, to, want string }{
		{"web", "api", "allowed"}, {"api", "ledger", "allowed"}, {"web", "users", never},
	} {
		var e api.Explanation
		if err := w.report(ctx, fmt.Sprintf("/v1/explain?from=%s&to=%s&method=GET&path=/", c.from, c.to), &e); err != nil {
			return err
		}
		if e.Verdict != c.want || e.Reason == "" {
			return fmt.Errorf("%s → %s: %s (%s), want %s", c.from, c.to, e.Verdict, e.Reason, c.want)
		}
	}
	return nil
}

func analyzed(ctx context.Context, w *world) error {
	var a api.Analysis
	if err := w.report(ctx, "/v1/analyze", &a); err != nil {
		return err
	}
	for _, f := range a.Findings {
		if f.Severity != "info" {
			return fmt.Errorf("%s %s %s: %s", f.Severity, f.Entry, f.Field, f.Problem)
		}
	}
	return nil
}
