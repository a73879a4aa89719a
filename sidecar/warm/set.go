package warm

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// Key names one resource.
type Key struct {
	Type resource.Type
	Name string
}

func (k Key) String() string { return k.Type.Short() + " " + k.Name }

func (k Key) compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Type, o.Type), cmp.Compare(k.Name, o.Name))
}

// Set is one complete, consistent configuration of a workload. Immutable;
// resources that did not change are the same pointers as in the set before.
type Set struct {
	// Version is a digest of the content: equal sets have equal versions, in
	// every process.
	Version string
	// Versions are the digests by type.
	Versions map[resource.Type]string
	// Complete says that everything received so far is in the set: listeners
	// and clusters have been answered, and nothing waits.
	Complete bool

	Listeners map[string]*resource.Listener
	Routes    map[string]*resource.RouteConfig
	Clusters  map[string]*resource.Cluster
	Endpoints map[string]*resource.Endpoints // by the name that the cluster asks for
	Secrets   map[string]*resource.Secret

	// Absent are things that the set refers to and that nobody answered for
	// within the time: the set does without them. Sorted.
	Absent []Key
	// Pending are newer versions, or new resources, that wait. Sorted.
	Pending []Pending
}

// Pending is one resource that is held back.
type Pending struct {
	Key   Key
	For   []Key     // what it waits for, sorted
	Since time.Time // since when
	Old   bool      // an older version of it is in force
}

// same says that o is no news: the same content, and the same things waiting
// for the same others, which is what a reader of the set is told.
func (s *Set) same(o *Set) bool {
	return s.Version == o.Version && s.Complete == o.Complete && slices.Equal(s.Absent, o.Absent) &&
		slices.EqualFunc(s.Pending, o.Pending, func(a, b Pending) bool { return a.Key == b.Key && a.Old == b.Old && slices.Equal(a.For, b.For) })
}

// EndpointsOf gives the endpoints of a cluster of the set; nil where there are
// none.
func (s *Set) EndpointsOf(c *resource.Cluster) *resource.Endpoints {
	if c.Discovery == resource.DiscoveryEDS {
		return s.Endpoints[c.EDSResource()]
	}
	return c.Endpoints
}

// Names lists the names of one type, sorted.
func (s *Set) Names(t resource.Type) []string {
	switch t {
	case resource.TypeListener:
		return slices.Sorted(maps.Keys(s.Listeners))
	case resource.TypeRoute:
		return slices.Sorted(maps.Keys(s.Routes))
	case resource.TypeCluster:
		return slices.Sorted(maps.Keys(s.Clusters))
	case resource.TypeEndpoints:
		return slices.Sorted(maps.Keys(s.Endpoints))
	case resource.TypeSecret:
		return slices.Sorted(maps.Keys(s.Secrets))
	}
	return nil
}

// Get gives one resource of the set.
func (s *Set) Get(k Key) (resource.Resource, bool) {
	switch k.Type {
	case resource.TypeListener:
		return lookup(s.Listeners, k.Name)
	case resource.TypeRoute:
		return lookup(s.Routes, k.Name)
	case resource.TypeCluster:
		return lookup(s.Clusters, k.Name)
	case resource.TypeEndpoints:
		return lookup(s.Endpoints, k.Name)
	case resource.TypeSecret:
		return lookup(s.Secrets, k.Name)
	}
	return nil, false
}

func lookup[T resource.Resource](m map[string]T, name string) (resource.Resource, bool) {
	r, ok := m[name]
	if !ok {
		return nil, false
	}
	return r, true
}

func newSet() *Set {
	return &Set{
		Listeners: map[string]*resource.Listener{},
		Routes:    map[string]*resource.RouteConfig{},
		Clusters:  map[string]*resource.Cluster{},
		Endpoints: map[string]*resource.Endpoints{},
		Secrets:   map[string]*resource.Secret{},
	}
}

// seal computes the versions. digest gives a resource's content hash.
func (s *Set) seal(digest func(resource.Resource) uint64) {
	s.Versions = make(map[resource.Type]string, 5)
	all := xxhash.New()
	for _, t := range resource.Types() {
		h := xxhash.New()
		for _, name := range s.Names(t) {
			r, _ := s.Get(Key{t, name})
			fmt.Fprintf(h, "%s\x00%x\x00", name, digest(r))
		}
		v := fmt.Sprintf("%016x", h.Sum64())
		s.Versions[t] = v
		fmt.Fprintf(all, "%s\x00%s\x00", t.Short(), v)
	}
	s.Version = fmt.Sprintf("%016x", all.Sum64())
}
