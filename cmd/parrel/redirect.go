package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parrel-mesh/parrel/sidecar/intercept"
)

func redirectCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "redirect",
		Short: "Make, show and remove the redirection of traffic to the sidecar",
		Long: `Makes the kernel hand a workload's connections to its sidecar, so that the
application is not changed and knows nothing. The rules are nftables' table
"inet parrel" in the network namespace, made without any other program; rules
of others are left alone. docs/transparent.md says what is captured.`,
	}, redirectApplyCommand(), redirectShowCommand(), redirectCleanCommand())
}

// redirectTarget is what the three commands share.
type redirectTarget struct{ netns, mode string }

func (r *redirectTarget) bind(cmd *cobra.Command) {
	cmd.Flags().StringVar(&r.netns, "netns", "", "network namespace: a name of `ip netns list`, or a path such as /proc/1234/ns/net (default: this process's)")
	cmd.Flags().StringVar(&r.mode, "mode", "nft", "mechanism: nft")
}

func (r *redirectTarget) manager(trace func(string)) (intercept.Manager, error) {
	mode, err := intercept.ParseMode(r.mode)
	if err != nil {
		return nil, err
	}
	return intercept.New(intercept.Options{Mode: mode, NetNS: r.netns, Trace: trace})
}

func redirectApplyCommand() *cobra.Command {
	var f redirectFlags
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "Redirect traffic to the sidecar",
		Long: `Puts redirection rules in force, in place of those applied before. Run it as
root (CAP_NET_ADMIN). What is captured comes from the sidecar itself
(--from-sidecar), or from flags.

    parrel redirect apply --from-sidecar 127.0.0.1:15000 --proxy-uid 5005
    parrel redirect apply --proxy-uid 5005 --consul-dns-port 15053

By default everything in the network namespace but the sidecar's user is the
workload. On a host that carries several, each is told by its user or its
cgroup and has a capture port of its own:

    parrel redirect apply --workload web,user=web,port=15001 --workload api,cgroup=system.slice/api.service,port=15002

The command waits until the sidecar is ready; until then the rules
lapse by themselves, and if the sidecar is not ready in time they are taken
back. With --fail-open it stays and holds the rules as long as the sidecar
answers: a sidecar that is gone is passed by after --hold-for. With --hold it
stays and makes the rules again when somebody removes them, such as a firewall
that is reloaded. Port 22 inbound and the sidecar's own traffic are never captured.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	f.bind(cmd)
	return cmd
}

func (f *redirectFlags) run(cmd *cobra.Command) error {
	ctx := cmd.Context()
	c, err := f.config(ctx, cmd)
	if err != nil {
		return err
	}
	if f.print {
		text, err := intercept.Print(c)
		if err != nil {
			return err
		}
		_, err = io.WriteString(cmd.OutOrStdout(), text)
		return err
	}
	if f.readyTimeout < 0 {
		return fmt.Errorf("redirect apply: --ready-timeout %s is below zero: give 0s to wait for nothing", f.readyTimeout)
	}
	var trace func(string)
	if f.verbose {
		trace = func(s string) { fmt.Fprintln(cmd.ErrOrStderr(), s) }
	}
	m, err := f.target.manager(trace)
	if err != nil {
		return err
	}
	if before, err := m.Show(ctx); err == nil {
		for _, w := range before.Workloads {
			if !slices.ContainsFunc(c.Outbound, func(n intercept.Workload) bool { return n.Name == w.Name }) {
				fmt.Fprintf(cmd.ErrOrStderr(), "parrel: no longer captured, since this replaces what was applied before: %s (%s)\n", w.Name, toldBy(w))
			}
		}
	}
	if err := intercept.Guard(ctx, m, c, f.readyTimeout, f.ready); err != nil {
		return err
	}
	fmt.Fprintln(cmd.OutOrStdout(), "redirection is in force; `parrel redirect show` shows it, `parrel redirect clean` takes it away")
	if !f.hold && !f.failOpen {
		return nil
	}
	h := intercept.Holding{Notify: func(err error) { fmt.Fprintln(cmd.ErrOrStderr(), "parrel:", err) }}
	if f.failOpen {
		h.Alive = f.ready
	}
	return m.Hold(ctx, h)
}

// ready asks the sidecar: by --ready-url; else what it says of its redirection, since
// /ready may wait for an application that waits for this command.
func (f *redirectFlags) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if f.fromSidecar != "" && f.readyURL == "" {
		_, err := f.planOnce(ctx)
		return err
	}
	url := f.readyURL
	if url == "" {
		url = "http://127.0.0.1:15000/ready"
	}
	body, err := f.ask(ctx, url)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, body)
	return errors.Join(err, body.Close())
}

// ask gets a page of the sidecar; an error when it says anything but 200.
func (f *redirectFlags) ask(ctx context.Context, url string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("%s is no address of a sidecar: write http://127.0.0.1:15000/ready: %w", url, err)
	}
	// Each question is a connection of its own, so that a sidecar that hangs is not
	// found alive by an old one, and no proxy of the environment is asked.
	tr := &http.Transport{DisableKeepAlives: true}
	if path, ok := strings.CutPrefix(f.fromSidecar, "unix:"); ok && strings.HasPrefix(url, f.admin()) {
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}
	}
	client := http.Client{Transport: tr}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 400))
		resp.Body.Close()
		return nil, fmt.Errorf("%s answered %s: %s", url, resp.Status, strings.TrimSpace(string(text)))
	}
	return resp.Body, nil
}

// plan reads the sidecar's own answer, waiting until it is ready.
func (f *redirectFlags) plan(ctx context.Context) (intercept.Plan, error) {
	ctx, cancel := context.WithTimeout(ctx, max(f.readyTimeout, 2*time.Second))
	defer cancel()
	t := time.NewTicker(250 * time.Millisecond)
	defer t.Stop()
	for {
		p, err := f.planOnce(ctx)
		if err == nil {
			return p, nil
		}
		select {
		case <-ctx.Done():
			return p, fmt.Errorf("--from-sidecar %s: %w; is the sidecar running, is that its --admin-bind, and what does its /ready say?", f.fromSidecar, err)
		case <-t.C:
		}
	}
}

// planOnce is the sidecar's answer, an error while it is not ready for what it says.
func (f *redirectFlags) planOnce(ctx context.Context) (p intercept.Plan, err error) {
	url := f.admin() + "/redirect"
	body, err := f.ask(ctx, url)
	if err != nil {
		return p, fmt.Errorf("the sidecar's admin port does not say what to redirect: %w", err)
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, 16<<20)).Decode(&p); err != nil {
		return p, fmt.Errorf("%s did not answer as a sidecar does: %w", url, err)
	}
	var waiting []string
	for _, x := range p.Proxies {
		if !x.Ready && x.Error == "" && (f.proxyID == "" || f.proxyID == x.ProxyID) {
			waiting = append(waiting, x.ProxyID)
		}
	}
	switch {
	case len(p.Proxies) == 0:
		return p, errors.New("the sidecar has no configuration yet")
	case len(waiting) > 0:
		return p, fmt.Errorf("the sidecar is not ready for: %s", strings.Join(waiting, ", "))
	}
	return p, nil
}

func (f *redirectFlags) admin() string {
	if strings.HasPrefix(f.fromSidecar, "unix:") {
		return "http://sidecar" // by its path
	}
	a := strings.TrimRight(f.fromSidecar, "/")
	if !strings.Contains(a, "://") {
		a = "http://" + a
	}
	return a
}

func redirectShowCommand() *cobra.Command {
	var (
		target redirectTarget
		out    outputFlag
	)
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the redirection in force, as the kernel has it",
		Long: `Shows whether traffic is captured, whose and where to, what was captured since
the rules were made, what is excluded, and the routes.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := target.manager(nil)
			if err != nil {
				return err
			}
			st, err := m.Show(cmd.Context())
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), st, func(t *table) { showRedirect(t, st) })
		},
	}
	target.bind(cmd)
	out.bind(cmd)
	return cmd
}

func showRedirect(t *table, st intercept.State) {
	fails := "fails closed"
	if st.FailOpen {
		fails = "fails open"
	}
	switch st.Capture {
	case intercept.CaptureNone:
		fmt.Fprintln(t, "redirection: none")
	case intercept.CaptureStands:
		fmt.Fprintf(t, "redirection: in force (%s, %s)\n", st.Mode, fails)
	case intercept.CaptureHeld:
		fmt.Fprintf(t, "redirection: in force for %s unless held (%s, %s)\n", st.Lapses.Round(100*time.Millisecond), st.Mode, fails)
	case intercept.CaptureLapsed:
		fmt.Fprintf(t, "redirection: lapsed, nobody holds it: traffic flows past (%s, %s)\n", st.Mode, fails)
	}
	if len(st.Workloads) > 0 {
		t.row("\nWORKLOAD", "TOLD BY", "PORT", "CONNECTIONS", "QUERIES")
	}
	for _, w := range st.Workloads {
		t.row(w.Name, toldBy(w), w.OutboundPort, w.Connections, w.Queries)
	}
	if st.Installed {
		fmt.Fprintln(t)
	}
	if st.InboundPort != 0 {
		ports := "all ports"
		if len(st.InboundPorts) > 0 {
			ports = "ports " + strings.Join(st.InboundPorts, ", ")
		}
		fmt.Fprintf(t, "inbound: %s to %d by %s, %d connections\n", ports, st.InboundPort, st.InboundMode, st.InboundConnections)
	}
	if st.DNSPort != 0 {
		fmt.Fprintf(t, "DNS: to %d\n", st.DNSPort)
	}
	for _, x := range []struct {
		what   string
		values []string
	}{
		{"inbound ports", st.ExcludeInboundPorts}, {"inbound from", st.ExcludeInboundCIDRs},
		{"outbound ports", st.ExcludeOutboundPorts}, {"outbound to", st.ExcludeOutboundCIDRs},
		{"uids", numbers(st.ExcludeUIDs)}, {"gids", numbers(st.ExcludeGIDs)}, {"uids' DNS", numbers(st.ExcludeDNSUIDs)},
		{"cgroups", st.ExcludeCgroups}, {"interfaces", st.ExcludeInterfaces},
	} {
		if len(x.values) > 0 {
			fmt.Fprintf(t, "not captured: %s %s\n", x.what, strings.Join(x.values, ", "))
		}
	}
	for _, r := range st.Routes {
		fmt.Fprintln(t, "route:", r)
	}
}

func toldBy(w intercept.WorkloadState) string {
	switch {
	case w.UID != nil:
		return fmt.Sprintf("uid %d", *w.UID)
	case w.Cgroup != "":
		return "cgroup " + w.Cgroup
	}
	return "everybody else"
}

func numbers(in []uint32) (out []string) {
	for _, n := range in {
		out = append(out, fmt.Sprint(n))
	}
	return out
}

func redirectCleanCommand() *cobra.Command {
	var target redirectTarget
	cmd := &cobra.Command{
		Use:   "clean",
		Short: "Take the redirection away",
		Long: `Removes what apply made and nothing else; what holds the rules stops. New
connections then flow as without the mesh; those that go through the sidecar
stay until it ends. Nothing to remove is no error.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := target.manager(nil)
			if err != nil {
				return err
			}
			return m.Clean(cmd.Context())
		},
	}
	target.bind(cmd)
	return cmd
}
