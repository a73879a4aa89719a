package mtls

import (
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// DefaultPartition and DefaultNamespace are what Consul calls the parts of a
// service's key that its community edition does not have.
const (
	DefaultPartition = "default"
	DefaultNamespace = "default"
)

// Service is what a workload's SPIFFE id names, in Consul's form.
type Service struct {
	Partition  string // "" or "default": the id has no /ap/ part
	Namespace  string // "" is "default"
	Datacenter string
	Name       string
}

// ID gives the SPIFFE id of the service in td:
// spiffe://<td>/ns/<ns>/dc/<dc>/svc/<service>, preceded by /ap/<partition>
// where the partition is not the default one, as Consul writes it.
func (s Service) ID(td spiffeid.TrustDomain) (spiffeid.ID, error) {
	if td.IsZero() {
		return spiffeid.ID{}, fmt.Errorf("mtls: SPIFFE id of service %q: no trust domain given", s.Name)
	}
	var seg []string
	if s.Partition != "" && s.Partition != DefaultPartition {
		seg = append(seg, "ap", s.Partition)
	}
	ns := s.Namespace
	if ns == "" {
		ns = DefaultNamespace
	}
	seg = append(seg, "ns", ns, "dc", s.Datacenter, "svc", s.Name)
	id, err := spiffeid.FromSegments(td, seg...)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("mtls: no SPIFFE id can be made of service %q (namespace %q, datacenter %q, partition %q): %w; rename it",
			s.Name, ns, s.Datacenter, s.Partition, err)
	}
	return id, nil
}

// ServiceID is [Service.ID] for a service of the default partition.
func ServiceID(td spiffeid.TrustDomain, ns, dc, service string) (spiffeid.ID, error) {
	return Service{Namespace: ns, Datacenter: dc, Name: service}.ID(td)
}

// ParseServiceID is the inverse of [Service.ID]. The partition of an id
// without /ap/ is "default".
func ParseServiceID(id spiffeid.ID) (Service, error) {
	s := Service{Partition: DefaultPartition}
	seg := strings.Split(strings.TrimPrefix(id.Path(), "/"), "/")
	if len(seg) == 8 && seg[0] == "ap" {
		s.Partition, seg = seg[1], seg[2:]
	}
	if len(seg) != 6 || seg[0] != "ns" || seg[2] != "dc" || seg[4] != "svc" {
		return Service{}, fmt.Errorf("mtls: %s is not the id of a service: expected spiffe://<trust domain>/ns/<namespace>/dc/<datacenter>/svc/<service>", id)
	}
	s.Namespace, s.Datacenter, s.Name = seg[1], seg[3], seg[5]
	return s, nil
}

// reserved is the first path segment that parrel keeps for its own planes.
const reserved = "/parrel/"

// ControlPlaneID is the identity of the control plane. It comes from the
// built-in CA only and is never issued to a workload.
func ControlPlaneID(td spiffeid.TrustDomain) spiffeid.ID {
	id, err := spiffeid.FromPath(td, reserved+"controlplane")
	if err != nil { // the path is a constant, so only a zero trust domain can fail
		return spiffeid.ID{}
	}
	return id
}

// Reserved says whether id belongs to parrel's own planes: no issuer signs it
// for a workload.
func Reserved(id spiffeid.ID) bool { return strings.HasPrefix(id.Path(), reserved) }
