package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"
)

// guide tells what is where and what to try; each thing is a command to copy.
func (w *world) guide() {
	out := w.cfg.Out
	l := w.l
	web, api := l.find("web-1"), l.find("api-1")
	fmt.Fprintf(out, "\nThe shop: web → api → {orders, users (v1, v2), pricing (gRPC), ledger (TCP)}.\nEvery → passes two sidecars with mTLS.\n\n")
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "WHAT\tPID\tWHERE\n")
	fmt.Fprintf(t, "control plane\t%d\txDS %s, API %s\n", w.controlPlane.pid(), l.xdsAddr(), l.apiURL())
	for _, h := range l.hosts {
		fmt.Fprintf(t, "sidecar of host %s\t%d\tadmin %s\n", h.name, w.sidecars[h.name].pid(), h.adminURL())
		for _, i := range h.instances {
			fmt.Fprintf(t, "  %s\t%d\thttp://%s, mTLS at %s\n", i.id, w.apps[i.id].pid(), i.addr(), i.proxyAddr())
		}
	}
	t.Flush()
	if w.cfg.Consul {
		fmt.Fprintf(out, "Consul: http://127.0.0.1:%d/ui\n", l.consulHTTP)
	}
	fmt.Fprintf(out, "\nFiles: %s (definitions in catalog/, logs in log/)\n", l.dir)

	self := w.cfg.Binary
	users2 := w.apps["users-2"].pid()
	n := 0
	try := func(what, command string) {
		n++
		fmt.Fprintf(out, "\n%2d. %s\n      %s\n", n, what, command)
	}
	// There is what a command begins with that is run on a host, as a user of it.
	there := func(h *host, uid int) string {
		switch {
		case h == nil && l.center == nil || h != nil && h.space == nil:
			return ""
		case h == nil:
			return "nsenter --net=" + l.center.path() + " "
		case uid == 0:
			return "nsenter --net=" + h.space.path() + " "
		}
		return fmt.Sprintf("nsenter --net=%s setpriv --reuid=%d --clear-groups ", h.space.path(), uid)
	}
	center, asAPI := there(nil, 0), there(l.hostOf("api-1"), api.uid)
	outside := ""
	if l.visitor != nil {
		outside = "nsenter --net=" + l.visitor.path() + " "
	}
	shopURL := "http://" + web.addr() + "/"
	fmt.Fprintf(out, "\nTo try, in another terminal:\n")
	try("Ask the shop. Each answer names the caller that its sidecar proved.", outside+"curl -s "+shopURL)
	try("Who answers for users? Both versions do.", fmt.Sprintf("for i in 1 2 3 4 5 6; do %scurl -s http://%s/ | grep instance; done", asAPI, api.upstream("users")))
	try("Kill an instance of users; step 2 then shows one version, and no error.", fmt.Sprintf("kill %d", users2))
	try("Add an instance of users, with its sidecar; step 2 shows it.", fmt.Sprintf("%s demo add --dir %s users", self, l.dir))
	if w.cfg.Consul {
		try("Forbid web to call api: step 1 fails at once, with the reason.", fmt.Sprintf("sed 's/allow/deny/' %s/%s > %s/deny.hcl && CONSUL_HTTP_ADDR=127.0.0.1:%d %s%s config write %s/deny.hcl",
			l.catalog(), intentionFile("api"), l.dir, l.consulHTTP, center, w.cfg.ConsulBinary, l.dir))
	} else {
		try("Edit a definition: forbid web to call api; step 1 fails at once, with the reason.", fmt.Sprintf("sed -i 's/allow/deny/' %s/%s", l.catalog(), intentionFile("api")))
	}
	try("Ask why.", fmt.Sprintf("%s%s explain --api %s --from web --to api GET /", center, self, l.apiURL()))
	try("See which configuration each sidecar has acknowledged.", fmt.Sprintf("%s%s status --api %s", center, self, l.apiURL()))
	try("Read a sidecar's clusters.", fmt.Sprintf("%s%s config clusters --api %s api-1-sidecar-proxy", center, self, l.apiURL()))
	try("What of the catalogue does parrel not honour?", fmt.Sprintf("%s%s analyze --api %s", center, self, l.apiURL()))
	try("Metrics of a sidecar, in Istio's names.", fmt.Sprintf("%scurl -s %s/stats/prometheus | grep istio_requests_total", there(l.hosts[0], 0), l.hosts[0].adminURL()))
	try("Speak plaintext to a sidecar: it refuses, and its log says so.", fmt.Sprintf("%scurl -s http://%s/; tail -n 3 %s", outside, l.find("users-1").proxyAddr(), l.logFile("sidecar-east")))
	if l.center != nil {
		west := l.hostOf("api-1")
		try("See what is captured on a host.", there(west, 0)+self+" redirect show")
		try("Call as a user who is none of the services: there is no way in.", fmt.Sprintf("%scurl -sS http://%s/", there(west, stranger), api.upstream("users")))
	}
	fmt.Fprintf(out, "\nCtrl-C ends everything and leaves nothing behind.\n")
}

// serve answers `parrel demo add` on a Unix socket and tells of processes that
// end, until ctx ends.
func (w *world) serve(ctx context.Context) error {
	sock, err := net.Listen("unix", socketPath(w.l.dir))
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /add", func(rw http.ResponseWriter, r *http.Request) {
		text, err := w.add(r.Context(), r.URL.Query().Get("service"))
		if err != nil {
			http.Error(rw, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintln(rw, text)
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(sock) }()
	defer func() { srv.Close(); <-served }()

	known := map[*process]bool{}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			fmt.Fprintln(w.cfg.Out, "\ndemo: ending")
			return nil
		case <-tick.C:
		}
		running := map[*process]bool{}
		for _, p := range w.procs.running() {
			running[p] = true
		}
		for p := range known {
			if !running[p] {
				fmt.Fprintf(w.cfg.Out, "demo: %s ended (%v)\n", p.name, p.cmd.ProcessState)
			}
		}
		known = running
	}
}

func socketPath(dir string) string { return filepath.Join(dir, "demo.sock") }

// add starts one more instance of a service on a host of its own.
func (w *world) add(ctx context.Context, service string) (string, error) {
	if _, ok := protocols[service]; !ok {
		return "", fmt.Errorf("no service %q in the shop", service)
	}
	n := 1
	for w.l.find(fmt.Sprintf("%s-%d", service, n)) != nil {
		n++
	}
	h, err := w.addHost(ctx, fmt.Sprintf("%s-%d", service, n), service, fmt.Sprintf("v%d", n))
	if err != nil {
		return "", err
	}
	in := h.instances[0]
	if err := w.mintToken(ctx, h); err != nil {
		return "", err
	}
	if err := w.startApp(in); err != nil {
		return "", err
	}
	if err := w.startSidecar(h); err != nil {
		return "", err
	}
	if err := w.cat.put(ctx, in.id+".hcl", definition(in)); err != nil {
		return "", err
	}
	if h.space != nil {
		if err := w.redirect(ctx, h); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("started %s (pid %d) with a sidecar of its own (pid %d, admin %s)", in.id, w.apps[in.id].pid(), w.sidecars[h.name].pid(), h.adminURL()), nil
}

// addHost adds a host with one instance.
func (w *world) addHost(ctx context.Context, id, role, version string) (*host, error) {
	if w.l.center != nil {
		h, err := w.newHost(id)
		if err != nil {
			return nil, err
		}
		h.instances = []*instance{w.l.placed(h, id, role, version)}
		return h, w.cat.addHost(ctx, h)
	}
	in, err := w.l.newInstance(id, role, version)
	if err != nil {
		return nil, err
	}
	h := &host{name: id, ip: w.l.ip, instances: []*instance{in}}
	if err := w.l.ports.take(&h.admin); err != nil {
		return nil, err
	}
	w.l.hosts = append(w.l.hosts, h)
	return h, nil
}

// Add asks the demo that runs in dir for one more instance of service.
func Add(ctx context.Context, dir, service string) (string, error) {
	if _, err := os.Stat(socketPath(dir)); err != nil {
		return "", fmt.Errorf("demo: no demo runs in %s: start one with `parrel demo`, and give the folder that it prints", dir)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socketPath(dir))
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://demo/add?service="+url.QueryEscape(service), nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("demo: the demo in %s does not answer: %w", dir, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", errors.New("demo: " + string(b))
	}
	return string(b), nil
}
