package cluster

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// Two workloads of one process call one endpoint: each request arrives under
// its own workload's identity, and the requests of one share one connection,
// which the other's never use.
func TestIdentitiesNeverShareAConnection(t *testing.T) {
	ca := newAuthority(t, "mesh.test")
	first, second, web := ca.identity(t, "first"), ca.identity(t, "second"), ca.identity(t, "web")
	inBubbleWith(t, 1, mtls.NewCell(first), nil, func(t *testing.T, b *bench) {
		var mu sync.Mutex
		conns := map[string]map[string]bool{} // remote address: identities
		b.serve(0, func(w http.ResponseWriter, r *http.Request) {
			peer := r.TLS.PeerCertificates[0].URIs[0].String()
			mu.Lock()
			if conns[r.RemoteAddr] == nil {
				conns[r.RemoteAddr] = map[string]bool{}
			}
			conns[r.RemoteAddr][peer] = true
			mu.Unlock()
			fmt.Fprintf(w, "%s %s", r.Header.Get("X-From"), peer)
		}, func(s *http.Server) {
			s.TLSConfig = mtls.ServerConfig(mtls.ServerParams{Params: mtls.Params{Identity: mtls.NewCell(web), ALPN: []string{"h2"}}})
		})
		other := NewManager(Deps{Net: b.caller, Identity: mtls.NewCell(second)})
		defer func() {
			for _, c := range other.clusters {
				c.close()
			}
		}()
		spec := b.spec(1, withTLS(webID))
		b.Update([]Spec{spec})
		other.Update([]Spec{spec})
		theirs, _ := other.Get("web")
		var wg sync.WaitGroup
		for i := range 100 {
			c, id := b.web(), first.SVID.ID.String()
			if i%2 == 1 {
				c, id = theirs, second.SVID.ID.String()
			}
			wg.Go(func() {
				r := request("GET", nil)
				r.Head.Header = stream.Header{{Name: "x-from", Value: id}}
				resp, _, err := c.RoundTrip(t.Context(), r, Options{})
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := io.ReadAll(resp.Body); string(got) != id+" "+id || err != nil {
					t.Errorf("%q %v", got, err)
				}
				resp.End()
			})
		}
		wg.Wait()
		if len(conns) != 2 {
			t.Errorf("%d connections for two identities", len(conns))
		}
		for a, ids := range conns {
			if len(ids) != 1 {
				t.Errorf("%s carried %v", a, ids)
			}
		}
	})
}
