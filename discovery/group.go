package discovery

import (
	"cmp"
	"slices"
)

// Group makes services of instances: each under its own name, the connect
// proxies among them under the service that they stand for. Gateways stay
// services of their own, with themselves in Instances. A connect-native
// instance is found in both lists.
func Group(instances []*Instance) map[ServiceName]*Service {
	out := map[ServiceName]*Service{}
	at := func(n ServiceName) *Service {
		if out[n] == nil {
			out[n] = &Service{Name: n}
		}
		return out[n]
	}
	for _, in := range instances {
		if in.Kind == KindConnectProxy && in.Proxy != nil {
			name := in.Service
			name.Name = in.Proxy.DestinationService
			s := at(name)
			s.Proxies = append(s.Proxies, in)
			continue
		}
		s := at(in.Service)
		s.Instances = append(s.Instances, in)
		if in.Native {
			s.Proxies = append(s.Proxies, in)
		}
	}
	for _, s := range out {
		SortInstances(s.Instances)
		SortInstances(s.Proxies)
	}
	return out
}

// SortInstances sorts by (Node, ID).
func SortInstances(in []*Instance) { slices.SortFunc(in, compareInstances) }

func compareInstances(a, b *Instance) int {
	return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.ID, b.ID))
}
