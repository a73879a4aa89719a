package sidecar

import (
	"fmt"
	"maps"
	"os/user"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/parrel-mesh/parrel/sidecar/admin"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Keys of a service's Meta that say which processes are the service's, where a
// host has several: exactly one of them.
const (
	MetaUID    = "parrel-uid"    // numeric user id
	MetaUser   = "parrel-user"   // user's name
	MetaCgroup = "parrel-cgroup" // control group below the hierarchy's root, such as "system.slice/web.service"
)

// attribution says whose outbound connections are a workload's. The zero value:
// nothing is said.
type attribution struct {
	uid    *uint32
	user   string
	cgroup string
}

func (a attribution) given() bool { return a.uid != nil || a.cgroup != "" }

// attributed says whether Meta names processes, rightly or not.
func attributed(meta map[string]string) bool {
	return meta[MetaUID] != "" || meta[MetaUser] != "" || meta[MetaCgroup] != ""
}

// attributionOf reads Meta: the service's, else its proxy's.
func attributionOf(l *LocalService, lookup func(name string) (*user.User, error)) (attribution, error) {
	meta := l.Meta
	if !attributed(meta) && l.Proxy != nil {
		meta = l.Proxy.Meta
	}
	var a attribution
	n := 0
	for _, k := range []string{MetaUID, MetaUser, MetaCgroup} {
		if meta[k] != "" {
			n++
		}
	}
	switch {
	case n == 0:
		return a, nil
	case n > 1:
		return a, fmt.Errorf("the service %s has more than one of %s, %s and %s in its Meta: keep the one that tells its processes from others'", l.ID, MetaUID, MetaUser, MetaCgroup)
	}
	uid := meta[MetaUID]
	if name := meta[MetaUser]; name != "" {
		u, err := lookup(name)
		if err != nil {
			return a, fmt.Errorf("the service %s has %s=%q in its Meta, and this host has no such user (%w): make the user, or correct the name", l.ID, MetaUser, name, err)
		}
		a.user, uid = name, u.Uid
	}
	if uid != "" {
		n, err := strconv.ParseUint(uid, 10, 32)
		if err != nil || n == 1<<32-1 {
			return attribution{}, fmt.Errorf("the service %s has %s=%q in its Meta, which is no user id: write a number from 0 to 4294967294, or use %s", l.ID, MetaUID, uid, MetaUser)
		}
		id := uint32(n)
		a.uid = &id
		return a, nil
	}
	g := strings.TrimPrefix(path.Clean("/"+meta[MetaCgroup]), "/")
	if g == "" || strings.Contains(meta[MetaCgroup], "..") {
		return a, fmt.Errorf("the service %s has %s=%q in its Meta, which is no control group of one service: write its path below the hierarchy's root, such as system.slice/web.service", l.ID, MetaCgroup, meta[MetaCgroup])
	}
	a.cgroup = g
	return a, nil
}

// redirects is what the rules of redirection need to know of each workload that
// has a capture listener: admin's /redirect.
func (s *Sidecar) redirects() []admin.Redirect {
	all := s.all()
	var out []admin.Redirect
	for _, w := range all {
		if r, ok := w.redirect(); ok {
			out = append(out, r)
		}
	}
	tell(out, s.cfg.AllLocal != nil || len(all) > 1)
	return out
}

// tell says what of entries cannot be told apart. several: there may be others on
// this host, so that who is not attributed is nobody.
func tell(entries []admin.Redirect, several bool) {
	same := map[string][]int{}
	for i := range entries {
		e := &entries[i]
		switch {
		case e.Error != "" || e.OutboundPort == 0:
		case e.UID != nil:
			k := "uid " + strconv.FormatUint(uint64(*e.UID), 10)
			same[k] = append(same[k], i)
		case e.Cgroup != "":
			k := "cgroup " + e.Cgroup
			same[k] = append(same[k], i)
		case several:
			e.Error = fmt.Sprintf("the service has none of %s, %s and %s in its Meta, and this host may have several services: its connections cannot be told from others'", MetaUID, MetaUser, MetaCgroup)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(same)) {
		of := same[k]
		if len(of) < 2 {
			continue
		}
		var names []string
		for _, i := range of {
			names = append(names, entries[i].ProxyID)
		}
		for _, i := range of {
			entries[i].Error = fmt.Sprintf("%s is said to be that of several services (%s): run each as a user, or in a control group, of its own", k, strings.Join(names, ", "))
		}
	}
	for i := range entries {
		if e := &entries[i]; e.Error != "" {
			e.UID, e.User, e.Cgroup = nil, "", ""
		}
	}
}

// redirect describes one workload; false where it captures nothing.
func (w *workload) redirect() (r admin.Redirect, ok bool) {
	snap, p := w.current.Load(), w.parts.Load()
	if snap == nil || p == nil {
		return r, false
	}
	r = admin.Redirect{ProxyID: p.place.Proxy, Service: p.place.Service, Ready: len(w.missing()) == 0,
		ServicePorts: []uint16{}, ProxyPorts: []uint16{}}
	w.captures.mu.Lock()
	own := w.captures.ports[w.cfg.name()].Port
	r.ServicePorts = append(r.ServicePorts, w.captures.claims[w.cfg.name()].ports...)
	w.captures.mu.Unlock()
	for _, c := range snap.Listeners {
		l := c.Resource
		switch {
		case l.UseOriginalDst && l.Direction == resource.Outbound:
			r.OutboundPort = l.Address.Port
			if r.OutboundPort == commonCapture && own != 0 {
				r.OutboundPort = own
			}
		case l.UseOriginalDst:
			r.InboundPort = l.Address.Port
		case l.DNS != nil:
			r.DNSPort = l.Address.Port
		case l.Direction == resource.Inbound && l.Address.Port != 0:
			r.ProxyPorts = append(r.ProxyPorts, l.Address.Port)
		}
	}
	if r.OutboundPort == 0 && r.InboundPort == 0 {
		return r, false
	}
	if port, ok := w.readyPort(); ok {
		r.ProxyPorts = append(r.ProxyPorts, port)
	}
	if local := w.local.Load(); local != nil {
		a, err := attributionOf(local, w.deps.LookupUser)
		if err != nil {
			r.Error = err.Error()
		}
		r.UID, r.User, r.Cgroup = a.uid, a.user, a.cgroup
	}
	return r, true
}
