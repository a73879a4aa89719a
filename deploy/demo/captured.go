package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// capturedChecks are those of hosts whose connections are captured.
func capturedChecks() []check {
	return []check{
		{"every name of a service has its one virtual address, on every host", oneAddress},
		{"a server that speaks first is heard on a port whose protocol nobody declared", serverFirst},
		{"a service that may not be called is refused", notCallable},
		{"a user of the host who is none of its services gets no identity", strangerNowhere},
		{"nobody borrows an identity by a capture port", noBorrowing},
		{"plaintext from outside to a program's own port is refused", plaintextToProgram},
	}
}

// address is the virtual address of a name, as the program of an instance sees
// it.
func (w *world) address(ctx context.Context, as, name string) (netip.Addr, error) {
	ips, err := w.as(as).resolver().LookupNetIP(ctx, "ip4", name)
	if err != nil {
		return netip.Addr{}, err
	}
	if len(ips) != 1 {
		return netip.Addr{}, fmt.Errorf("%s has the addresses %v", name, ips)
	}
	return ips[0].Unmap(), nil
}

func oneAddress(ctx context.Context, w *world) error {
	var want netip.Addr
	for _, as := range []string{"api-1", "orders-1", "web-1"} { // on both hosts
		for _, name := range []string{"users", "users.mesh", "users.virtual.consul", "USERS.service.consul."} {
			got, err := w.address(ctx, as, name)
			if err != nil {
				return fmt.Errorf("%s asks for %s: %w", as, name, err)
			}
			if !want.IsValid() {
				want = got
			}
			if got != want || got.As4()[0] < 240 {
				return fmt.Errorf("%s asks for %s: %s, not %s", as, name, got, want)
			}
		}
	}
	return nil
}

func serverFirst(ctx context.Context, w *world) error {
	c, err := w.as("api-1").dial(ctx, "tcp", w.l.find("api-1").upstream("ledger"))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	start := time.Now()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return fmt.Errorf("no greeting from ledger: %w", err)
	}
	if took := time.Since(start); took > time.Second {
		return fmt.Errorf("ledger's greeting (%q) took %s", strings.TrimSpace(line), took)
	}
	return nil
}

// virtual is a connection to a service's virtual address.
func (w *world) virtual(ctx context.Context, f from, service, port string) (net.Conn, error) {
	a, err := w.address(ctx, "api-1", service+".mesh")
	if err != nil {
		return nil, err
	}
	return f.dial(ctx, "tcp", net.JoinHostPort(a.String(), port))
}

// unanswered asks for something in HTTP and wants no answer but a refusal.
func unanswered(ctx context.Context, c net.Conn, err error) error {
	if err != nil {
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			return errors.New("the connection was neither made nor refused")
		}
		return nil
	}
	defer c.Close()
	return refused(roundTrip(ctx, c))
}

func notCallable(ctx context.Context, w *world) error {
	c, err := w.virtual(ctx, w.as("web-1"), "orders", "80")
	return unanswered(ctx, c, err)
}

func strangerNowhere(ctx context.Context, w *world) error {
	c, err := w.virtual(ctx, w.l.hostOf("api-1").reach(stranger), "users", "80")
	return unanswered(ctx, c, err)
}

func noBorrowing(ctx context.Context, w *world) error {
	for _, uid := range []int{stranger, w.l.find("web-1").uid, w.l.find("api-1").uid, 0} {
		c, err := w.l.hostOf("api-1").reach(uid).dial(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", w.l.find("api-1").capturePort()))
		if err := unanswered(ctx, c, err); err != nil {
			return fmt.Errorf("user %d: %w", uid, err)
		}
	}
	return nil
}

func plaintextToProgram(ctx context.Context, w *world) error {
	c, err := w.visitor().dial(ctx, "tcp", w.l.find("users-1").addr())
	return unanswered(ctx, c, err)
}
