package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"

	"github.com/parrel-mesh/parrel/examples/shop"
)

// check is one thing that the mesh has to show.
type check struct {
	name string
	run  func(ctx context.Context, s *stack) error
}

// checks in their order: what looks on comes first, what breaks something last.
func checks() []check {
	return []check{
		{"api, called by its name, saw web's identity", saw("api", "web")},
		{"orders, called by its name, saw api's identity", saw("orders", "api")},
		{"users, called by its name, saw api's identity", saw("users", "api")},
		{"pricing, called by its name over gRPC, saw api's identity", saw("pricing", "api")},
		{"ledger, called by its name over TCP, was reached as api", ledger},
		{"all instances of users and pricing are called", everyInstance},
		{"a program without a sidecar is refused", outsider},
		{"an intention turned to deny holds, and lets calls through again", intention},
		{"kill -9 of an instance: it gets no more calls until it is back", instanceKilled},
		{"kill -9 of a sidecar: its container, rules and application stay, and it serves again", sidecarKilled},
		{"kill -9 of the leader of Consul: no call fails", leaderKilled},
		{"kill -9 of a control plane: no call fails, and a change still arrives", controlPlaneKilled},
		{"an instance that is added is called", instanceAdded},
		{"an instance that is removed is missed by nobody", instanceRemoved},
	}
}

func id(service string) string { return "spiffe://shop.parrel/ns/default/dc/dc1/svc/" + service }

func saw(callee, caller string) func(context.Context, *stack) error {
	return func(ctx context.Context, s *stack) error {
		return eventually(ctx, func() error {
			tree, err := s.ask(ctx)
			if err != nil {
				return err
			}
			a := tree.Find(callee)
			if a == nil {
				return fmt.Errorf("%s is not in the answer", callee)
			}
			if a.Peer != id(caller) {
				return fmt.Errorf("%s saw %q, want %q", callee, a.Peer, id(caller))
			}
			return nil
		})
	}
}

// ledger: TCP has no place for an identity; the callee's access log says it.
func ledger(ctx context.Context, s *stack) error {
	return eventually(ctx, func() error {
		tree, err := s.ask(ctx)
		if err != nil {
			return err
		}
		if a := tree.Find("ledger"); a == nil || a.Instance != "ledger-1" {
			return fmt.Errorf("ledger did not answer: %+v", a)
		}
		out, err := s.log(ctx, "ledger-sidecar")
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if strings.Contains(line, `"direction":"inbound"`) && strings.Contains(line, `"source_principal":"`+id("api")+`"`) && strings.Contains(line, `"mtls":true`) {
				return nil
			}
		}
		return errors.New("ledger's sidecar has logged no call of api's with mTLS")
	})
}

// who asks n times and counts who answered for a service.
func (s *stack) who(ctx context.Context, service string, n int) (map[string]int, error) {
	seen := map[string]int{}
	for range n {
		tree, err := s.ask(ctx)
		if err != nil {
			return seen, err
		}
		if a := tree.Find(service); a != nil {
			seen[a.Instance]++
		}
	}
	return seen, nil
}

func everyInstance(ctx context.Context, s *stack) error {
	err := s.called(ctx, "users", "users-1", "users-2")
	if err != nil {
		return err
	}
	// Both replicas of pricing call themselves the same; their sidecars do not.
	return eventually(ctx, func() error {
		for _, sidecar := range []string{"pricing-sidecar", "pricing-2-sidecar"} {
			out, err := s.log(ctx, sidecar)
			if err != nil {
				return err
			}
			if !strings.Contains(out, `"direction":"inbound"`) {
				if _, err := s.who(ctx, "pricing", 5); err != nil {
					return err
				}
				return fmt.Errorf("%s has not been called", sidecar)
			}
		}
		return nil
	})
}

// called waits until all of these instances answer.
func (s *stack) called(ctx context.Context, service string, instances ...string) error {
	return eventually(ctx, func() error {
		seen, err := s.who(ctx, service, 10)
		if err != nil {
			return err
		}
		for _, i := range instances {
			if seen[i] == 0 {
				return fmt.Errorf("%s was not called: %v", i, seen)
			}
		}
		return nil
	})
}

// outsider runs the shop's web once more, in the same network and without a
// sidecar: its calls of api have to fail, by name and by address.
func outsider(ctx context.Context, s *stack) error {
	api, err := s.container(ctx, "api-sidecar")
	if err != nil {
		return err
	}
	image := "parrel/shop:latest"
	for _, e := range s.env {
		if v, ok := strings.CutPrefix(e, "SHOP_IMAGE="); ok && v != "" {
			image = v
		}
	}
	for _, to := range []string{"api:8080", api.address + ":8080", api.address + ":15006", api.address + ":21000"} {
		port, err := freePort()
		if err != nil {
			return err
		}
		out, err := exec.CommandContext(ctx, "docker", "run", "-d", "--rm", "--network", s.project+"_default", "-p", fmt.Sprintf("127.0.0.1:%d:8080", port),
			image, "--role=web", "--instance=outsider", "--listen=:8080", "--upstream=api="+to).CombinedOutput()
		if err != nil {
			return fmt.Errorf("run a container without a sidecar: %w: %s", err, out)
		}
		run := strings.TrimSpace(string(out))
		o := &stack{web: fmt.Sprintf("http://127.0.0.1:%d/", port)}
		var tree *shop.Answer
		err = eventually(ctx, func() (err error) {
			if tree, err = o.ask(ctx); tree == nil {
				return err // it is not up yet
			}
			return nil
		})
		killErr := exec.CommandContext(context.WithoutCancel(ctx), "docker", "kill", run).Run()
		if err := errors.Join(err, killErr); err != nil {
			return err
		}
		if a := tree.Find("api"); a == nil || a.Error == "" || a.Instance != "" {
			return fmt.Errorf("api answered a program without a sidecar at %s: %+v", to, a)
		}
	}
	return nil
}

func sources(destination, source, action string) string {
	return fmt.Sprintf(`{"Kind":"service-intentions","Name":%q,"Sources":[{"Name":%q,"Action":%q}]}`, destination, source, action)
}

func intention(ctx context.Context, s *stack) error {
	if err := s.entry(ctx, sources("orders", "api", "deny")); err != nil {
		return err
	}
	// Refused by orders' sidecar, or unknown to api's, which is told only of what it
	// may call.
	denied := eventually(ctx, func() error {
		tree, err := s.ask(ctx)
		switch {
		case err == nil:
			return errors.New("orders still answers api")
		case tree == nil:
			return err
		}
		for _, other := range []string{"users", "pricing", "ledger"} {
			if a := tree.Find(other); a == nil || a.Error != "" {
				return fmt.Errorf("only orders was forbidden, and %s failed too: %+v", other, a)
			}
		}
		if a := tree.Find("orders"); a == nil || a.Instance != "" || a.Error == "" {
			return fmt.Errorf("orders answered: %+v", a)
		}
		return nil
	})
	if err := s.entry(context.WithoutCancel(ctx), sources("orders", "api", "allow")); err != nil {
		return err
	}
	// Both sidecars hear of both changes, each at its own pace: what counts is that
	// calls go through and stay through.
	l := s.load(ctx)
	defer l.stop()
	return errors.Join(denied, l.streak(ctx, 150))
}

// instanceKilled: calls in hand may fail, and those until the mesh has heard; then
// none does, although the instance stays dead.
func instanceKilled(ctx context.Context, s *stack) error {
	l := s.load(ctx)
	defer l.stop()
	if err := l.streak(ctx, 10); err != nil {
		return err
	}
	c, err := s.container(ctx, "users")
	if err != nil {
		return err
	}
	// The engine does not start again what it was told to kill.
	if out, err := exec.CommandContext(ctx, "docker", "kill", "--signal=KILL", c.id).CombinedOutput(); err != nil {
		return fmt.Errorf("docker kill: %w: %s", err, out)
	}
	dead := l.streak(ctx, 100)
	if out, err := exec.CommandContext(context.WithoutCancel(ctx), "docker", "start", c.id).CombinedOutput(); err != nil {
		return fmt.Errorf("docker start: %w: %s", err, out)
	}
	return errors.Join(dead, s.called(ctx, "users", "users-1", "users-2"))
}

func sidecarKilled(ctx context.Context, s *stack) error {
	before, err := s.container(ctx, "users-sidecar")
	if err != nil {
		return err
	}
	pid, err := before.child(ctx)
	if err != nil {
		return err
	}
	l := s.load(ctx)
	defer l.stop()
	if err := l.streak(ctx, 10); err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	if err := l.streak(ctx, 100); err != nil {
		return err
	}
	if err := s.called(ctx, "users", "users-1", "users-2"); err != nil {
		return err
	}
	after, err := s.container(ctx, "users-sidecar")
	if err == nil && after != before {
		err = fmt.Errorf("the container was started again: %+v, before: %+v", after, before)
	}
	if again, cerr := after.child(ctx); err == nil && (cerr != nil || again == pid) {
		err = fmt.Errorf("the sidecar's process is %d, before: %d: %v", again, pid, cerr)
	}
	return err
}

// leader names the service whose server leads.
func (s *stack) leader(ctx context.Context) (string, error) {
	text, err := s.get(ctx, "/v1/status/leader")
	if err != nil {
		return "", err
	}
	for _, name := range []string{"consul-1", "consul-2", "consul-3"} {
		c, err := s.container(ctx, name)
		if err == nil && c.address != "" && strings.Contains(text, `"`+c.address+":") {
			return name, nil
		}
	}
	return "", fmt.Errorf("no server has the leader's address %s", text)
}

func leaderKilled(ctx context.Context, s *stack) error {
	name, err := s.leader(ctx)
	if err != nil {
		return err
	}
	l := s.load(ctx)
	defer l.stop()
	if _, err := s.kill(ctx, name); err != nil {
		return err
	}
	if err := l.streak(ctx, 200); err != nil {
		return err
	}
	if err := l.end(); err != nil {
		return err
	}
	return eventually(ctx, func() error { _, err := s.leader(ctx); return err })
}

func controlPlaneKilled(ctx context.Context, s *stack) error {
	l := s.load(ctx)
	defer l.stop()
	if _, err := s.kill(ctx, "controlplane-1"); err != nil {
		return err
	}
	if err := l.streak(ctx, 200); err != nil {
		return err
	}
	if err := l.end(); err != nil {
		return err
	}
	return intention(ctx, s)
}

func instanceAdded(ctx context.Context, s *stack) error {
	l := s.load(ctx)
	defer l.stop()
	if out, err := s.run(ctx, "--profile", "more", "up", "-d", "--no-recreate", "users-v3"); err != nil {
		return fmt.Errorf("up users-v3: %w\n%s", err, out)
	}
	if err := s.called(ctx, "users", "users-3"); err != nil {
		return err
	}
	return l.end()
}

func instanceRemoved(ctx context.Context, s *stack) error {
	l := s.load(ctx)
	defer l.stop()
	if out, err := s.run(ctx, "--profile", "more", "stop", "-t", "10", "users-v3", "users-v3-sidecar"); err != nil {
		return fmt.Errorf("stop users-v3: %w\n%s", err, out)
	}
	if err := l.streak(ctx, 100); err != nil {
		return err
	}
	seen, err := s.who(ctx, "users", 20)
	if err == nil && seen["users-3"] > 0 {
		err = fmt.Errorf("users-3 still answers: %v", seen)
	}
	return err
}
