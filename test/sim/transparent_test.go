package sim

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/controlplane/vip"
)

// virtual is a service's virtual address and a port: any will do.
func virtual(service string, port int) string {
	return netip.AddrPortFrom(vip.Candidate(Name(service), 0), uint16(port)).String()
}

// capturedShop is a mesh of transparent proxies: web names no upstream. api speaks
// http and ledger tcp, as declared; of pages and lines nobody says what they speak,
// and they speak http and tcp.
func capturedShop(t *testing.T, c Config) *shop {
	s := &shop{Mesh: New(t, c)}
	s.Catalogue.Set(map[string]any{"Kind": "proxy-defaults", "Name": "global", "Mode": "transparent"})
	for name, protocol := range map[string]Protocol{"api": HTTP, "ledger": TCP} {
		s.Catalogue.Set(map[string]any{"Kind": "service-defaults", "Name": name, "Protocol": string(protocol)})
	}
	for name, protocol := range map[string]Protocol{"api": HTTP, "ledger": TCP, "pages": HTTP, "lines": TCP} {
		s.Catalogue.Intentions(name, "web", "allow")
		for range 2 {
			s.Add(Spec{Service: name, Protocol: protocol})
		}
	}
	s.web = s.Add(Spec{Service: "web", Transparent: true})
	s.Ready()
	s.Plane.InSync(9, 5*time.Second)
	return s
}

// captured are the calls that web makes, each to a virtual address.
func (s *shop) captured(c LoadConfig) (out []*Load) {
	for name, p := range map[string]Protocol{"api": HTTP, "ledger": TCP, "pages": HTTP, "lines": TCP} {
		c.Host, c.Protocol, c.Port = vip.Candidate(Name(name), 0).String(), p, 80
		out = append(out, s.web.Load(c))
	}
	return out
}

// reaches says whether web is served at a service's virtual address.
func (s *shop) reaches(name string, p Protocol) (bool, string) {
	if p == HTTP {
		status, _, why, err := s.web.GetFrom(virtual(name, 80), "/")
		return status == 200, fmt.Sprint(status, " ", err, " ", why)
	}
	c, err := s.web.LineTo(virtual(name, 80))
	if err != nil {
		return false, err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	_, err = c.Say("hello")
	return err == nil, fmt.Sprint(err)
}

// TestTransparentChanges makes random changes of who may call whom, of what
// exists and of what is declared. Whatever web may call it reaches, within two
// seconds of every change, and nothing else; calls to services that were not
// changed do not notice; a control plane that was restarted says the same.
func TestTransparentChanges(t *testing.T) {
	const n = 45
	synctest.Test(t, func(t *testing.T) {
		s := capturedShop(t, Config{Seed: *seed, Latency: time.Millisecond})
		draw := s.Fork("editor")
		loads := s.captured(LoadConfig{RPS: 20, Workers: 2})
		others := map[string]Protocol{}
		protocol := map[string]Protocol{}
		for i, name := range []string{"one", "two", "three"} {
			others[name] = []Protocol{HTTP, TCP, HTTP}[i]
			s.Add(Spec{Service: name, Protocol: others[name]})
		}
		s.Ready()
		intends := map[string]string{} // of the others and "*": what it says of web
		sources := map[string]string{}
		gone := map[string]bool{}
		made := map[string]int{}
		for step := range n {
			name := pick(draw, "one", "two", "three")
			switch what := pick(draw, "intention", "intention", "intention", "any", "service", "protocol", "plane"); what {
			case "intention":
				intends[name] = pick(draw, "allow", "deny", "")
				sources[name] = pick(draw, "web", "*")
				if intends[name] == "" {
					s.Catalogue.Intentions(name)
				} else {
					s.Catalogue.Intentions(name, sources[name], intends[name])
				}
				made[what]++
			case "any":
				intends["*"] = pick(draw, "allow", "deny", "")
				if intends["*"] == "" {
					s.Catalogue.Intentions("*")
				} else {
					s.Catalogue.Intentions("*", "web", intends["*"])
				}
				made[what]++
			case "service":
				i := s.find(name)
				if gone[name] = !gone[name]; gone[name] {
					i.Deregister()
				} else {
					i.Register()
				}
				made[what]++
			case "protocol":
				if protocol[name] == "" {
					protocol[name] = others[name]
					s.Catalogue.Set(map[string]any{"Kind": "service-defaults", "Name": name, "Protocol": string(others[name])})
				} else {
					protocol[name] = ""
					s.Catalogue.Delete("service-defaults", name)
				}
				made[what]++
			case "plane":
				// A sidecar that is not registered is not let in, and asks again later and
				// later: what it would do then is not what is looked at here.
				for name := range others {
					if gone[name] {
						gone[name] = false
						s.find(name).Register()
					}
				}
				time.Sleep(2 * time.Second)
				s.Plane.Stop()
				s.Plane.Start()
				made[what]++
			}
			time.Sleep(2 * time.Second)
			for name, p := range others {
				want := !gone[name] && intends["*"] == "allow"
				if intends[name] != "" && !gone[name] {
					want = intends[name] == "allow"
				}
				got, why := s.reaches(name, p)
				if got != want {
					t.Fatalf("step %d: web reaches %s: %v, want %v (its intention %q of %q, of all %q, gone %v, declared %q): %s",
						step, name, got, want, intends[name], sources[name], intends["*"], gone[name], protocol[name], why)
				}
			}
		}
		clean(t, loads, 300)
		for _, what := range []string{"intention", "any", "service", "protocol", "plane"} {
			if made[what] < 2 {
				t.Errorf("only %d changes of the kind %q were made", made[what], what)
			}
		}
		// What is no service's is refused, and what is outside of the mesh is not.
		if c, err := s.web.LineTo(virtual("nobody", 80)); err == nil {
			if _, err := c.Say("hello"); err == nil {
				t.Error("a virtual address of nobody answers")
			}
			_ = c.Close()
		}
		outside := s.Net.Host("outside", "10.9.9.9")
		ln, err := outside.Listen(t.Context(), "tcp", ":7")
		if err != nil {
			t.Fatal(err)
		}
		s.Go(func() {
			if c, err := ln.Accept(); err == nil {
				_, _ = c.Write([]byte("outside\n"))
				_ = c.Close()
			}
		})
		c, err := s.web.Host().Dial(t.Context(), "tcp", "10.9.9.9:7")
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 16)
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != "outside\n" {
			t.Errorf("from outside of the mesh: %q, %v", buf[:n], err)
		}
		_ = c.Close()
		_ = ln.Close()
		for _, sc := range s.Plane.Status().Sidecars {
			for _, ty := range sc.Types {
				if ty.NACKs > 0 {
					t.Errorf("%s refused %s: %s", sc.Node, ty.Type, ty.LastNACK.Text)
				}
			}
		}
	})
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// find is the first instance of a service.
func (m *Mesh) find(service string) *Instance {
	for _, i := range m.instances {
		if i.Service == service {
			return i
		}
	}
	m.T.Fatalf("sim: no instance of %s", service)
	return nil
}
