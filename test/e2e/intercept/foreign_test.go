//go:build linux

package intercept

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/parrel-mesh/parrel/sidecar/intercept"
)

// dockerDNS are the rules that Docker puts into a container's namespace for its
// embedded DNS (libnetwork, resolver_unix.go), for iptables-restore: 127.0.0.11:53 is
// really at ports of their own.
const dockerDNS = `*nat
:DOCKER_OUTPUT - [0:0]
:DOCKER_POSTROUTING - [0:0]
-A OUTPUT -d 127.0.0.11/32 -j DOCKER_OUTPUT
-A POSTROUTING -d 127.0.0.11/32 -j DOCKER_POSTROUTING
-A DOCKER_OUTPUT -d 127.0.0.11/32 -p tcp -m tcp --dport 53 -j DNAT --to-destination 127.0.0.11:24567
-A DOCKER_OUTPUT -d 127.0.0.11/32 -p udp -m udp --dport 53 -j DNAT --to-destination 127.0.0.11:24568
-A DOCKER_POSTROUTING -s 127.0.0.11/32 -p tcp -m tcp --sport 24567 -j SNAT --to-source :53
-A DOCKER_POSTROUTING -s 127.0.0.11/32 -p udp -m udp --sport 24568 -j SNAT --to-source :53
COMMIT
`

// dockerHost are the rules that Docker has on a host: a published port, which leads to
// %s here, and the filters of its bridge.
const dockerHost = `*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8088 -j DNAT --to-destination %s
COMMIT
*filter
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
`

// nftForeign is what people write themselves, and a table whose name begins as ours.
const nftForeign = `table inet filter {
	set blocked { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 } }
	chain input { type filter hook input priority filter; policy accept; ip saddr @blocked drop; ct state established counter accept; }
	chain output { type filter hook output priority -110; policy accept; }
}
table ip nat {
	chain output { type nat hook output priority -100; policy accept; tcp dport 7 redirect to :7777; }
	chain prerouting { type nat hook prerouting priority dstnat; policy accept; }
}
table inet parrel_of_others {
	chain c { }
}
table ip parrel {
	chain c { comment "another family"; }
}
`

// others are the ways in which others make rules.
var others = []struct{ name, tool string }{
	{"nft", "nft"}, {"iptables-nft", "iptables-nft-restore"}, {"iptables-legacy", "iptables-legacy-restore"},
}

// foreign puts others' rules into the host.
func (w *world) foreign(tool string, rules ...string) {
	w.t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		w.t.Skipf("no %s here: apt install nftables iptables", tool)
	}
	for _, r := range rules {
		if tool == "nft" {
			w.feed(w.host, r, tool, "-f", "-")
			continue
		}
		w.feed(w.host, r, tool, "--noflush")
	}
}

// everything is the host's rules, those of iptables-legacy too.
func (w *world) everything(tool string) string {
	s := w.state()
	if strings.Contains(tool, "legacy") {
		for _, save := range []string{"iptables-legacy-save", "ip6tables-legacy-save"} {
			for line := range strings.Lines(w.in(save)) {
				if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ":") { // dates, and counters of chains
					s += line
				}
			}
		}
	}
	return s
}

// TestCleanLeavesNothing: beside rules of others of every kind, everything is byte
// for byte what it was, after however many changes.
func TestCleanLeavesNothing(t *testing.T) {
	for _, o := range others {
		t.Run(o.name, func(t *testing.T) {
			w := newWorld(t, dual)
			if o.tool == "nft" {
				w.foreign(o.tool, nftForeign)
			} else {
				w.foreign(o.tool, fmt.Sprintf(dockerHost, "172.17.0.2:80"), dockerDNS)
			}
			w.in("ip", "route", "add", "local", "198.51.100.0/24", "dev", "lo", "proto", "static")
			w.in("ip", "rule", "add", "fwmark", "0x1", "lookup", "100")
			before := w.everything(o.tool)
			m := w.manager()
			for name, c := range w.configs() {
				if err := m.Apply(t.Context(), c); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if w.everything(o.tool) == before {
					t.Fatalf("%s: Apply changed nothing: the comparison is blind", name)
				}
			}
			for range 2 { // the second has nothing to do
				if err := m.Clean(t.Context()); err != nil {
					t.Fatal(err)
				}
				if after := w.everything(o.tool); after != before {
					t.Errorf("after:\n%s\nbefore:\n%s", after, before)
				}
			}
		})
	}
}

// TestBesideDocker: Docker's embedded DNS is captured for the workload and answers
// the sidecar; a port that Docker published still leads where it did.
func TestBesideDocker(t *testing.T) {
	for _, o := range others[1:] {
		t.Run(o.name, func(t *testing.T) {
			w := newWorld(t, v4only)
			w.foreign(o.tool, dockerDNS, fmt.Sprintf(dockerHost, host4+":18088"))
			w.fakeSidecar()
			w.serve(w.host, "embedded", "127.0.0.11:24567", "127.0.0.11:24568")
			w.serve(w.host, "published", w.any(18088))
			w.serve(w.peer, "peer", w.any(9000))
			const embedded = "127.0.0.11:53"
			w.want(t, w.host, app, "udp", embedded, "embedded hello") // the rules are as Docker's
			w.apply(w.config())
			for _, u := range []user{app, root, other} {
				w.want(t, w.host, u, "udp", embedded, "dns hello")
				w.want(t, w.host, u, "tcp", embedded, "dns "+embedded)
			}
			w.want(t, w.host, sidecar, "udp", embedded, "embedded hello")
			w.want(t, w.host, sidecar, "tcp", embedded, "embedded "+embedded)
			w.want(t, w.host, app, "tcp", at(peer4, 9000), "outbound "+at(peer4, 9000))
			w.want(t, w.peer, app, "tcp", at(host4, 8088), "published "+at(host4, 8088))
			w.want(t, w.peer, app, "tcp", at(host4, 8080), "inbound "+at(host4, 8080))
		})
	}
}

// TestDockersRulesLater: the order in which the tables come does not matter.
func TestDockersRulesLater(t *testing.T) {
	for _, o := range others[1:] {
		t.Run(o.name, func(t *testing.T) {
			w := newWorld(t, v4only)
			w.fakeSidecar()
			w.serve(w.host, "embedded", "127.0.0.11:24567", "127.0.0.11:24568")
			w.apply(w.config())
			w.foreign(o.tool, dockerDNS)
			w.want(t, w.host, app, "udp", "127.0.0.11:53", "dns hello")
			w.want(t, w.host, sidecar, "udp", "127.0.0.11:53", "embedded hello")
		})
	}
}

// TestForeignTable: a table of our name that we did not make stays as it is, and
// is said.
func TestForeignTable(t *testing.T) {
	for name, text := range map[string]string{
		"with rules": "table inet parrel {\n chain input { type filter hook input priority 0; tcp dport 23 drop; }\n}\n",
		"empty":      "table inet parrel { }\n",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, v4only)
			w.foreign("nft", text)
			before := w.state()
			m := w.manager()
			_, show := m.Show(t.Context())
			for what, err := range map[string]error{"apply": m.Apply(t.Context(), w.config()), "clean": m.Clean(t.Context()), "confirm": m.Confirm(t.Context()), "show": show} {
				if !errors.Is(err, intercept.ErrForeign) || !strings.Contains(err.Error(), "nft delete table inet parrel") {
					t.Errorf("%s: %v", what, err)
				}
			}
			if after := w.state(); after != before {
				t.Errorf("after:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}
