// Package traffic sends ordinary and hostile traffic through meshes of real
// processes: the built binary as control plane and as sidecars, the test's own
// programs as applications and clients.
//
// Covered: HTTP/1.1 on raw sockets, HTTP/2 and gRPC, opaque TCP, faults and
// what is said of them, counts and leaks, instances that come and go under load.
//
// Read first: TestTraffic.
package traffic

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/test/conformance/procmesh"
)

var bins map[string]string // read-only after TestMain

func TestMain(m *testing.M) { procmesh.Main(m, &bins, "./cmd/parrel") }

// service is one service of a mesh: where its applications listen, and whether
// the caller may call it.
type service struct {
	name, protocol string
	apps           []string // addresses of the instances' applications
	denied         bool
	apart          bool // a sidecar process for each instance, named like it
}

// world is a mesh of one caller, web, and the services given.
type world struct {
	t        *testing.T
	m        *procmesh.Mesh
	upstream map[string]string // service → the caller's local address of it
	proxy    map[string]string // instance → its sidecar's public address
	admin    map[string]string // sidecar → admin address
	sidecars map[string]*procmesh.Proc
}

// newWorld starts a mesh: one sidecar for web, one for each service, which
// carries all its instances.
func newWorld(t *testing.T, services ...service) *world {
	t.Helper()
	w := &world{t: t, m: procmesh.New(t, procmesh.Options{Bin: bins["parrel"], Flags: []string{"--no-checks"}}),
		upstream: map[string]string{}, proxy: map[string]string{}, admin: map[string]string{}, sidecars: map[string]*procmesh.Proc{}}
	var ups strings.Builder
	for _, s := range services {
		w.m.Protocol(s.name, s.protocol)
		if s.denied {
			w.m.Intentions(s.name)
		} else {
			w.m.Intentions(s.name, "web")
		}
		w.upstream[s.name] = procmesh.Addr(t)
		fmt.Fprintf(&ups, "{ destination_name = %q, local_bind_port = %s },\n", s.name, procmesh.Port(w.upstream[s.name]))
		for i, app := range s.apps {
			id := fmt.Sprintf("%s-%d", s.name, i+1)
			w.proxy[id] = procmesh.Addr(t)
			w.m.Write(id+".hcl", definition(s.name, id, app, w.proxy[id], ""))
		}
	}
	w.m.Write("web-1.hcl", definition("web", "web-1", procmesh.Addr(t), procmesh.Addr(t), ups.String()))
	for _, s := range services {
		var ids []string
		for i := range s.apps {
			ids = append(ids, fmt.Sprintf("%s-%d", s.name, i+1))
		}
		if s.apart {
			for _, id := range ids {
				w.sidecar(id, s.name, id)
			}
		} else if len(ids) > 0 {
			w.sidecar(s.name, s.name, ids...)
		}
	}
	w.sidecar("web", "web", "web-1")
	for _, s := range services {
		procmesh.Eventually(t, func() error {
			c, err := net.Dial("tcp", w.upstream[s.name])
			switch {
			case errors.Is(err, syscall.ECONNRESET): // it listens, and nobody is there
				return nil
			case err != nil:
				return err
			}
			return c.Close()
		})
	}
	return w
}

func definition(service, id, app, proxy, upstreams string) string {
	return fmt.Sprintf(`service {
  name = %q
  id = %q
  address = "127.0.0.1"
  port = %s
  connect {
    sidecar_service {
      port = %s
      proxy {
        upstreams = [
%s        ]
      }
    }
  }
}
`, service, id, procmesh.Port(app), procmesh.Port(proxy), upstreams)
}

// sidecar starts one process for instances of one service; its access log is
// in accessLog(name).
func (w *world) sidecar(name, service string, ids ...string) {
	w.t.Helper()
	admin := procmesh.Addr(w.t)
	args := []string{"sidecar", "--grpc-addr", w.m.XDS, "--token", w.m.Token(service), "--data-dir", filepath.Join(w.m.Dir, "data-"+name),
		"--admin-bind", admin, "--drain-time", "5s", "--admin-access-log-path", w.accessLog(name)}
	for _, id := range ids {
		args = append(args, "--sidecar-for", id+"="+service)
	}
	p := w.m.Parrel("sidecar-"+name, args...)
	w.admin[name], w.sidecars[name] = admin, p
	procmesh.Eventually(w.t, func() error {
		if !p.Alive() {
			return fmt.Errorf("sidecar %s has ended", name)
		}
		status, _, err := w.ask(name, "/ready")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("sidecar %s: /ready: %d", name, status)
		}
		return err
	})
}

func (w *world) accessLog(name string) string { return filepath.Join(w.m.Dir, name+".access") }

// logged waits for an access-log line of a sidecar that has all the words.
func (w *world) logged(t *testing.T, name string, words ...string) string {
	t.Helper()
	var found string
	procmesh.Eventually(t, func() error {
		b, err := os.ReadFile(w.accessLog(name))
		if err != nil {
			return err
		}
	lines:
		for line := range strings.Lines(string(b)) {
			for _, word := range words {
				if !strings.Contains(line, word) {
					continue lines
				}
			}
			found = line
			return nil
		}
		return fmt.Errorf("no line of %s's access log has %q", name, words)
	})
	return found
}

// ask asks a sidecar's admin listener.
func (w *world) ask(name, path string) (int, string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.admin[name]+path, nil)
	if err != nil {
		return 0, "", err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// url is the caller's URL of a service.
func (w *world) url(service, path string) string { return "http://" + w.upstream[service] + path }

// serveHTTP runs an application until the test ends.
func serveHTTP(t *testing.T, h http.Handler) string {
	t.Helper()
	l := listen(t)
	s := &http.Server{Handler: h, Protocols: new(http.Protocols), ReadHeaderTimeout: 30 * time.Second}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) }) // ends with Close
	t.Cleanup(func() { s.Close(); wg.Wait() })
	return l.Addr().String()
}

// serveTCP runs an application of one function per connection.
func serveTCP(t *testing.T, f func(c *net.TCPConn)) string {
	t.Helper()
	l := listen(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with its connection, which the mesh's end closes at the latest
				defer c.Close()
				f(c.(*net.TCPConn))
			}()
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

// listen takes a port below those of outgoing connections.
func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", procmesh.Addr(t))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// dial opens a raw connection that no operation of which outlives 60 s.
func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// say writes raw bytes.
func say(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

func drainBody(t *testing.T, r *http.Response) string {
	t.Helper()
	defer r.Body.Close()
	var b bytes.Buffer
	if _, err := io.Copy(&b, r.Body); err != nil {
		t.Fatalf("reading the body: %v", err)
	}
	return b.String()
}
