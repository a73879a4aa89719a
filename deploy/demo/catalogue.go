package demo

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// catalogue is where the demo's definitions and entries go.
type catalogue interface {
	flags() []string                                  // of the control plane
	publish(ctx context.Context) error                // everything that is in the folder
	put(ctx context.Context, file, text string) error // one definition or entry, new or changed
	remove(ctx context.Context, id string) error      // one service instance
	addHost(ctx context.Context, h *host) error       // a host that is a namespace
}

func (w *world) newCatalogue(ctx context.Context) (catalogue, error) {
	if !w.cfg.Consul {
		return fileCatalogue{w.l}, nil
	}
	c := &consulCatalogue{w: w, l: w.l, binary: w.cfg.ConsulBinary}
	p := w.l
	_, err := w.launch(nil, 0, "consul", w.cfg.ConsulBinary, "agent", "-dev", "-node", "demo", "-datacenter", p.datacenter, "-log-level", "warn",
		"-hcl", `default_intention_policy = "deny"`, // what no intention names is denied, as in the file catalogue
		"-bind", p.ip, "-client", "127.0.0.1",
		"-http-port", fmt.Sprint(p.consulHTTP), "-grpc-port", fmt.Sprint(p.consulGRPC), "-grpc-tls-port", "-1", "-dns-port", fmt.Sprint(p.consulDNS),
		"-serf-lan-port", fmt.Sprint(p.consulSerf), "-serf-wan-port", fmt.Sprint(p.consulWAN), "-server-port", fmt.Sprint(p.consulRPC))
	if err != nil {
		return nil, err
	}
	if err := c.wait(ctx, w.center()); err != nil {
		return nil, err
	}
	for _, h := range w.l.hosts {
		if h.space == nil {
			break
		}
		if err := c.addHost(ctx, h); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// addHost starts the host's agent, as every host of Consul's users has one. What
// runs there is registered with it.
func (c *consulCatalogue) addHost(ctx context.Context, h *host) error {
	_, err := c.w.launch(h, 0, "consul-"+h.name, c.binary, "agent", "-node", h.name, "-datacenter", c.l.datacenter, "-log-level", "warn",
		"-data-dir", filepath.Join(c.l.dataDir(h.name), "consul"), "-bind", h.ip, "-client", "127.0.0.1", "-retry-join", c.l.ip)
	if err != nil {
		return err
	}
	return c.wait(ctx, h.reach(0))
}

// fileCatalogue is the folder itself: the control plane watches it.
type fileCatalogue struct{ l *layout }

func (c fileCatalogue) flags() []string { return []string{"--catalog-dir", c.l.catalog()} }

func (c fileCatalogue) addHost(context.Context, *host) error { return nil }

func (c fileCatalogue) publish(context.Context) error { return nil } // it is there already

func (c fileCatalogue) put(_ context.Context, file, text string) error {
	return writeFile(filepath.Join(c.l.catalog(), file), text)
}

func (c fileCatalogue) remove(_ context.Context, id string) error {
	if err := os.Remove(filepath.Join(c.l.catalog(), id+".hcl")); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return nil
}

// consulCatalogue talks to a real agent through Consul's own commands, as its
// documents tell users to.
type consulCatalogue struct {
	w      *world
	l      *layout
	binary string
}

func (c *consulCatalogue) addr() string { return fmt.Sprintf("127.0.0.1:%d", c.l.consulHTTP) }

func (c *consulCatalogue) flags() []string { return []string{"--http-addr", c.addr()} }

// wait returns when the agent there has a leader.
func (c *consulCatalogue) wait(ctx context.Context, there from) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.addr()+"/v1/catalog/nodes", nil)
		if err != nil {
			return err
		}
		resp, err := client(there).Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("demo: the Consul agent at %s has no leader after %s: %v", c.addr(), startTimeout, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (c *consulCatalogue) publish(ctx context.Context) error {
	files, err := filepath.Glob(filepath.Join(c.l.catalog(), "*.hcl"))
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	// What the mesh allows comes before what a service asks for, and that before
	// the service.
	slices.SortStableFunc(files, func(a, b string) int { return cmp.Compare(turn(a), turn(b)) })
	for _, f := range files {
		if err := c.register(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

func turn(file string) int {
	switch {
	case filepath.Base(file) == meshEntry:
		return 0
	case isEntry(file):
		return 1
	}
	return 2
}

const meshEntry = "mesh.hcl"

func isEntry(file string) bool {
	base := filepath.Base(file)
	return strings.HasPrefix(base, "intentions-") || strings.HasPrefix(base, "service-defaults-") || base == meshEntry
}

func (c *consulCatalogue) put(ctx context.Context, file, text string) error {
	path := filepath.Join(c.l.catalog(), file)
	if err := writeFile(path, text); err != nil {
		return err
	}
	return c.register(ctx, path)
}

func (c *consulCatalogue) register(ctx context.Context, file string) error {
	if isEntry(file) {
		return c.run(ctx, nil, "config", "write", file)
	}
	return c.run(ctx, c.l.hostOf(strings.TrimSuffix(filepath.Base(file), ".hcl")), "services", "register", file)
}

func (c *consulCatalogue) remove(ctx context.Context, id string) error {
	return c.run(ctx, c.l.hostOf(id), "services", "deregister", "-id", id)
}

// run runs a command of Consul's on a host, nil for where the server is.
func (c *consulCatalogue) run(ctx context.Context, h *host, args ...string) error {
	binary, all := c.w.command(h, 0, c.binary, args...)
	cmd := exec.CommandContext(ctx, binary, all...)
	cmd.Env = append(childEnv(), "CONSUL_HTTP_ADDR="+c.addr())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("demo: consul %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
