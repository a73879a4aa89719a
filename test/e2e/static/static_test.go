package static

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/test/e2e/rig"
	"github.com/parrel-mesh/parrel/test/pki"
)

// TestPlain: HTTP/1.1 and HTTP/2 with prior knowledge on one port; routes, the
// policy and the log do what the file says, and the metrics are the client's count.
func TestPlain(t *testing.T) {
	r := rig.New(t, parrel)
	a := startApp(r)
	p := start(r, "h1.yaml", map[int]int{8000: a.port})
	base := "http://" + p.at(8080)
	want := map[string]int{}
	for _, h2 := range []bool{false, true} {
		c, proto := client(t, h2, nil), "HTTP/1.1"
		if h2 {
			proto = "HTTP/2.0"
		}
		for range 10 {
			if code, got, body := get(t, c, base+"/x"); code != 200 || got != proto || body != "HTTP/1.1 GET /x" {
				t.Fatalf("%s: %d %s %q", proto, code, got, body)
			}
			want["200"]++
		}
		if code, _, body := get(t, c, base+"/health"); code != 200 || body != "well\n" {
			t.Errorf("%s: /health gives %d %q", proto, code, body)
		}
		want["200"]++
		for _, path := range []string{"/admin", "/admin/users", "/%61dmin"} {
			if code, _, _ := get(t, c, base+path); code != 403 {
				t.Errorf("%s: %s gives %d, and the policy denies it", proto, path, code)
			}
			want["403"]++
		}
	}
	r.Eventually(soon, "the metrics are the client's count", func() error {
		if got := p.requests(r); fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("%v, want %v", got, want)
		}
		return nil
	})
	for page, text := range map[string]string{"/config_dump": `"cluster_name": "app"`, "/clusters": "app::127.0.0.1:", "/listeners": "http"} {
		body, err := rig.Fetch(p.admin() + page)
		if err != nil || !strings.Contains(body, text) {
			t.Errorf("%s does not say %q: %v", page, text, err)
		}
	}
	r.Eventually(soon, "the access log has what failed", func() error {
		if n := strings.Count(p.Log(), `"status":403`); n != want["403"] || strings.Contains(p.Log(), `"status":200`) {
			return fmt.Errorf("%d lines of %d", n, want["403"])
		}
		return nil
	})
}

// TestEnd: SIGTERM lets the request in hand end, and the process ends well.
func TestEnd(t *testing.T) {
	r := rig.New(t, parrel)
	a := startApp(r)
	p := start(r, "h1.yaml", map[int]int{8000: a.port})
	var wg sync.WaitGroup
	wg.Go(func() {
		if code, _, body := get(t, client(t, false, nil), "http://"+p.at(8080)+"/slow"); code != 200 {
			t.Errorf("the request in hand: %d %q", code, body)
		}
	})
	r.Eventually(soon, "the request is under way", func() error {
		if a.conns.Load() == 0 {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	p.Stop(soon)
	wg.Wait()
	if code := p.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestTLS: termination with files, ALPN, versions, and a certificate that is
// exchanged under way.
func TestTLS(t *testing.T) {
	r := rig.New(t, parrel)
	ca := pki.New(t, r.Dir)
	ca.Leaf("", 2, []string{"gw.example"}, "")
	a := startApp(r)
	p := start(r, "tls.yaml", map[int]int{8000: a.port})
	site := fmt.Sprintf("https://gw.example:%d", p.port(8443))
	conf := func() *tls.Config { return &tls.Config{RootCAs: ca.Pool(), ServerName: "gw.example"} }
	for _, h2 := range []bool{false, true} {
		c, proto := client(t, h2, conf()), "HTTP/1.1"
		if h2 {
			proto = "HTTP/2.0"
		}
		if code, got, body := get(t, c, site+"/x"); code != 200 || got != proto || body != "HTTP/1.1 GET /x" {
			t.Errorf("%d %s %q", code, got, body)
		}
	}
	if code, _, _ := get(t, client(t, false, conf()), "https://"+p.at(8443)+"/x"); code != 421 {
		t.Errorf("another host than the connection's gives %d", code)
	}
	old := conf()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if code, _, _ := get(t, client(t, false, old), site+"/x"); code != 200 {
		t.Errorf("TLS 1.2 gives %d", code)
	}
	tooOld := conf()
	tooOld.MinVersion, tooOld.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if c, err := tls.Dial("tcp", p.at(8443), tooOld); err == nil {
		c.Close()
		t.Error("TLS 1.1 is spoken")
	}
	if resp, err := http.Get("http://" + p.at(8443) + "/x"); err == nil {
		resp.Body.Close()
		t.Error("plaintext is answered")
	}

	ca.Leaf("", 77, []string{"gw.example"}, "")
	r.Eventually(soon, "the new certificate is presented", func() error {
		c, err := tls.Dial("tcp", p.at(8443), conf())
		if err != nil {
			return err
		}
		defer c.Close()
		if n := c.ConnectionState().PeerCertificates[0].SerialNumber; n.Int64() != 77 {
			return fmt.Errorf("it is number %s", n)
		}
		return nil
	})
}

// TestTCP: opaque bytes pass, and the policy refuses.
func TestTCP(t *testing.T) {
	r := rig.New(t, parrel)
	ln, port := rig.Listen(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("hello\n"))
			_ = c.Close()
		}
	})
	defer wg.Wait()
	defer ln.Close()
	p := start(r, "tcp.yaml", map[int]int{8000: port})
	c, err := net.Dial("tcp", p.at(8081))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := line(t, c); got != "hello\n" {
		t.Errorf("came %q", got)
	}
	denied := start(r, "tcp.yaml", map[int]int{8000: port}, "127.0.0.0", "192.0.2.0")
	d, err := net.Dial("tcp", denied.at(8081))
	if err == nil { // else the reset was quicker
		defer d.Close()
		_ = d.SetReadDeadline(time.Now().Add(soon))
		if n, err := d.Read(make([]byte, 10)); err == nil || n > 0 {
			t.Errorf("a stranger got %d bytes, %v", n, err)
		}
	}
	r.Eventually(soon, "the refusal is in the log", func() error {
		if !strings.Contains(denied.Log(), "code=rbac_denied") {
			return fmt.Errorf("it is not")
		}
		return nil
	})
}

// TestPair: two sidecars with mutual TLS carry the requests of many HTTP/1.1
// clients as streams on few connections, and they come out as HTTP/1.1.
func TestPair(t *testing.T) {
	const clients, each, few = 64, 20, 8
	r := rig.New(t, parrel)
	ca := pki.New(t, r.Dir)
	ca.Leaf("server-", 2, nil, "spiffe://example.org/server")
	ca.Leaf("client-", 3, nil, "spiffe://example.org/client")
	a := startApp(r)
	server := start(r, "pair-server.yaml", map[int]int{8000: a.port})
	wire := startRelay(r, server.at(8443))
	out := start(r, "pair-client.yaml", map[int]int{8443: wire.port})

	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			c := client(t, false, nil)
			for j := range each {
				path := fmt.Sprintf("/%d/%d", i, j)
				resp, err := c.Get("http://" + out.at(8080) + path)
				if err != nil {
					t.Error(err)
					return
				}
				body := make([]byte, 100)
				n, _ := resp.Body.Read(body)
				resp.Body.Close()
				if resp.StatusCode != 200 || string(body[:n]) != "HTTP/1.1 GET "+path {
					t.Errorf("%s: %d %q", path, resp.StatusCode, body[:n])
					return
				}
			}
		})
	}
	wg.Wait()
	if n := wire.conns.Load(); n > few {
		t.Errorf("%d connections between the sidecars for %d clients; want %d at the most", n, clients, few)
	}
	for _, p := range []*proxy{out, server} {
		r.Eventually(soon, p.Name+" counts what the clients do", func() error {
			if got := p.requests(r); got["200"] != clients*each || len(got) != 1 {
				return fmt.Errorf("%v", got)
			}
			return nil
		})
	}

	// Another client's certificate, of the same CA: the policy denies it. One
	// without a certificate has no connection at all.
	ca.Leaf("client-", 4, nil, "spiffe://example.org/other")
	other := start(r, "pair-client.yaml", map[int]int{8443: wire.port})
	if code, _, _ := get(t, client(t, false, nil), "http://"+other.at(8080)+"/"); code != 403 {
		t.Errorf("another client gets %d", code)
	}
	c, err := tls.Dial("tcp", server.at(8443), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err == nil {
		_ = c.SetReadDeadline(time.Now().Add(soon))
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("a client without a certificate got %d bytes", n)
		}
		c.Close()
	}
}

// TestServerIsChecked: a server with another name than the one wanted gets no
// request.
func TestServerIsChecked(t *testing.T) {
	r := rig.New(t, parrel)
	ca := pki.New(t, r.Dir)
	ca.Leaf("server-", 2, nil, "spiffe://example.org/impostor")
	ca.Leaf("client-", 3, nil, "spiffe://example.org/client")
	a := startApp(r)
	server := start(r, "pair-server.yaml", map[int]int{8000: a.port})
	out := start(r, "pair-client.yaml", map[int]int{8443: server.port(8443)})
	code, _, body := get(t, client(t, false, nil), "http://"+out.at(8080)+"/")
	if code != 503 || a.conns.Load() != 0 {
		t.Errorf("%d %q, and the application has seen %d connections", code, body, a.conns.Load())
	}
}

// TestRootsAreTakenAway: an open connection of a client whose root is gone ends.
func TestRootsAreTakenAway(t *testing.T) {
	r := rig.New(t, parrel)
	ca := pki.New(t, r.Dir)
	ca.Leaf("server-", 2, nil, "spiffe://example.org/server")
	ca.Leaf("client-", 3, nil, "spiffe://example.org/client")
	a := startApp(r)
	server := start(r, "pair-server.yaml", map[int]int{8000: a.port})
	cert, err := tls.LoadX509KeyPair(filepath.Join(r.Dir, "client-cert.pem"), filepath.Join(r.Dir, "client-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.Dial("tcp", server.at(8443), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if got := line(t, c); got != "HTTP/1.1 200 OK\r\n" {
		t.Fatalf("the answer is %q", got)
	}
	pki.New(t, r.Dir) // another ca.pem
	_ = c.SetReadDeadline(time.Now().Add(soon))
	for {
		if _, err := c.Read(make([]byte, 1024)); err != nil {
			if os.IsTimeout(err) {
				t.Error("the connection is still open")
			}
			return
		}
	}
}

func (p *proxy) port(n int) int {
	_, port, _ := net.SplitHostPort(p.at(n))
	var out int
	_, _ = fmt.Sscan(port, &out)
	return out
}

// TestEnds: what cannot run ends at once with code 1 and the reason.
func TestEnds(t *testing.T) {
	r := rig.New(t, parrel)
	taken, port := rig.Listen(t)
	defer taken.Close()
	text, err := os.ReadFile(examples + "tcp.yaml")
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) string {
		file := filepath.Join(r.Dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	ports := strings.NewReplacer("8081", fmt.Sprint(port), "9901", fmt.Sprint(rig.Port(t)))
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"port in use":   {[]string{"-c", write("taken.yaml", ports.Replace(string(text)))}, "address already in use"},
		"public admin":  {[]string{"-c", write("public.yaml", strings.Replace(string(text), "address: 127.0.0.1", "address: 0.0.0.0", 1))}, "is not on loopback"},
		"no file":       {[]string{"-c", filepath.Join(r.Dir, "none.yaml")}, "no such file"},
		"bad file":      {[]string{"-c", write("bad.yaml", "static_resources: {listener: []}\n")}, "bad.yaml:1:20: static_resources.listener: unknown field"},
		"inline":        {[]string{"--config-yaml", "{static_resources: 5}"}, "--config-yaml:1:20: static_resources: is the value 5"},
		"both":          {[]string{"-c", "x", "--config-yaml", "y"}, "give one"},
		"control plane": {[]string{"-c", "x", "--grpc-addr", "cp:1"}, "--grpc-addr: a static configuration has no control plane"},
		"mode":          {[]string{"--mode", "validate"}, "give it by -c FILE"},
		"no certificate": {[]string{"-c", examples + "tls.yaml", "--mode", "validate"},
			"certificate_chain: open cert.pem: no such file"},
	} {
		out, errs, err := r.Command(append([]string{"sidecar"}, c.args...)...)
		if err == nil || err.Error() != "exit status 1" || !strings.Contains(errs, c.want) {
			t.Errorf("%s: %v, %q, %q; want %q", name, err, out, errs, c.want)
		}
	}
	if out, errs, err := r.Command("sidecar", "-c", examples+"h1.yaml", "--mode", "validate"); err != nil || !strings.HasSuffix(out, "h1.yaml OK\n") {
		t.Errorf("a good file: %v, %q, %q", err, out, errs)
	}
}
