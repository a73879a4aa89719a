// Command footprint measures one idle sidecar in a mesh of 100 services: its
// memory when it has settled, and the time from its start, with its identity on
// disk, until it is ready. Its last line is "footprint: idle N MB ready N ms".
//
// The sidecar has every one of the 100 services as an upstream, which is the
// most that a mesh of that size can ask of it; MB are 10^6 bytes of resident
// set. Readiness is the median of several starts.
package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/parrel-mesh/parrel/test/bench/internal/run"
)

const (
	services = 100
	starts   = 5
	settle   = 20 * time.Second
)

func main() { run.Main("footprint", measure) }

func measure(b *run.Bench) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var err error
	next := 24000
	port := func() (p int) {
		if err == nil {
			p, err = run.FreePort(&next)
		}
		return p
	}
	xds, api, admin := port(), port(), port()
	var upstreams, catalog strings.Builder
	for i := range services {
		fmt.Fprintf(&upstreams, "{ destination_name = \"s%03d\"\n local_bind_port = %d },\n", i, port())
		fmt.Fprintf(&catalog, "services { name = \"s%03d\"\n id = \"s%03d-1\"\n port = %d\n connect { sidecar_service { port = %d } } }\n", i, i, 9000+i, 10000+i)
	}
	fmt.Fprintf(&catalog, "services { name = \"client\"\n id = \"client-1\"\n port = 9999\n connect { sidecar_service { port = %d\n proxy { upstreams = [ %s ] } } } }\n", port(), upstreams.String())
	if err != nil {
		return err
	}
	if err := b.Write("catalog/mesh.hcl", catalog.String()); err != nil {
		return err
	}
	for i := range services {
		if err := b.Write(fmt.Sprintf("catalog/d%03d.hcl", i), fmt.Sprintf("Kind = \"service-defaults\"\nName = \"s%03d\"\nProtocol = \"http\"\n", i)); err != nil {
			return err
		}
	}
	token, err := b.Output(b.Parrel, "token", "create", "--ca-dir", b.Dir+"/ca", "--trust-domain", "bench.parrel", "--service", "client")
	if err != nil {
		return err
	}
	if err := b.Write("token", token); err != nil {
		return err
	}
	if _, err := b.Start("controlplane", b.Parrel, "controlplane", "--catalog-dir", b.Dir+"/catalog", "--no-checks", "--ca-dir", b.Dir+"/ca", "--trust-domain", "bench.parrel",
		"--grpc-bind", addr(xds), "--http-bind", addr(api)); err != nil {
		return err
	}
	if _, err := run.Until(ctx, "http://"+addr(api)+"/healthz"); err != nil {
		return err
	}
	sidecar := func(n int) (int, time.Duration, func(), error) {
		cmd, err := b.Start(fmt.Sprintf("sidecar-%d", n), b.Parrel, "sidecar", "--sidecar-for", "client-1=client", "--grpc-addr", addr(xds),
			"--data-dir", b.Dir+"/data", "--token-file", b.Dir+"/token", "--admin-bind", addr(admin))
		if err != nil {
			return 0, 0, nil, err
		}
		took, err := run.Until(ctx, "http://"+addr(admin)+"/ready")
		return cmd.Process.Pid, took, func() { b.Stop(cmd) }, err
	}
	var ready []time.Duration
	for n := range starts {
		pid, took, stop, err := sidecar(n)
		if err != nil {
			return err
		}
		if n > 0 { // the first one joins
			ready = append(ready, took)
		}
		if n < starts-1 {
			stop()
			continue
		}
		time.Sleep(settle)
		pss, rss, err := run.MemoryMB(pid)
		if err != nil {
			return err
		}
		slices.Sort(ready)
		fmt.Printf("%d services, all of them upstreams; %d starts: %v; PSS %.1f MB, RSS %.1f MB\n", services, len(ready), ready, pss, rss)
		fmt.Printf("footprint: idle %.0f MB ready %d ms\n", rss, ready[len(ready)/2].Milliseconds())
	}
	return nil
}

func addr(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
