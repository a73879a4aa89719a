package traffic

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/test/conformance/procmesh"
)

// load asks without pause until stop is called, which returns the number of
// requests, of failures, and the first failure.
func load(t *testing.T, url string, workers int) (stop func() (all, failed int64, first string)) {
	t.Helper()
	tr := &http.Transport{MaxIdleConnsPerHost: workers}
	client := &http.Client{Transport: tr, Timeout: 30 * time.Second}
	var all, failed atomic.Int64
	var first atomic.Value
	ended := make(chan struct{})
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				select {
				case <-ended:
					return
				default:
				}
				r, err := client.Get(url)
				if err == nil {
					var b []byte
					b, err = io.ReadAll(r.Body)
					r.Body.Close()
					if err == nil && r.StatusCode != 200 {
						err = fmt.Errorf("status %d, %v, %s", r.StatusCode, r.Header, b)
					}
				}
				all.Add(1)
				if err != nil {
					failed.Add(1)
					first.CompareAndSwap(nil, err.Error())
				}
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	return func() (int64, int64, string) {
		close(ended)
		wg.Wait()
		tr.CloseIdleConnections()
		s, _ := first.Load().(string)
		return all.Load(), failed.Load(), s
	}
}

// TestInstances: of three instances, one's sidecar is killed, one leaves as its
// users are told to (the definition goes, then the process ends), and one
// starts again, all under load: no request fails.
func TestInstances(t *testing.T) {
	t.Parallel()
	a := &app{seen: map[string]int{}}
	w := newWorld(t, service{name: "app", protocol: "http", apps: []string{serveHTTP(t, a), serveHTTP(t, a), serveHTTP(t, a)}, apart: true})
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"killed", func() { w.sidecars["app-1"].Kill() }},
		{"started again", func() { w.sidecar("app-1", "app", "app-1") }},
		{"left", func() {
			w.m.Remove("app-2.hcl")
			w.forgotten(t, w.proxy["app-2"])
			w.sidecars["app-2"].Stop()
		}},
		{"ended without a word", func() { w.sidecars["app-3"].Stop() }},
	} {
		stop := load(t, w.url("app", "/status/200"), 8)
		time.Sleep(300 * time.Millisecond)
		step.do()
		time.Sleep(700 * time.Millisecond)
		all, failed, first := stop()
		t.Logf("%s: %d requests", step.name, all)
		if failed > 0 {
			t.Errorf("%s: %d of %d requests failed, the first: %s", step.name, failed, all, first)
		}
	}
}

// forgotten waits until the caller no longer has the endpoint.
func (w *world) forgotten(t *testing.T, addr string) {
	t.Helper()
	procmesh.Eventually(t, func() error {
		_, body, err := w.ask("web", "/clusters")
		if err == nil && strings.Contains(body, addr) {
			err = fmt.Errorf("the caller still has the endpoint %s", addr)
		}
		return err
	})
}
