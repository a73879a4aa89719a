//go:build linux

package perhost

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parrel-mesh/parrel/sidecar/intercept"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/test/consultest"
	"github.com/parrel-mesh/parrel/test/e2e/rig"
)

const (
	hostAddr = "10.214.0.1"
	peerAddr = "10.214.0.2"
	// Users: the sidecar's, the first service's, and one that is nobody's.
	sidecarUID  = 15999
	serviceUID  = 20000
	strangerUID = 30000
	services    = 50
	echoPort    = 8080
	soon        = 60 * time.Second
)

// as runs f on a thread of a user: the sockets that f makes are the user's, as
// those of its programs would be.
func as[T any](uid int, f func() T) T {
	ch := make(chan T, 1)
	go func() {
		runtime.LockOSThread() // and not unlocked: the thread must not be used again
		// This thread's alone, other than syscall.Setresuid.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			panic(errno)
		}
		ch <- f()
	}()
	return <-ch
}

type dialled struct {
	c   net.Conn
	err error
}

func dialAs(uid int, address string) (net.Conn, error) {
	d := as(uid, func() dialled {
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		c, err := netio.OS{}.Dial(ctx, "tcp", address)
		return dialled{c, err}
	})
	return d.c, d.err
}

// getAs asks for a page as a user.
func getAs(uid int, address string) (int, string, error) {
	c, err := dialAs(uid, address)
	if err != nil {
		return 0, "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(soon))
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", address); err != nil {
		return 0, "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, "", err
	}
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// world is one host with its services, an agent, a control plane and one sidecar.
type world struct {
	*rig.Rig
	agent   *consultest.Agent
	cp      *rig.ControlPlane
	sidecar *rig.Process
	admin   string
	vip     string // echo's
	flags   []string
}

func name(i int) string { return fmt.Sprintf("svc-%02d", i) }
func id(s string) string {
	return "spiffe://" + rig.TrustDomain + "/ns/default/dc/dc1/svc/" + s
}

func (w *world) register(name string, port, uid int) {
	w.T.Helper()
	w.agent.Register(rig.Service{"Name": name, "ID": name + "-1", "Address": hostAddr, "Port": port, "Meta": map[string]string{"parrel-uid": fmt.Sprint(uid)}})
}

// newWorld starts it all; n services and echo are registered.
func newWorld(t *testing.T, n int, flags ...string) *world {
	t.Helper()
	if why != "" {
		t.Skip(why)
	}
	w := &world{Rig: rig.New(t, parrel), agent: consultest.Dev(t, consultest.Options{})}
	echo(t)
	w.agent.Entry(rig.Protocol("echo", "http"))
	w.agent.Entry(rig.Intentions("*", "*", "deny"))
	w.agent.Entry(rig.Intentions("echo", "*", "allow"))
	for i := range n {
		w.register(name(i), 9000+i, serviceUID+i)
	}
	w.register("echo", echoPort, serviceUID-1)
	w.cp = w.ControlPlane(w.agent.HTTP)
	w.flags = flags
	w.start(n)
	w.Eventually(soon, "echo has a virtual address", func() error {
		var found []struct {
			Service struct {
				TaggedAddresses map[string]struct{ Address string }
			}
		}
		w.agent.Get("/v1/health/connect/echo", &found)
		for _, f := range found {
			if a := f.Service.TaggedAddresses["consul-virtual"].Address; a != "" {
				w.vip = net.JoinHostPort(a, "80")
				return nil
			}
		}
		return fmt.Errorf("%+v", found)
	})
	return w
}

// start starts the sidecar as a user of its own, with one capability.
func (w *world) start(n int) {
	w.T.Helper()
	if w.sidecar == nil {
		data := filepath.Join(w.Dir, "data")
		tokens := filepath.Join(w.Dir, "tokens")
		for _, d := range []string{data, tokens} {
			if err := os.Mkdir(d, 0o700); err != nil {
				w.T.Fatal(err)
			}
		}
		w.admin = rig.Addr(rig.Port(w.T))
		w.sidecar = w.Process("sidecar", append([]string{"sidecar", "--all-local", "--transparent", "--token-dir", tokens,
			"--grpc-addr", w.cp.XDS, "--http-addr", w.agent.HTTP, "--data-dir", data, "--admin-bind", w.admin, "--drain-time", "2s"}, w.flags...)...)
		w.sidecar.Child = func(a *syscall.SysProcAttr) {
			a.Credential = &syscall.Credential{Uid: sidecarUID, Gid: sidecarUID, NoSetGroups: true}
			a.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN}
		}
		w.token(append(names(n), "echo")...)
		for d := w.Dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
			_ = os.Chmod(d, 0o755)
		}
		_ = os.Chmod(filepath.Dir(w.Parrel), 0o755)
		for _, d := range []string{data, tokens} {
			_ = os.Chown(d, sidecarUID, sidecarUID)
		}
	}
	w.sidecar.Start()
	w.ready()
}

// token makes one join token for services, which is in a file for each.
func (w *world) token(services ...string) {
	w.T.Helper()
	token := w.Token(services...)
	for _, s := range services {
		file := filepath.Join(w.Dir, "tokens", s)
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			w.T.Fatal(err)
		}
		_ = os.Chown(file, sidecarUID, sidecarUID)
	}
}

func (w *world) ready() {
	w.T.Helper()
	w.Eventually(2*soon, "the sidecar is ready", func() error {
		_, err := rig.Fetch("http://" + w.admin + "/ready")
		if err != nil && !w.sidecar.Alive() {
			w.T.Fatal("the sidecar has ended")
		}
		return err
	})
}

// plan is /redirect, by proxy.
func (w *world) plan() map[string]intercept.PlanProxy {
	w.T.Helper()
	body, err := rig.Fetch("http://" + w.admin + "/redirect")
	var p intercept.Plan
	if err == nil {
		err = json.Unmarshal([]byte(body), &p)
	}
	if err != nil {
		w.T.Fatal(err)
	}
	out := map[string]intercept.PlanProxy{}
	for _, x := range p.Proxies {
		out[x.Service] = x
	}
	return out
}

// echo is an application that says who called, as its sidecar tells it.
func echo(t *testing.T) {
	t.Helper()
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := "nobody"
		for part := range strings.SplitSeq(r.Header.Get("X-Forwarded-Client-Cert"), ";") {
			if uri, ok := strings.CutPrefix(part, "URI="); ok {
				who = uri
			}
		}
		_, _ = io.WriteString(w, who)
	})}
	for _, a := range []string{"127.0.0.1", hostAddr} {
		ln, err := net.Listen("tcp", fmt.Sprintf("%s:%d", a, echoPort))
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = srv.Serve(ln) }()
	}
	t.Cleanup(func() { _ = srv.Close() })
}

// calls asks echo, by its virtual address, as the user of each service.
func (w *world) calls(from ...string) map[string]string {
	got := map[string]string{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	gate := make(chan struct{}, 8)
	for i, s := range from {
		gate <- struct{}{}
		wg.Go(func() {
			defer func() { <-gate }()
			status, body, err := getAs(serviceUID+i, w.vip)
			mu.Lock()
			defer mu.Unlock()
			got[s] = fmt.Sprintf("%d %s", status, body)
			if err != nil {
				got[s] = err.Error()
			}
		})
	}
	wg.Wait()
	return got
}

func names(n int) (out []string) {
	for i := range n {
		out = append(out, name(i))
	}
	return out
}

// own wants every service's calls to arrive with its own identity.
func (w *world) own(n int) {
	w.T.Helper()
	for s, got := range w.calls(names(n)...) {
		if want := "200 " + id(s); got != want {
			w.T.Errorf("%s: %s, want %s", s, got, want)
		}
	}
}

func TestFiftyServices(t *testing.T) {
	w := newWorld(t, services, "--redirect")

	w.Step("each of %d services calls with its own identity", services)
	w.own(services)
	ports := map[uint16]string{}
	plan := w.plan()
	for s, x := range plan {
		if other := ports[x.OutboundPort]; other != "" || x.OutboundPort == 0 || x.Error != "" || !x.Ready {
			t.Errorf("%s: %+v (%s)", s, x, other)
		}
		ports[x.OutboundPort] = s
	}
	if len(ports) != services+1 {
		t.Errorf("%d capture ports", len(ports))
	}

	w.Step("the same by both families, over many connections at once")
	w.ownMany(t, 200)

	w.Step("nobody else has an identity")
	for _, uid := range []int{strangerUID, 0} {
		if status, body, err := getAs(uid, w.vip); err == nil {
			t.Errorf("uid %d reached a virtual address: %d %s", uid, status, body)
		}
		if status, body, err := getAs(uid, fmt.Sprintf("%s:%d", hostAddr, echoPort)); body != "nobody" {
			t.Errorf("uid %d, plainly: %d %s %v", uid, status, body, err)
		}
	}
	for _, uid := range []int{strangerUID, 0, serviceUID + 3} {
		for _, at := range []string{"127.0.0.1", hostAddr, "[::1]"} {
			for port, s := range ports {
				if port%7 != 0 && port != 15001 { // some are enough
					continue
				}
				if status, body, err := getAs(uid, fmt.Sprintf("%s:%d", at, port)); err == nil {
					t.Errorf("uid %d came to the capture port of %s at %s: %d %s", uid, s, at, status, body)
				}
			}
		}
	}

	w.Step("a service that is registered later, and one that goes")
	w.token("late")
	w.agent.Register(rig.Service{"Name": "late", "ID": "late-1", "Address": hostAddr, "Port": 9900, "Meta": map[string]string{"parrel-uid": fmt.Sprint(strangerUID)}})
	w.Eventually(soon, "the late service's calls are its own", func() error {
		if status, body, err := getAs(strangerUID, w.vip); body != id("late") {
			return fmt.Errorf("%d %s %v", status, body, err)
		}
		return nil
	})
	w.agent.Deregister("late-1")
	w.Eventually(soon, "the calls of a service that is gone are nobody's", func() error {
		if status, body, err := getAs(strangerUID, w.vip); err == nil {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
	w.own(services)

	w.Step("the sidecar dies: nothing goes past it, and a new one has the same ports")
	w.sidecar.Kill()
	for s, got := range w.calls(names(5)...) {
		if !strings.Contains(got, "refused") {
			t.Errorf("%s without a sidecar: %s", s, got)
		}
	}
	w.start(services)
	for s, x := range w.plan() {
		if was := plan[s]; was.OutboundPort != x.OutboundPort {
			t.Errorf("%s had the port %d, and has %d", s, was.OutboundPort, x.OutboundPort)
		}
	}
	w.own(services)

	w.Step("an end leaves rules that fail closed, and clean takes them away")
	w.sidecar.Stop(soon)
	if out := rules(t); !strings.Contains(out, "inet parrel") {
		t.Errorf("rules that fail closed are gone: %s", out)
	}
	if out, errs, err := w.Command("redirect", "clean"); err != nil {
		t.Errorf("redirect clean: %v %s %s", err, out, errs)
	}
	if out := rules(t); strings.Contains(out, "parrel") {
		t.Errorf("left: %s", out)
	}
}

func rules(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// ownMany opens many connections at once, each by one of the services.
func (w *world) ownMany(t *testing.T, n int) {
	t.Helper()
	host, port, _ := net.SplitHostPort(w.vip)
	v4 := net.ParseIP(host).To4()
	v6 := net.ParseIP("fd70:6172:7265:6c::")
	copy(v6[12:], v4)
	addresses := []string{w.vip, net.JoinHostPort(v6.String(), port)}
	var wg sync.WaitGroup
	gate := make(chan struct{}, 16)
	for i := range n {
		gate <- struct{}{}
		wg.Go(func() {
			defer func() { <-gate }()
			s := i % services
			status, body, err := getAs(serviceUID+s, addresses[i/services%2])
			if body != id(name(s)) {
				t.Errorf("%s by %s: %d %s %v", name(s), addresses[i/services%2], status, body, err)
			}
		})
	}
	wg.Wait()
}

// Rules that fail open are gone when the sidecar is, and lapse when it dies.
func TestFailOpen(t *testing.T) {
	w := newWorld(t, 2, "--redirect=fail-open", "--hold-for", "3s")
	w.own(2)
	plain := fmt.Sprintf("%s:%d", hostAddr, echoPort)
	w.Step("killed: its rules lapse")
	w.sidecar.Kill()
	w.Eventually(soon, "what is outside of the mesh is reached again", func() error {
		if status, body, err := getAs(serviceUID, plain); body != "nobody" {
			return fmt.Errorf("%d %s %v", status, body, err)
		}
		return nil
	})
	w.Step("started again, and ended: they are taken away")
	w.start(2)
	w.own(2)
	w.sidecar.Stop(soon)
	if out := rules(t); strings.Contains(out, "parrel") {
		t.Errorf("left: %s", out)
	}
	if status, body, err := getAs(serviceUID, plain); body != "nobody" {
		t.Errorf("%d %s %v", status, body, err)
	}
}

// A sidecar that may not make rules says what it needs, and ends.
func TestWithoutCapability(t *testing.T) {
	if why != "" {
		t.Skip(why)
	}
	r := rig.New(t, parrel)
	agent := consultest.Dev(t, consultest.Options{})
	data := filepath.Join(r.Dir, "data")
	_ = os.Mkdir(data, 0o700)
	_ = os.Chown(data, sidecarUID, sidecarUID)
	for d := r.Dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		_ = os.Chmod(d, 0o755)
	}
	_ = os.Chmod(filepath.Dir(r.Parrel), 0o755)
	p := r.Process("sidecar", "sidecar", "--all-local", "--redirect", "--data-dir", data, "--http-addr", agent.HTTP, "--admin-bind", rig.Addr(rig.Port(t)))
	p.Child = func(a *syscall.SysProcAttr) {
		a.Credential = &syscall.Credential{Uid: sidecarUID, Gid: sidecarUID, NoSetGroups: true}
	}
	p.Start()
	if !p.Wait(soon) {
		t.Fatal("it goes on")
	}
	if text := p.Log(); p.ExitCode() != 1 || !strings.Contains(text, "needs CAP_NET_ADMIN") {
		t.Errorf("exit code %d: %s", p.ExitCode(), text)
	}
}

// Inbound: what comes from outside to a service's port is the service's, by the
// one capture socket of all; strict services take no plaintext, permissive ones do.
func TestInbound(t *testing.T) {
	w := newWorld(t, 1, "--redirect")
	peer := peerNamespace(t)
	w.Step("strict: plaintext from outside is refused")
	w.Eventually(soon, "plaintext is refused", func() error {
		if status, body, err := getFrom(peer, fmt.Sprintf("%s:%d", hostAddr, echoPort)); err == nil {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
	w.Step("permissive: it comes in, as nobody")
	w.agent.Entry(map[string]any{"Kind": "mesh", "AllowEnablingPermissiveMutualTLS": true})
	w.agent.Entry(map[string]any{"Kind": "service-defaults", "Name": "echo", "Protocol": "http", "MutualTLSMode": "permissive"})
	w.Eventually(soon, "plaintext is taken", func() error {
		if status, body, err := getFrom(peer, fmt.Sprintf("%s:%d", hostAddr, echoPort)); body != "nobody" {
			return fmt.Errorf("%d %s %v", status, body, err)
		}
		return nil
	})
	w.own(1)
}

// peerNamespace is a namespace on the same cable, by a file.
func peerNamespace(t *testing.T) string {
	t.Helper()
	ns := fmt.Sprintf("parrel-ph%d", os.Getpid())
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	ip("netns", "add", ns)
	t.Cleanup(func() { ip("netns", "del", ns) })
	ip("link", "set", "host1", "netns", ns)
	ip("-n", ns, "addr", "add", peerAddr+"/24", "dev", "host1")
	ip("-n", ns, "link", "set", "host1", "up")
	return "/run/netns/" + ns
}

func getFrom(ns, address string) (int, string, error) {
	type answer struct {
		status int
		body   string
		err    error
	}
	a := as(0, func() answer {
		f, err := os.Open(ns)
		if err == nil {
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
			f.Close()
		}
		if err != nil {
			return answer{err: err}
		}
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		c, err := netio.OS{}.Dial(ctx, "tcp", address)
		if err != nil {
			return answer{err: err}
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(soon))
		_, _ = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", address)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return answer{err: err}
		}
		b, err := io.ReadAll(resp.Body)
		return answer{resp.StatusCode, string(b), err}
	})
	return a.status, a.body, a.err
}
