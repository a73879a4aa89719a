package sidecar

import (
	"errors"
	"net"
	"net/netip"
	"strconv"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/admin"
	"github.com/parrel-mesh/parrel/sidecar/cluster"
	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/xds/client"
	"github.com/parrel-mesh/parrel/xds/envoyapi"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// readiness is the part of view that /ready needs.
func (s *Sidecar) readiness() []admin.Workload {
	out := s.unknown()
	for _, w := range s.all() {
		out = append(out, admin.Workload{ID: w.id(), Missing: w.missing()})
	}
	return out
}

// view is what admin shows.
func (s *Sidecar) view() []admin.Workload {
	out := s.unknown()
	for _, w := range s.all() {
		out = append(out, w.view())
	}
	return out
}

// unknown stands for what the process lacks beside its workloads.
func (s *Sidecar) unknown() []admin.Workload {
	lacks := s.processLacks()
	if len(lacks) == 0 {
		return nil
	}
	return []admin.Workload{{ID: "host", Missing: lacks, Identity: &mtls.Snapshot{Err: errors.New(lacks[0])}}}
}

func (w *workload) id() string {
	if p := w.parts.Load(); p != nil {
		return p.place.Proxy
	}
	return w.cfg.name()
}

func (w *workload) view() admin.Workload {
	v := admin.Workload{ID: w.id(), Service: w.cfg.Service, Metadata: w.cfg.Metadata, Missing: w.missing(),
		Connections: w.live.Len(), Identity: w.identitySource().Current(),
		Listeners: w.listeners.Status()}
	if s := w.current.Load(); s != nil {
		v.Version, v.Pending, v.Absent = s.Version, s.Set.Pending, s.Set.Absent
		for _, st := range w.dns.Status(w.cfg.name()) {
			v.Listeners = append(v.Listeners, listener.Status{Name: st.Listener, Address: st.Address, Direction: resource.Outbound, Version: s.Version, Err: st.Err, UDP: true})
		}
	}
	p := w.parts.Load()
	if p == nil {
		return v
	}
	v.Service = p.place.Service
	v.ControlPlane = connection(p.source.Status())
	for _, h := range p.source.Held() {
		if h.Resource != nil {
			v.Held = append(v.Held, envoyapi.Held{Resource: h.Resource, Version: h.Version, Updated: h.Updated,
				Refused: h.Refused, RefusedVersion: h.RefusedVersion})
		}
	}
	v.Clusters = w.clusters(p)
	return v
}

func connection(st client.Status) admin.Connection {
	c := admin.Connection{Connected: st.Connected, Since: st.Since, Server: st.Server, LastError: st.LastError, FromDisk: !st.FromDisk.IsZero()}
	if c.Connected {
		c.LastError = ""
	}
	for _, t := range st.Types {
		if t.LastNACK == nil {
			continue
		}
		for _, r := range t.LastNACK.Resources {
			c.Refused = append(c.Refused, admin.Refused{Type: t.Type.Short(), Name: r.Name, Version: r.Version, Field: r.Field, Reason: r.Reason})
		}
	}
	return c
}

// clusters joins what the configuration says of endpoints with how the manager
// finds them.
func (w *workload) clusters(p *parts) (out []envoyapi.ClusterStatus) {
	known := map[string]cluster.Status{}
	for _, st := range p.clusters.Snapshot() {
		known[st.Name] = st
	}
	s := w.current.Load()
	if s == nil {
		return nil
	}
	for _, u := range s.Upstreams {
		c := envoyapi.ClusterStatus{Name: u.Cluster.Name, Added: true, Breakers: u.Cluster.Breakers}
		if u.Cluster.Discovery == resource.DiscoveryEDS {
			c.EDSName = u.Cluster.EDSResource()
		}
		at := map[string]cluster.EndpointStatus{}
		for _, e := range known[c.Name].Endpoints {
			at[e.Address] = e
		}
		if u.Cluster.Discovery == resource.DiscoveryOriginalDst {
			for _, e := range known[c.Name].Endpoints {
				c.Hosts = append(c.Hosts, destination(e))
			}
		}
		if u.Endpoints != nil {
			for _, l := range u.Endpoints.Localities {
				for _, e := range l.Endpoints {
					c.Hosts = append(c.Hosts, host(l, e, at[addressOf(e.Address)]))
				}
			}
		}
		out = append(out, c)
	}
	return out
}

// destination is an endpoint of a cluster that has none in the configuration.
func destination(st cluster.EndpointStatus) envoyapi.HostStatus {
	var a resource.Address
	if ap, err := netip.ParseAddrPort(st.Address); err == nil {
		a = resource.Address{Host: ap.Addr().String(), Port: ap.Port()}
	}
	return host(resource.Locality{}, resource.Endpoint{Address: a}, st)
}

func addressOf(a resource.Address) string {
	if a.Path != "" {
		return a.Path
	}
	return net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port)))
}

func host(l resource.Locality, e resource.Endpoint, st cluster.EndpointStatus) envoyapi.HostStatus {
	h := envoyapi.HostStatus{Endpoint: e, Locality: resource.Locality{Region: l.Region, Zone: l.Zone, SubZone: l.SubZone, Priority: l.Priority},
		Stats: map[string]uint64{"cx_active": uint64(max(st.Connections, 0)), "rq_active": uint64(max(st.Active, 0)),
			"rq_total": st.Requests, "rq_error": st.Failures, "rq_success": st.Requests - min(st.Failures, st.Requests)}}
	if _, err := netip.ParseAddr(e.Address.Host); err != nil {
		h.Hostname = e.Address.Host
	}
	return h
}
