package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// TestCheckReady: the exit code and the sentence of each answer that a sidecar,
// or what is none, can give.
func TestCheckReady(t *testing.T) {
	var status atomic.Int64
	var asked atomic.Int64
	body := "LIVE\n"
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/ready" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		if n := asked.Add(1); status.Load() == 0 { // ready at the third question
			if n < 3 {
				http.Error(w, "INITIALIZING", http.StatusServiceUnavailable)
				return
			}
			status.Store(http.StatusOK)
		}
		w.WriteHeader(int(status.Load()))
		_, _ = w.Write([]byte(body)) // the asker may have gone
	})
	tcp := httptest.NewServer(h)
	defer tcp.Close()
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	sock := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	sock.Start()
	defer sock.Close()
	address := strings.TrimPrefix(tcp.URL, "http://")
	_, port, _ := net.SplitHostPort(address)
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()

	for _, c := range []struct {
		args, body string
		status     int64
		out, err   string
	}{
		{"--admin " + address, "LIVE\n", 200, "LIVE\n", ""},
		{"-admin http://" + address + "/", "LIVE\n", 200, "LIVE\n", ""},
		{"--admin 0.0.0.0:" + port, "LIVE\n", 200, "LIVE\n", ""},
		{"--admin :" + port, "LIVE\n", 200, "LIVE\n", ""},
		{"--admin unix:" + path, "LIVE\n", 200, "LIVE\n", ""},
		{"--admin " + path, "LIVE\n", 200, "LIVE\n", ""},
		{"-q --admin " + address, "LIVE\n", 200, "", ""},
		{"--wait 30s --admin " + address, "LIVE\n", 0, "LIVE\n", ""},
		{"--admin " + address, "INITIALIZING\nweb: no identity\n", 503, "", "check ready: the sidecar is not ready: INITIALIZING\nweb: no identity"},
		{"--wait 30ms --admin " + address, "DRAINING\n", 503, "", "check ready: the sidecar is not ready: DRAINING"},
		{"--quiet --admin " + address, "DRAINING\n", 503, "", " "},
		{"--admin " + address, "hello", 404, "", "is no sidecar: GET /ready gave 404 Not Found: hello"},
		{"--admin " + gone.Addr().String(), "", 200, "", "is it running, and is this its --admin-bind or --ready-bind?"},
		{"--admin unix:" + path + ".not", "", 200, "", "is it running"},
		{"--admin 15000", "", 200, "", `--admin "15000" is no address: write HOST:PORT`},
		{"--timeout 0s --admin " + address, "", 200, "", "--timeout 0s"},
		{"--wait -1s --admin " + address, "", 200, "", "--wait -1s"},
	} {
		status.Store(c.status)
		asked.Store(0)
		body = c.body
		cmd := newRoot()
		var out strings.Builder
		cmd.SetOut(&out)
		err := cmd.run(context.Background(), append([]string{"check", "ready"}, strings.Fields(c.args)...))
		if out.String() != c.out {
			t.Errorf("%s: printed %q, want %q", c.args, out.String(), c.out)
		}
		switch {
		case err == nil && c.err != "":
			t.Errorf("%s: no error, want %q", c.args, c.err)
		case err != nil && c.err == "":
			t.Errorf("%s: %v", c.args, err)
		case err != nil && c.err != " " && !strings.Contains(err.Error(), c.err):
			t.Errorf("%s: %q, want %q", c.args, err, c.err)
		case c.err == " " && err.Error() != "":
			t.Errorf("%s: says %q although it is to be quiet", c.args, err)
		}
	}
}
