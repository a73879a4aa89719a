package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// apiFlag is --api of every command that asks the control plane.
type apiFlag struct{ address string }

func (a *apiFlag) bind(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.address, "api", "http://127.0.0.1:15080", "the control plane's API")
}

// get asks for a path and decodes the answer into v.
func (a *apiFlag) get(ctx context.Context, path string, query url.Values, v any) error {
	base := strings.TrimRight(a.address, "/")
	if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	if u, err := url.Parse(base); err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("--api %s is no address of an API: write http://HOST:PORT", a.address)
	}
	target := base + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return fmt.Errorf("--api %s: %w", a.address, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("the control plane's API does not answer: %w; is `parrel controlplane` running, and is --api its --http-bind?", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 256<<20))
	if err != nil {
		return fmt.Errorf("%s: %w", target, err)
	}
	if resp.StatusCode != http.StatusOK {
		var e struct{ Error string }
		if json.Unmarshal(body, &e) == nil && e.Error != "" {
			return fmt.Errorf("%s", e.Error)
		}
		return fmt.Errorf("%s answered %s: %.200s", target, resp.Status, body)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%s did not answer as a control plane does: %w", target, err)
	}
	return nil
}
