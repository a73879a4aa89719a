package sim

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/parrel-mesh/parrel/controlplane/vip"
)

// resolve asks the DNS server of an instance's sidecar; "" where nobody answers.
func (i *Instance) resolve(t *testing.T, name string, qtype uint16) string {
	t.Helper()
	pc, err := i.Host().ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	q, err := new(mdns.Msg).SetQuestion(mdns.Fqdn(name), qtype).Pack()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pc.WriteTo(q, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:15053"))); err != nil {
		t.Fatal(err)
	}
	_ = pc.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 4096)
	n, _, err := pc.ReadFrom(b)
	if err != nil {
		return ""
	}
	m := new(mdns.Msg)
	if err := m.Unpack(b[:n]); err != nil {
		t.Fatal(err)
	}
	out := []string{mdns.RcodeToString[m.Rcode]}
	for _, r := range m.Answer {
		switch r := r.(type) {
		case *mdns.A:
			out = append(out, r.A.String())
		case *mdns.AAAA:
			out = append(out, r.AAAA.String())
		case *mdns.PTR:
			out = append(out, r.Ptr)
		}
	}
	return strings.Join(out, " ")
}

// TestNames: every form of a service's name has its virtual address, and that its
// name, the same from every sidecar, before and after the control plane was
// restarted and while it is gone; a service that comes is seen within two seconds,
// and one whose last instance went is forgotten once that is believed.
func TestNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := capturedShop(t, Config{Seed: *seed, Latency: time.Millisecond})
		other := s.Add(Spec{Service: "batch", Transparent: true})
		s.Ready()
		time.Sleep(2 * time.Second)
		check := func(when string, known, unknown []string) {
			t.Helper()
			for _, from := range []*Instance{s.web, other} {
				for _, name := range known {
					a := vip.Candidate(Name(name), 0)
					for _, form := range []string{name, name + ".mesh", name + ".service.consul", name + ".virtual.consul", strings.ToUpper(name) + ".Mesh"} {
						if got := from.resolve(t, form, mdns.TypeA); got != "NOERROR "+a.String() {
							t.Errorf("%s: %s from %s: %q", when, form, from.Service, got)
						}
						if got := from.resolve(t, form, mdns.TypeAAAA); got != "NOERROR "+vip.Twin(a).String() {
							t.Errorf("%s: AAAA of %s from %s: %q", when, form, from.Service, got)
						}
					}
					for _, ip := range []netip.Addr{a, vip.Twin(a)} {
						reverse, _ := mdns.ReverseAddr(ip.String())
						if got := from.resolve(t, reverse, mdns.TypePTR); got != "NOERROR "+name+".mesh." {
							t.Errorf("%s: %s from %s: %q", when, ip, from.Service, got)
						}
					}
				}
				for _, name := range unknown {
					if got := from.resolve(t, name+".mesh", mdns.TypeA); got != "NXDOMAIN" {
						t.Errorf("%s: %s.mesh from %s: %q", when, name, from.Service, got)
					}
				}
			}
		}
		all := []string{"api", "ledger", "pages", "lines", "web", "batch"}
		check("at first", all, []string{"nobody", "late"})

		late := s.Add(Spec{Service: "late"})
		s.Ready()
		time.Sleep(2 * time.Second)
		check("one came", append(slices.Clone(all), "late"), []string{"nobody"})

		s.Plane.Stop()
		check("the control plane is gone", append(slices.Clone(all), "late"), []string{"nobody"})
		s.Plane.Start()
		time.Sleep(5 * time.Second)
		check("it is back", append(slices.Clone(all), "late"), []string{"nobody"})

		late.Deregister()
		time.Sleep(time.Minute)
		check("one went", all, []string{"nobody", "late"})
	})
}
