package generate

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/mtls"
)

// ClusterName is Consul's name of a service in the mesh, which is also the SNI
// that its callers send:
//
//	<service>.<namespace>.<datacenter>.internal.<trust-domain>
//	<service>.<namespace>.<partition>.<datacenter>.internal-v1.<trust-domain>
func ClusterName(m *mesh.Snapshot, n discovery.ServiceName) string {
	if n.Partition == discovery.DefaultPartition {
		return strings.Join([]string{n.Name, n.Namespace, n.Datacenter, "internal", m.TrustDomain}, ".")
	}
	return strings.Join([]string{n.Name, n.Namespace, n.Partition, n.Datacenter, "internal-v1", m.TrustDomain}, ".")
}

// parseClusterName is the inverse of ClusterName. It reads from the right:
// namespaces, partitions and datacenters hold no dots, service names may.
func parseClusterName(m *mesh.Snapshot, s string) (discovery.ServiceName, bool) {
	n := discovery.ServiceName{Partition: discovery.DefaultPartition}
	rest, partitioned := strings.CutSuffix(s, ".internal-v1."+m.TrustDomain)
	if !partitioned {
		var ok bool
		if rest, ok = strings.CutSuffix(s, ".internal."+m.TrustDomain); !ok {
			return n, false
		}
	}
	parts := []*string{&n.Datacenter, &n.Namespace}
	if partitioned {
		parts = []*string{&n.Datacenter, &n.Partition, &n.Namespace}
	}
	for _, p := range parts {
		i := strings.LastIndexByte(rest, '.')
		if i <= 0 {
			return n, false
		}
		rest, *p = rest[:i], rest[i+1:]
	}
	n.Name = rest
	return n, ClusterName(m, n) == s
}

// SPIFFEID is the identity of a service of the mesh, "" where Consul's form
// cannot express its name.
func SPIFFEID(m *mesh.Snapshot, n discovery.ServiceName) string {
	td, err := trustDomain(m.TrustDomain)
	if err != nil {
		return ""
	}
	id, err := mtls.Service{
		Partition: n.Partition, Namespace: n.Namespace, Datacenter: n.Datacenter, Name: n.Name,
	}.ID(td)
	if err != nil {
		return ""
	}
	return id.String()
}

// options are what a caller may set of its clusters. They are part of the
// cluster's name, so that callers with equal options share one cluster.
type options struct {
	ConnectTimeout time.Duration // 0: default
	// Detected: it takes what turned out to be HTTP of a service whose protocol
	// nobody declares.
	Detected bool
	MaxConnections, MaxPendingRequests,
	MaxConcurrentRequests int // 0: no limit
}

// suffix is what the options add to a cluster's name; "" for the defaults.
func (o options) suffix() string {
	var b strings.Builder
	if o.Detected {
		b.WriteString(detectedSuffix)
	}
	if o.ConnectTimeout != 0 {
		fmt.Fprintf(&b, "|connect_timeout=%s", o.ConnectTimeout)
	}
	for _, l := range []struct {
		word  string
		value int
	}{
		{"max_connections", o.MaxConnections},
		{"max_pending_requests", o.MaxPendingRequests},
		{"max_concurrent_requests", o.MaxConcurrentRequests},
	} {
		if l.value != 0 {
			b.WriteString("|" + l.word + "=" + strconv.Itoa(l.value))
		}
	}
	return b.String()
}

// detectedSuffix is part of the names of chains, clusters and routes for what
// turned out to be HTTP.
const detectedSuffix = "|http"

// upstreamOptions are, field by field and first wins, as Consul merges them:
// the upstream's own config, the caller's service-defaults UpstreamConfig for
// this upstream, and its defaults for all.
func upstreamOptions(m *mesh.Snapshot, w *mesh.Workload, u mesh.Upstream) options {
	o := options{
		ConnectTimeout:        millis(u.Config["connect_timeout_ms"]),
		MaxConnections:        limit(u.Config, "max_connections"),
		MaxPendingRequests:    limit(u.Config, "max_pending_requests"),
		MaxConcurrentRequests: limit(u.Config, "max_concurrent_requests"),
	}
	d, _ := m.ServiceDefaults(w.Service)
	if d == nil {
		return o
	}
	for _, c := range d.UpstreamOverrides {
		if c != nil && overrides(c, w, u) {
			o = o.or(c)
		}
	}
	if d.UpstreamDefaults != nil {
		o = o.or(d.UpstreamDefaults)
	}
	return o
}

func overrides(c *discovery.UpstreamConfig, w *mesh.Workload, u mesh.Upstream) bool {
	return c.Name == u.Service.Name && c.Peer == u.Service.Peer &&
		cmp.Or(c.Namespace, w.Service.Namespace) == u.Service.Namespace &&
		cmp.Or(c.Partition, w.Service.Partition) == u.Service.Partition
}

// or fills what is not set.
func (o options) or(c *discovery.UpstreamConfig) options {
	return options{
		ConnectTimeout:        cmp.Or(o.ConnectTimeout, c.ConnectTimeout),
		MaxConnections:        cmp.Or(o.MaxConnections, c.MaxConnections),
		MaxPendingRequests:    cmp.Or(o.MaxPendingRequests, c.MaxPendingRequests),
		MaxConcurrentRequests: cmp.Or(o.MaxConcurrentRequests, c.MaxConcurrentRequests),
	}
}
