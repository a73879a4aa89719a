package consul

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// FollowLocal gives what is registered, proxies with their services, and each
// change; an agent that does not answer changes nothing.
func TestFollowLocal(t *testing.T) {
	var mu sync.Mutex
	services := map[string]*api.AgentService{
		"web-1":       {ID: "web-1", Service: "web", Port: 8080, Meta: map[string]string{"parrel-uid": "1001"}},
		"web-1-proxy": {ID: "web-1-proxy", Service: "web-proxy", Kind: api.ServiceKindConnectProxy, Port: 21000, Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: "web", DestinationServiceID: "web-1"}},
	}
	dead := true
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case dead:
			http.Error(w, "no leader", http.StatusInternalServerError)
		case r.URL.Path == "/v1/agent/services":
			_ = json.NewEncoder(w).Encode(services)
		default:
			_, _ = w.Write([]byte(`{"Config":{"NodeName":"n1"},"Member":{"Addr":"10.0.0.1"}}`))
		}
	}))
	defer srv.Close()
	r, err := NewRegistrar(Config{Address: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	lists, said := make(chan []LocalService, 10), make(chan string, 10)
	done := make(chan error, 1)
	go func() {
		done <- r.FollowLocal(ctx, func(l []LocalService) { lists <- l }, func(err error) { said <- err.Error() }, func() { said <- "answers" })
	}()
	next := func(ch chan string) string {
		t.Helper()
		select {
		case s := <-ch:
			return s
		case <-time.After(time.Minute):
			t.Fatal("nothing came")
			return ""
		}
	}
	list := func() []LocalService {
		t.Helper()
		select {
		case l := <-lists:
			return l
		case <-time.After(time.Minute):
			t.Fatal("no list came")
			return nil
		}
	}
	set := func(f func()) { mu.Lock(); defer mu.Unlock(); f() }
	if s := next(said); !strings.Contains(s, "no leader") {
		t.Error(s)
	}
	set(func() { dead = false })
	if s := next(said); s != "answers" {
		t.Error(s)
	}
	l := list()
	if len(l) != 1 || l[0].Proxy == nil || l[0].Proxy.ID != "web-1-proxy" || l[0].Meta["parrel-uid"] != "1001" || l[0].Address != "10.0.0.1" {
		t.Errorf("%+v", l)
	}
	set(func() { services["api-1"] = &api.AgentService{ID: "api-1", Service: "api", Port: 1} })
	if l := list(); len(l) != 2 {
		t.Errorf("%+v", l)
	}
	set(func() { dead = true })
	next(said)
	set(func() { dead = false; delete(services, "web-1-proxy") })
	next(said)
	if l := list(); len(l) != 2 || l[1].Proxy != nil {
		t.Errorf("%+v", l)
	}
	cancel()
	<-done
	if len(lists) != 0 {
		t.Error("lists without a change")
	}
}
