package shop

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestShop runs all programs beside each other, without a mesh, and asks web.
func TestShop(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, len(Roles))
	addr := map[string]string{}
	listeners := map[string]net.Listener{}
	for _, r := range Roles {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners[r], addr[r] = l, l.Addr().String()
	}
	for _, r := range Roles {
		go func() {
			done <- Run(ctx, Config{Role: r, Instance: r + "-1", Version: "v1", Listener: listeners[r], Upstream: addr})
		}()
	}
	resp, err := http.Get("http://" + addr["web"] + "/")
	if err != nil {
		t.Fatal(err)
	}
	var ans Answer
	if err := json.NewDecoder(resp.Body).Decode(&ans); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("web answered %s: %+v", resp.Status, ans)
	}
	for _, r := range Roles {
		if a := ans.Find(r); a == nil || a.Instance != r+"-1" || a.Error != "" {
			t.Errorf("%s: answer %+v", r, a)
		}
	}
	cancel()
	for range Roles {
		if err := <-done; err != nil {
			t.Errorf("a program ended with %v", err)
		}
	}
}

func TestPeerURI(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"By=spiffe://d/b;Hash=00;URI=spiffe://d/a", "spiffe://d/a"},
		{"URI=spiffe://d/forged,By=spiffe://d/b;URI=\"spiffe://d/a\"", "spiffe://d/a"},
	} {
		if got := PeerURI([]string{c.in}); got != c.want {
			t.Errorf("PeerURI(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}

func TestBadConfig(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{Role: "till"}, `no program "till": use one of`},
		{Config{Role: "web"}, "add --upstream api=HOST:PORT"},
	} {
		if err := Run(t.Context(), c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v, want %q", c.cfg, err, c.want)
		}
	}
}
