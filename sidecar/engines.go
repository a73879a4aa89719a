package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/mtls/remote"
	"github.com/parrel-mesh/parrel/sidecar/cluster"
	"github.com/parrel-mesh/parrel/sidecar/compile"
	"github.com/parrel-mesh/parrel/sidecar/filter"
	"github.com/parrel-mesh/parrel/sidecar/l4"
	"github.com/parrel-mesh/parrel/sidecar/l7"
	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/xds/client"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// newIdentity makes the workload's identity source.
func (w *workload) newIdentity(at place) (Identity, error) {
	if w.Sidecar.cfg.Static {
		return noIdentity{mtls.NewCell(nil)}, nil
	}
	if w.deps.Identity != nil {
		return w.deps.Identity(w.cfg)
	}
	return remote.New(remote.Config{
		Address: w.Sidecar.cfg.ControlPlane, DataDir: w.Sidecar.cfg.DataDir, Service: at.Service, ID: w.cfg.name(),
		Token: w.cfg.Token, TokenFile: w.cfg.TokenFile, Dial: w.dialTCP, Log: w.log, Now: w.deps.Now,
		Rand: func() float64 { return float64(w.deps.Rand()>>11) / (1 << 53) },
	})
}

// newSource makes the workload's source of configuration, which delivers to the
// warmer.
func (w *workload) newSource(at place, p *parts) (Source, error) {
	h := applier{p.warmer}
	if w.deps.Source != nil {
		return w.deps.Source(w.cfg, h)
	}
	meta := map[string]string{"service": at.Service, "service_id": w.cfg.ServiceID}
	for k, v := range w.cfg.Metadata {
		meta[k] = v
	}
	return client.New(client.Config{
		Node:    client.Node{ID: at.Proxy, Cluster: at.Service, Metadata: meta},
		Dial:    func(ctx context.Context) (*grpc.ClientConn, error) { return w.dialControlPlane(ctx, p.identity) },
		SotW:    w.Sidecar.cfg.SotW,
		Store:   client.NewFileStore(filepath.Join(filepath.Dir(w.registration.file), "last-good"), client.FileOptions{NodeID: at.Proxy, Now: w.deps.Now}),
		Check:   func(r resource.Resource) error { return compile.Check(r, w.compileDeps()) },
		Handler: h,
		Log:     w.log,
		Rand:    w.deps.Rand,
	})
}

func (w *workload) dialTCP(ctx context.Context, address string) (net.Conn, error) {
	return w.deps.Net.Dial(ctx, "tcp", address)
}

// dialControlPlane opens a connection with the workload's identity, which it
// waits for. The server must be the control plane of a trust domain that the
// identity trusts: its id is never issued to a workload.
func (w *workload) dialControlPlane(ctx context.Context, id mtls.Source) (*grpc.ClientConn, error) {
	for {
		changed := id.Changed()
		if _, err := mtls.Usable(id.Current(), w.deps.Now()); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("sidecar: no identity to speak to the control plane with: %w", errors.Join(id.Current().Err, ctx.Err()))
		case <-changed:
		}
	}
	conf := mtls.ClientConfig(mtls.ClientParams{Params: mtls.Params{Identity: id, Now: w.deps.Now, ALPN: []string{"h2"},
		Authorise: func(peer spiffeid.ID) error { return mtls.Expect(mtls.ControlPlaneID(peer.TrustDomain()))(peer) }}})
	cc, err := grpc.NewClient("passthrough:///control-plane", append(client.DialOptions(),
		grpc.WithTransportCredentials(credentials.NewTLS(conf)), grpc.WithContextDialer(w.dialAny))...)
	if err != nil {
		return nil, fmt.Errorf("sidecar: control plane: %w", err)
	}
	return cc, nil
}

// dialAny connects to the first of the control plane's addresses that answers.
func (w *workload) dialAny(ctx context.Context, _ string) (net.Conn, error) {
	var errs []error
	for address := range strings.SplitSeq(w.Sidecar.cfg.ControlPlane, ",") {
		c, err := w.dialTCP(ctx, strings.TrimSpace(address))
		if err == nil {
			return c, nil
		}
		errs = append(errs, fmt.Errorf("sidecar: control plane at %s: %w", strings.TrimSpace(address), err))
	}
	return nil, errors.Join(errs...)
}

func (w *workload) clusterDeps(id mtls.Source) cluster.Deps {
	return cluster.Deps{Net: w.traffic, Identity: id, Log: w.log, Rand: w.deps.Rand, Now: w.deps.Now, Wheel: w.wheel}
}

func (w *workload) compileDeps() compile.Deps {
	return compile.Deps{HTTP: w.httpEngine, TCP: w.tcpEngine, Current: w.current.Load, Static: w.Sidecar.cfg.Static, Now: w.deps.Now,
		Filters: func(m *resource.HTTPManager) (*filter.Chain, error) { return l7.Filters(m, filter.Deps{Log: w.log}) }}
}

// ends names the two ends of a listener's traffic for records: this workload is
// the source of what goes out and the destination of what comes in.
func (w *workload) ends(l *resource.Listener) (source, destination l7.Service) {
	own := l7.Service{Name: w.cfg.Service}
	if p := w.parts.Load(); p != nil {
		own.Name = p.place.Service
		if svid := p.identity.Current().SVID; svid != nil {
			own.Principal = svid.ID.String()
			if s, err := mtls.ParseServiceID(svid.ID); err == nil {
				own.Namespace, own.Datacenter = s.Namespace, s.Datacenter
			}
		}
	}
	named := l7.Service{Name: l.Metadata[resource.MetaService], Namespace: l.Metadata[resource.MetaNamespace],
		Datacenter: l.Metadata[resource.MetaDatacenter], Version: l.Metadata[resource.MetaVersion]}
	if l.Direction == resource.Inbound {
		own.Version = named.Version
		return l7.Service{}, own
	}
	return own, named
}

// clock is a clock that is not the process's own, nil where there is none: then
// an engine reads one clock for both times that it needs.
func (w *workload) clock() func() time.Time {
	if w.deps.wall {
		return nil
	}
	return w.deps.Now
}

func (w *workload) httpEngine(h compile.HTTP) (listener.Handler, error) {
	logs := h.Manager.AccessLog
	if len(logs) == 0 {
		logs = w.Sidecar.cfg.AccessLog
	}
	access, err := w.logs.Compile(logs)
	if err != nil {
		return nil, fmt.Errorf("access_log: %w", err)
	}
	source, destination := w.ends(h.Listener)
	return l7.New(l7.Config{
		Manager: h.Manager, Routes: h.Routes, Filters: h.Filters, Inbound: h.Listener.Direction == resource.Inbound, Strangers: w.strangers(h.Listener),
		Source: source, Destination: destination,
		Clusters: func(name string) (l7.Cluster, bool) { return w.cluster(name) },
	}, l7.Deps{Recorder: w.record, AccessLog: access, Log: w.log, Now: w.clock(), Rand: w.deps.Rand, Overload: w.overload, Wheel: w.wheel})
}

func (w *workload) tcpEngine(t compile.TCP) (listener.Handler, error) {
	logs := t.Proxy.AccessLog
	if len(logs) == 0 {
		logs = w.Sidecar.cfg.AccessLog
	}
	access, err := w.logs.Compile(logs)
	if err != nil {
		return nil, fmt.Errorf("access_log: %w", err)
	}
	source, destination := w.ends(t.Listener)
	return l4.New(l4.Config{
		Proxy: t.Proxy, Source: source.Name, Destination: destination.Name,
		Clusters: func(name string) (l4.Cluster, bool) { return w.cluster(name) },
	}, l4.Deps{Recorder: w.record, AccessLog: access, Log: w.log, Now: w.deps.Now, Rand: w.deps.Rand})
}

func (w *workload) cluster(name string) (*cluster.Cluster, bool) {
	p := w.parts.Load()
	if p == nil {
		return nil, false
	}
	return p.clusters.Get(name)
}
