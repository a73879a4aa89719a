package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"sync/atomic"
	"testing"
)

const page = `# HELP istio_requests_total HTTP and gRPC requests.
# TYPE istio_requests_total counter
istio_requests_total{reporter="source",response_code="200"} 20000
istio_requests_total{reporter="source",response_code="0",path="a b}"} 3 1700000000
istio_requests_total_not 7
istio_request_bytes_count{reporter="source"} 5
`

func TestRequestCount(t *testing.T) {
	for in, want := range map[string]float64{page: 20003, "": 0, "istio_requests_total 5\n": 5} {
		if got, err := requestCount(in); err != nil || got != want {
			t.Errorf("%q: %v, %v, want %v", in, got, err, want)
		}
	}
	for _, bad := range []string{"istio_requests_total{} \n", "istio_requests_total{} many\n"} {
		if v, err := requestCount(bad); err == nil {
			t.Errorf("%q gave %v and no error", bad, v)
		}
	}
}

// A proxy that loses a request, or counts one twice, is found.
func TestAgree(t *testing.T) {
	var n atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stats/prometheus" {
			fmt.Fprintf(w, "istio_requests_total{} %d\n", n.Load())
		}
	}))
	defer srv.Close()
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	s := &Series{exact: "x"}
	for _, c := range []struct {
		counted, client, slack float64
		ok                     bool
	}{{100, 100, 0, true}, {99, 100, 0, false}, {101, 100, 0, false}, {164, 100, 64, true}, {165, 100, 64, false}} {
		before, err := counts([]int{port}, s)
		if err != nil {
			t.Fatal(err)
		}
		n.Add(int64(c.counted))
		if err := agree([]int{port}, s, before, c.client, c.slack, 0); c.ok != (err == nil) || !c.ok && !errors.Is(err, errCount) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if got, err := counts([]int{port}, &Series{}); got != nil || err != nil {
		t.Errorf("a series that compares no counts asked for them: %v, %v", got, err)
	}
}
