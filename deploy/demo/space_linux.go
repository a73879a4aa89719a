package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses of the demo's network; it exists between its namespaces only.
var (
	network     = netip.MustParsePrefix("10.77.0.0/24")
	bridgeAddr  = netip.MustParseAddr("10.77.0.1") // of the space that holds the bridge
	firstHost   = 11
	bridgeName  = "parrel-demo"
	linkInSpace = "eth0"
)

// path is where the kernel shows the namespace.
func (s *space) path() string { return fmt.Sprintf("/proc/%d/ns/net", s.holder.pid()) }

// in runs f in the namespace, on a thread of its own that ends with it. With a
// uid other than 0 f makes its sockets as that user does, which is what rules by
// user go by; nothing else of the thread changes.
func (s *space) in(uid int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- func() error {
			ns, err := os.Open(s.path())
			if err != nil {
				return fmt.Errorf("demo: namespace of %s: %w", s.name, err)
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("demo: entering the namespace of %s: %w", s.name, err)
			}
			if uid != 0 {
				if err := unix.Setfsuid(uid); err != nil {
					return fmt.Errorf("demo: as user %d: %w", uid, err)
				}
			}
			return f()
		}()
	}()
	return <-done
}

// dial connects from the namespace as a user of it. Names are asked for there
// too.
func (s *space) dial(ctx context.Context, uid int, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddr(host); err != nil {
		ips, err := from{s, uid}.resolver().LookupNetIP(ctx, "ip4", host)
		if err != nil {
			return nil, err
		}
		address = net.JoinHostPort(ips[0].Unmap().String(), port)
	}
	var c net.Conn
	err = s.in(uid, func() (err error) {
		var d net.Dialer
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// newSpace makes a namespace that is on its own so far.
func (p *processes) newSpace(binary, name string, addr netip.Addr) (*space, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("demo: --netns makes network namespaces, which only root may: run it with sudo, or leave --netns out")
	}
	h, err := p.startIn(unix.CLONE_NEWNET, name+"-namespace", binary, "demo", "hold")
	if err != nil {
		return nil, fmt.Errorf("%w (are network namespaces allowed here?)", err)
	}
	return &space{name: name, holder: h, addr: addr}, nil
}

// newCenter makes a namespace with a bridge, to which others are plugged in.
func (p *processes) newCenter(binary string) (*space, error) {
	s, err := p.newSpace(binary, "center", bridgeAddr)
	if err != nil {
		return nil, err
	}
	return s, s.in(0, func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}
		if err := netlink.LinkAdd(br); err != nil {
			return fmt.Errorf("demo: a bridge between the namespaces: %w", err)
		}
		return up(bridgeName, s.addr)
	})
}

// newHost makes the nth namespace that is plugged in to the center.
func (p *processes) newHost(binary, name string, center *space, n int) (*space, error) {
	a := network.Addr().As4()
	a[3] = byte(firstHost + n)
	s, err := p.newSpace(binary, name, netip.AddrFrom4(a))
	if err != nil {
		return nil, err
	}
	return s, s.plug(center, n)
}

// plug joins the namespace to the bridge in sw.
func (s *space) plug(sw *space, n int) error {
	err := sw.in(0, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("host%d", n)}, PeerName: linkInSpace, PeerNamespace: netlink.NsPid(s.holder.pid())}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("demo: a link to the namespace of %s: %w", s.name, err)
		}
		br, err := netlink.LinkByName(bridgeName)
		if err != nil {
			return err
		}
		end, err := netlink.LinkByName(veth.Name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(end, br); err != nil {
			return err
		}
		return netlink.LinkSetUp(end)
	})
	if err != nil {
		return err
	}
	return s.in(0, func() error {
		if err := up(linkInSpace, s.addr); err != nil {
			return err
		}
		// Where everything goes that is not on the network: nowhere, but the
		// kernel asks for a route before anybody may redirect.
		return netlink.RouteAdd(&netlink.Route{Gw: sw.addr.AsSlice()})
	})
}

// up gives a link an address and brings it up, and the loopback with it.
func up(name string, a netip.Addr) error {
	for _, n := range []string{"lo", name} {
		link, err := netlink.LinkByName(n)
		if err != nil {
			return fmt.Errorf("demo: link %s: %w", n, err)
		}
		if n == name {
			addr, err := netlink.ParseAddr(netip.PrefixFrom(a, network.Bits()).String())
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(link, addr); err != nil {
				return fmt.Errorf("demo: address of %s: %w", n, err)
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("demo: link %s: %w", n, err)
		}
	}
	return nil
}

// Enter becomes the command, inside a namespace. It returns only with an error.
func Enter(c EnterConfig) error {
	runtime.LockOSThread() // exec ends all other threads
	ns, err := os.Open(c.Netns)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("demo: entering %s: %w", c.Netns, err)
	}
	if c.ResolvConf != "" {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("demo: a mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("demo: private mounts: %w", err)
		}
		if err := unix.Mount(c.ResolvConf, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("demo: /etc/resolv.conf: %w", err)
		}
	}
	// By descriptor: the user may not be able to reach the binary by its path.
	bin, err := unix.Open(c.Command[0], unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("demo: %s: %w", c.Command[0], err)
	}
	if c.UID != 0 {
		if err := unix.Setgroups(nil); err != nil {
			return fmt.Errorf("demo: groups: %w", err)
		}
		if err := unix.Setresgid(c.UID, c.UID, c.UID); err != nil {
			return fmt.Errorf("demo: group %d: %w", c.UID, err)
		}
		if err := unix.Setresuid(c.UID, c.UID, c.UID); err != nil {
			return fmt.Errorf("demo: user %d: %w", c.UID, err)
		}
		// Another user's death signal is taken away.
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
			return fmt.Errorf("demo: death signal: %w", err)
		}
	}
	return unix.Exec(fmt.Sprintf("/proc/self/fd/%d", bin), c.Command, os.Environ())
}
