package file

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/discovery"
)

func TestBadFiles(t *testing.T) {
	node := discovery.Node{Name: "n", Address: "127.0.0.1", Datacenter: "dc1"}
	for _, c := range []struct{ name, text, want string }{
		{"x.hcl", "service {\n  name = \"web\"\n  prot = 80\n}", "x.hcl:3: prot: Consul has no such field here"},
		{"x.hcl", "service {\n  name = \"web\"\n  port = 70000\n}", "x.hcl:3: Port: 70000 is no port"},
		{"x.hcl", "service {\n  name = \"web\"\n", "x.hcl:3"},
		{"x.hcl", "service {\n  port = 80\n}", "Name: a service must have a name"},
		{"x.hcl", "name = \"web\"", "x.hcl:1: \"name\" stands outside of any service"},
		{"x.hcl", "service { name = \"a\" }\nservice { name = \"a\" }", "x.hcl:2: the service id \"a\" stands in this file twice, first in line 1"},
		{"x.hcl", "services = [{ name = \"a\" connect { sidecar_service {} } },\n { name = \"a-sidecar-proxy\" }]", "x.hcl:2: the service id \"a-sidecar-proxy\""},
		{"x.hcl", "config_entries { bootstrap = [{ kind = \"service-defaults\" name = \"a\" },\n{ kind = \"service-defaults\" name = \"a\" }] }", "x.hcl:2: the entry service-defaults \"a\" stands in this file twice"},
		{"x.hcl", "service {\n name = \"web\"\n connect {\n  sidecar_service {\n   proxy {\n    upstreams = [\n     { local_bind_port = 1 }\n    ]\n   }\n  }\n }\n}", "x.hcl:7: Connect.SidecarService.Proxy.Upstreams[0].DestinationName"},
		{"x.hcl", "Kind = \"service-intentions\"\nName = \"api\"\nSources = [\n {\n  Name = \"web\"\n  Action = \"perhaps\"\n }\n]", "x.hcl:6: Sources[0].Action"},
		{"x.hcl", "datacenter = \"dc1\"", "x.hcl:1: \"datacenter\" defines neither"},
		{"x.hcl", "", "the file is empty"},
		{"x.json", "{\n \"service\": {\n  \"name\": \"web\",\n  \"port\": \"eighty\"\n }\n}", "x.json:4: port: want a whole number"},
		{"x.json", "{\n \"service\": {\n  \"name\": \"web\",,\n }\n}", "x.json:3"},
		{"x.json", "{\"service\": {\"name\": \"a\", \"name\": \"b\"}}", "stands twice in one object"},
		{"x.json", "[1]", "no JSON object"},
		{"x.hcl", strings.Repeat("a", maxFile+1), "more than the"},
	} {
		d, p := load(c.name, []byte(c.text), node)
		if p == nil {
			t.Errorf("%.80q was taken: %+v", c.text, d)
			continue
		}
		got := strings.TrimPrefix(p.Origin.String(), "file ") + ": " + p.Reason
		if !strings.Contains(got, c.want) || p.Remedy == "" {
			t.Errorf("%.80q: %s; %s; want %s and a remedy", c.text, got, p.Remedy, c.want)
		}
	}
}

func TestGoodFiles(t *testing.T) {
	node := discovery.Node{Name: "n", Address: "127.0.0.1", Datacenter: "dc1"}
	for _, c := range []struct {
		text     string
		services []string
		entries  int
	}{
		{`service { name = "a" }`, []string{"a"}, 0},
		{`service "a" { name = "b" port = 1 }`, []string{"b"}, 0},
		{`services = [{ name = "a" }, { name = "b" }]`, []string{"a", "b"}, 0},
		{"service { name = \"a\" }\nservice { name = \"b\" }", []string{"a", "b"}, 0},
		{`{"services": [{"name": "a"}, {"id": "x", "name": "a"}]}`, []string{"a", "x"}, 0},
		{`{"service": {"Name": "a", "Connect": {"SidecarService": {"Port": 20000}}}}`, []string{"a", "a-sidecar-proxy"}, 0},
		{`service { name = "a" checks = [{ tcp = "1:1" interval = "1s" }, { http = "http://x" interval = "1s" }] }`, []string{"a"}, 0},
		{`Kind = "proxy-defaults" Name = "global" Config { protocol = "http" }`, nil, 1},
		{`service { name = "a" } config_entries { bootstrap { kind = "service-defaults" name = "a" protocol = "grpc" } }`, []string{"a"}, 1},
	} {
		d, p := load("x", []byte(c.text), node)
		if p != nil {
			t.Errorf("%s: %+v", c.text, p)
			continue
		}
		var got []string
		for _, r := range d.registrations {
			got = append(got, ids(r)...)
		}
		if !slices.Equal(got, c.services) || len(d.entries) != c.entries {
			t.Errorf("%s: services %q, %d entries", c.text, got, len(d.entries))
		}
	}
}

// TestBadStaysGood: a file that turns bad keeps what it said, a deleted one
// does not.
func TestBadStaysGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, map[string]string{"a.hcl": `service { name = "a" port = 1 }`, "b.hcl": `services = [{ id = "b1" name = "b" }, { id = "b2" name = "b" }]`, "i.hcl": `Kind = "service-intentions" Name = "a" Sources = [{ Name = "b" Action = "allow" }]`}, nil)
		defer f.stop()
		synctest.Wait()
		for _, text := range []string{`service { name = "a" port = `, "", `service { name = "b" id = "b1" }`} {
			f.write("a.hcl", text)
			f.wait(3 * time.Second)
			if f.view.service("a") == nil || len(f.view.problems()) != 1 {
				t.Errorf("%q: a = %v, problems %q", text, f.view.service("a"), f.view.problems())
			}
		}
		f.write("b.hcl", `service { id = "b1" name = "b" }`)
		f.wait(3 * time.Second)
		if n := len(f.view.service("b").Instances); n != 1 {
			t.Errorf("b has %d instances", n)
		}
		f.write("a.hcl", `service { name = "a" port = 2 }`)
		f.wait(3 * time.Second)
		if f.view.service("a").Instances[0].Port != 2 || len(f.view.problems()) != 0 {
			t.Errorf("mended: %+v, %q", f.view.service("a"), f.view.problems())
		}
		f.remove("a.hcl")
		f.remove("i.hcl")
		f.wait(1100 * time.Millisecond) // the directory is read at even seconds; this is the 16th
		if s := f.view.service("a"); s == nil || !s.Stale {
			t.Errorf("a deleted service before confirmation: %+v", s)
		}
		f.wait(time.Second)
		if f.view.service("a") != nil || len(f.view.now().entries) != 0 {
			t.Errorf("after confirmation: %+v, %v", f.view.service("a"), f.view.now().entries)
		}
		away := f.dir + "-away"
		if err := os.Rename(f.dir, away); err != nil {
			t.Fatal(err)
		}
		f.wait(10 * time.Second)
		if f.view.service("b") == nil || !f.view.now().status.Stale {
			t.Errorf("the directory is gone: %+v, %+v", f.view.service("b"), f.view.now().status)
		}
		if err := os.Rename(away, f.dir); err != nil {
			t.Fatal(err)
		}
		f.wait(3 * time.Second)
		if f.view.now().status.Stale {
			t.Errorf("the directory is back: %+v", f.view.now().status)
		}
	})
}

func TestPorts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sidecar := func(id string) string { return fmt.Sprintf(`service { name = %q connect { sidecar_service {} } }`, id) }
		f := start(t, map[string]string{"b.hcl": sidecar("b"), "c.hcl": sidecar("c")}, nil)
		defer f.stop()
		f.wait(time.Second)
		f.write("a.hcl", sidecar("a"))
		f.write("x.hcl", `service { name = "x" port = 21003 }`)
		f.wait(3 * time.Second)
		f.write("d.hcl", sidecar("d"))
		f.wait(3 * time.Second)
		for id, want := range map[string]int{"b": 21000, "c": 21001, "a": 21002, "d": 21004} {
			if got := f.view.service(id).Proxies[0].Port; got != want {
				t.Errorf("%s got %d, want %d", id, got, want)
			}
		}
	})
}

func TestChecks(t *testing.T) {
	web := func(check string) map[string]string {
		return map[string]string{"w.hcl": `service { name = "web" port = 80 check { ` + check + ` interval = "10s" timeout = "1s" } connect { sidecar_service {} } }`}
	}
	status := func(code int) func(net.Conn) {
		return func(c net.Conn) {
			defer c.Close()
			buf := make([]byte, 4096)
			_, _ = c.Read(buf)
			fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nLocation: http://elsewhere.test/\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", code, http.StatusText(code))
		}
	}
	for _, c := range []struct {
		check, addr string
		serve       func(net.Conn)
		want        discovery.Health
	}{
		{`tcp = "127.0.0.1:80"`, "127.0.0.1:80", accept, discovery.Passing},
		{`tcp = "127.0.0.1:80"`, "127.0.0.1:81", accept, discovery.Critical},
		{`http = "http://127.0.0.1:80/"`, "127.0.0.1:80", status(204), discovery.Passing},
		{`http = "http://127.0.0.1:80/"`, "127.0.0.1:80", status(429), discovery.Warning},
		{`http = "http://127.0.0.1:80/"`, "127.0.0.1:80", status(302), discovery.Critical},
		{`http = "http://127.0.0.1:80/"`, "127.0.0.1:80", status(500), discovery.Critical},
		{`grpc = "127.0.0.1:80"`, "127.0.0.1:80", accept, discovery.Critical},
		{`alias_service = "nobody"`, "", accept, discovery.Critical},
	} {
		t.Run(fmt.Sprintf("%s %s", c.check, c.want), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := start(t, web(c.check), nil)
				defer f.stop()
				f.net.set(c.addr, c.serve)
				f.wait(15 * time.Second)
				s := f.view.service("web")
				if s.Instances[0].Health != c.want || s.Proxies[0].Health != c.want {
					t.Errorf("health %s, of the sidecar %s, want %s: %+v", s.Instances[0].Health, s.Proxies[0].Health, c.want, s.Instances[0].Checks)
				}
			})
		})
	}
	for _, check := range []string{`ttl = "1s" status = "passing"`, `args = ["true"]`, `udp = "127.0.0.1:1"`, `docker_container_id = "x" args = ["true"]`} {
		t.Run("not run: "+check, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := start(t, web(check), nil)
				defer f.stop()
				f.wait(time.Second)
				if h := f.view.service("web").Instances[0].Health; h != discovery.Critical || len(f.view.problems()) != 1 {
					t.Errorf("health %s, problems %q", h, f.view.problems())
				}
			})
		})
	}
	t.Run("none are run", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := start(t, web(`tcp = "127.0.0.1:80"`), func(c *Config) { c.Checks = false })
			defer f.stop()
			f.wait(time.Second)
			if h := f.view.service("web").Proxies[0].Health; h != discovery.Passing {
				t.Errorf("health %s", h)
			}
		})
	})
}

// TestThresholds: success_before_passing and failures_before_critical.
func TestThresholds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, map[string]string{"w.hcl": `service { name = "web" check { tcp = "127.0.0.1:80" interval = "1s" status = "passing" success_before_passing = 3 failures_before_warning = 2 failures_before_critical = 3 } }`}, nil)
		defer f.stop()
		var got []string
		for i := range 8 {
			f.wait(time.Millisecond)
			got = append(got, f.view.service("web").Instances[0].Health.String())
			if i == 3 {
				f.net.set("127.0.0.1:80", accept)
			}
			f.wait(time.Second - time.Millisecond)
		}
		want := "[passing warning critical critical critical critical passing passing]"
		if fmt.Sprint(got) != want {
			t.Errorf("%v, want %s", got, want)
		}
	})
}

// TestNotify sees a real directory's changes without the rescan.
func TestNotify(t *testing.T) {
	dir := t.TempDir()
	s, err := New(Config{Dir: dir, Rescan: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan discovery.Delta, 16)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, discovery.SinkFunc(func(d discovery.Delta) { seen <- d })) }()
	defer func() { cancel(); <-done }()
	if d := <-seen; !d.Full {
		t.Fatalf("first delivery %+v", d)
	}
	if err := os.WriteFile(filepath.Join(dir, "a.hcl"), []byte(`service { name = "a" }`), 0o600); err != nil {
		t.Fatal(err)
	}
	select {
	case d := <-seen:
		if len(d.Services) != 1 {
			t.Errorf("%+v", d)
		}
	case <-time.After(10 * time.Second):
		t.Error("a new file was not noticed")
	}
}

func TestNew(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "no directory"}, {Config{Dir: file + "x"}, "name a directory that exists"}, {Config{Dir: file}, "is no directory"},
		{Config{Dir: filepath.Dir(file), DefaultIntention: "maybe"}, "allow or deny"},
	} {
		if _, err := New(c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.cfg, err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	for _, s := range []string{webHCL, `{"service": {"name": "a", "checks": [{"ttl": "1s"}]}}`, `Kind = "service-intentions" Name = "*" Sources = [{ Name = "*" Action = "deny" }]`,
		"config_entries { bootstrap { kind = \"mesh\" } }", "a = <<EOF\nx\nEOF\n", `{"Kind":"proxy-defaults","Name":"global","Config":{"a":[1,{"b":null}]}}`, "service \"x\" {", "[[[", `a = ["]`} {
		f.Add([]byte(s))
	}
	node := discovery.Node{Name: "n", Address: "127.0.0.1", Datacenter: "dc1"}
	f.Fuzz(func(t *testing.T, src []byte) {
		for _, name := range []string{"x.hcl", "x.json"} {
			d, p := load(name, src, node)
			if (d == nil) == (p == nil) {
				t.Fatalf("definitions %v and problem %v", d, p)
			}
			if p != nil && (p.Reason == "" || p.Remedy == "" || p.Origin.Line < 0) {
				t.Fatalf("a problem that does not help: %+v", p)
			}
		}
	})
}
