package sidecar

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/user"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/parrel-mesh/parrel/sidecar/intercept"
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
	cgroup string
}

// attributed says whether Meta names processes, rightly or not.
func attributed(meta map[string]string) bool {
	return meta[MetaUID] != "" || meta[MetaUser] != "" || meta[MetaCgroup] != ""
}

// processes is what the Meta of a service, or else that of its proxy, says of
// its processes.
func processes(l *LocalService) map[string]string {
	meta := l.Meta
	if !attributed(meta) && l.Proxy != nil {
		meta = l.Proxy.Meta
	}
	var out map[string]string
	for _, k := range []string{MetaUID, MetaUser, MetaCgroup} {
		if v := meta[k]; v != "" {
			if out == nil {
				out = map[string]string{}
			}
			out[k] = v
		}
	}
	return out
}

// attributionOf reads Meta: the service's, else its proxy's.
func attributionOf(l *LocalService, lookup func(name string) (*user.User, error)) (attribution, error) {
	meta := processes(l)
	var a attribution
	switch {
	case len(meta) == 0:
		return a, nil
	case len(meta) > 1:
		return a, fmt.Errorf("the service %s has more than one of %s, %s and %s in its Meta: keep the one that tells its processes from others'", l.ID, MetaUID, MetaUser, MetaCgroup)
	}
	uid := meta[MetaUID]
	if name := meta[MetaUser]; name != "" {
		u, err := lookup(name)
		if err != nil {
			return a, fmt.Errorf("the service %s has %s=%q in its Meta, and this host has no such user (%w): make the user, or correct the name", l.ID, MetaUser, name, err)
		}
		uid = u.Uid
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

// plan is what redirection needs to know of the workloads that capture: admin's
// /redirect.
func (s *Sidecar) plan() (p intercept.Plan) {
	all := s.all()
	for _, w := range all {
		w.redirect(&p)
	}
	if id := os.Geteuid(); id >= 0 {
		own := uint32(id)
		p.ProxyUID = &own
	}
	tell(p.Proxies, p.ProxyUID, s.cfg.AllLocal != nil || len(all) > 1)
	if ap, err := netip.ParseAddrPort(s.cfg.Ready); err == nil {
		p.PublicPorts = append(p.PublicPorts, ap.Port())
	}
	slices.Sort(p.PublicPorts)
	p.PublicPorts = slices.Compact(p.PublicPorts)
	return p
}

// tell takes the capture of those away that cannot be told apart. several: there
// may be others on this host, so that who is not attributed is nobody.
func tell(entries []intercept.PlanProxy, own *uint32, several bool) {
	same := map[string][]int{}
	for i := range entries {
		e := &entries[i]
		switch {
		case e.Error != "" || e.OutboundPort == 0:
		case e.UID != nil && own != nil && *e.UID == *own:
			e.Error = fmt.Sprintf("the service's processes and the sidecar are both uid %d, and what the sidecar dials is never captured: run one of them as a user of its own", *own)
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
			e.UID, e.Cgroup, e.OutboundPort = nil, "", 0
		}
	}
}

// redirect adds what one workload captures.
func (w *workload) redirect(p *intercept.Plan) {
	snap, parts := w.current.Load(), w.parts.Load()
	if snap == nil || parts == nil {
		return
	}
	x := intercept.PlanProxy{ProxyID: parts.place.Proxy, Service: parts.place.Service, Ready: len(w.missingOutbound()) == 0} // inbound listeners may wait for the application, which waits for this
	w.captures.mu.Lock()
	own := w.captures.ports[w.cfg.name()].Port
	x.ServicePorts = slices.Clone(w.captures.claims[w.cfg.name()].ports)
	w.captures.mu.Unlock()
	inbound := false
	for _, c := range snap.Listeners {
		l := c.Resource
		switch {
		case l.UseOriginalDst && l.Direction == resource.Outbound:
			x.OutboundPort = l.Address.Port
			if x.OutboundPort == commonCapture && own != 0 {
				x.OutboundPort = own
			}
		case l.UseOriginalDst && l.Direction == resource.Inbound:
			p.InboundPort, inbound = l.Address.Port, true
		case l.Direction == resource.Inbound && l.Address.Port != 0:
			p.PublicPorts = append(p.PublicPorts, l.Address.Port)
		}
	}
	for _, l := range snap.DNS {
		p.DNSPort = l.Address.Port
	}
	if x.OutboundPort == 0 && !inbound {
		return
	}
	if local := w.local.Load(); local != nil {
		a, err := attributionOf(local, w.deps.LookupUser)
		if err != nil {
			x.Error = err.Error()
		}
		x.UID, x.Cgroup = a.uid, a.cgroup
	}
	p.Proxies = append(p.Proxies, x)
}
