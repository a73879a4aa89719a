package conformance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/parrel-mesh/parrel/test/conformance/procmesh"
)

func errorf(format string, args ...any) error { return fmt.Errorf(format, args...) }

func permissionDenied(err error) bool { return status.Code(err) == codes.PermissionDenied }

// servePricing serves pricing as the instance "plain", which does not know who
// calls, until stop or the test's end.
func servePricing(t *testing.T, srv *grpc.Server, addr string) (stop func()) {
	t.Helper()
	answer := wrapperspb.String("42 from plain for somebody")
	srv.RegisterService(&grpc.ServiceDesc{
		ServiceName: "pricing.Pricing", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Quote",
			Handler: func(_ any, _ context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				return answer, dec(new(emptypb.Empty))
			}}},
		Streams: []grpc.StreamDesc{{StreamName: "Watch", ServerStreams: true, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
			for {
				if err := s.RecvMsg(new(emptypb.Empty)); errors.Is(err, io.EOF) {
					return nil
				} else if err != nil {
					return err
				}
				if err := s.SendMsg(answer); err != nil {
					return err
				}
			}
		}}},
	}, nil)
	l := listen(t, addr)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			srv.Stop()
			if err := <-done; err != nil {
				t.Errorf("serving on %s: %v", addr, err)
			}
		}
	}
	t.Cleanup(stop)
	return stop
}

// TestSidecarToXDSServer: an application behind parrel's sidecar calls grpc-go's
// xDS server.
func TestSidecarToXDSServer(t *testing.T) {
	m := newMesh(t)
	startServer(t, m, "pricing-1", procmesh.Addr(t), m.SVID("pricing"))
	for _, who := range []string{"web", "stranger"} {
		up := procmesh.Addr(t)
		m.Write(who+"-2.hcl", proxied(who, who+"-2", procmesh.Addr(t), procmesh.Addr(t), "pricing", up))
		m.Sidecar(who+"-2", who)
		c := newClient(t, "passthrough:///"+up, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if who == "stranger" {
			c.fails(t, codes.PermissionDenied)
			continue
		}
		c.spreads(t, "pricing-1")
		all, err := c.watch(5)
		if err != nil || len(all) != 5 || !strings.HasSuffix(all[0], procmesh.SPIFFEID("web")) {
			t.Errorf("stream through the sidecar: %q, %v", all, err)
		}
	}
}

// TestXDSClientToSidecar: grpc-go's xDS client calls an application behind
// parrel's sidecar, beside a native one.
func TestXDSClientToSidecar(t *testing.T) {
	m := newMesh(t)
	app := procmesh.Addr(t)
	servePricing(t, grpc.NewServer(), app)
	m.Write("pricing-2.hcl", proxied("pricing", "pricing-2", app, procmesh.Addr(t)))
	m.Sidecar("pricing-2", "pricing")
	web, stranger := xdsClient(t, m, "web-1", m.SVID("web")), xdsClient(t, m, "stranger-1", m.SVID("stranger"))
	web.spreads(t, "plain")
	if all, err := web.watch(5); err != nil || len(all) != 5 {
		t.Errorf("stream: %q, %v", all, err)
	}
	if _, err := stranger.quote(); err == nil {
		t.Error("stranger called pricing, whose intentions do not name it")
	} else if c := status.Code(err); c != codes.PermissionDenied && c != codes.Unavailable {
		t.Errorf("stranger: %v", err)
	}
	startServer(t, m, "pricing-1", procmesh.Addr(t), m.SVID("pricing"))
	web.spreads(t, "plain", "pricing-1")
}

// httpApp answers every request with its name.
func httpApp(t *testing.T, name string) string {
	t.Helper()
	addr := procmesh.Addr(t)
	l := listen(t, addr)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello from "+name) })}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return addr
}

// TestPlainClients: curl and Go's net/http, with nothing of the mesh but the
// files of `parrel svid`, at a sidecar's public listener.
func TestPlainClients(t *testing.T) {
	m := newMesh(t)
	m.Protocol("api", "http")
	m.Intentions("api", "web")
	public := procmesh.Addr(t)
	m.Write("api-1.hcl", proxied("api", "api-1", httpApp(t, "api"), public))
	m.Sidecar("api-1", "api")
	dirs := map[string]string{"web": m.SVID("web"), "stranger": m.SVID("stranger")}

	for _, alpn := range []string{"http/1.1", "h2"} {
		get := func(who, expect string) (string, error) {
			tr := &http.Transport{TLSClientConfig: plainTLS(t, dirs[who], expect, alpn), ForceAttemptHTTP2: alpn == "h2"}
			defer tr.CloseIdleConnections()
			resp, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Get("https://" + public + "/")
			if err != nil {
				return "", err
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			return resp.Proto + " " + resp.Status + " " + string(b), err
		}
		if text, err := get("web", "api"); err != nil || !strings.Contains(text, "hello from api") || (alpn == "h2") != strings.HasPrefix(text, "HTTP/2") {
			t.Errorf("%s: web: %q, %v", alpn, text, err)
		}
		if text, err := get("stranger", "api"); err == nil && !strings.Contains(text, " 403 ") {
			t.Errorf("%s: stranger got %q", alpn, text)
		}
		if text, err := get("web", "pricing"); err == nil || !strings.Contains(err.Error(), "not pricing") {
			t.Errorf("%s: api passed for pricing: %q, %v", alpn, text, err)
		}
	}

	resp, err := (&http.Client{Timeout: 20 * time.Second}).Get("http://" + public + "/")
	if err == nil {
		line, _ := bufio.NewReader(resp.Body).ReadString('\n')
		resp.Body.Close()
		if strings.Contains(line, "hello") {
			t.Errorf("plaintext was answered: %s %q", resp.Status, line)
		}
	}

	t.Run("curl", func(t *testing.T) { curlAt(t, public, dirs) })
}

// curlAt calls a public listener with curl. curl knows no SPIFFE ids, only names
// of hosts, of which an SVID has none: --insecure leaves the server unchecked;
// the client is checked all the same.
func curlAt(t *testing.T, public string, dirs map[string]string) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is not installed; net/http has made the same calls")
	}
	curl := func(who string, flags ...string) (string, error) {
		args := append([]string{"--silent", "--show-error", "--max-time", "20", "--insecure", "--write-out", "%{http_code}"}, flags...)
		if who != "" {
			args = append(args, "--cert", filepath.Join(dirs[who], "cert.pem"), "--key", filepath.Join(dirs[who], "key.pem"))
		}
		out, err := exec.Command("curl", append(args, "https://"+public+"/")...).CombinedOutput()
		return string(out), err
	}
	for _, flag := range []string{"--http1.1", "--http2"} {
		if out, err := curl("web", flag); err != nil || !strings.Contains(out, "hello from api") || !strings.HasSuffix(out, "200") {
			t.Errorf("curl %s: %v\n%s", flag, err, out)
		}
		if out, err := curl("stranger", flag); err == nil && !strings.HasSuffix(out, "403") {
			t.Errorf("curl %s as stranger: %s", flag, out)
		}
		if out, err := curl("", flag); err == nil {
			t.Errorf("curl %s without a certificate: %s", flag, out)
		}
	}
}

// TestSidecarsByStateOfTheWorld: parrel's own sidecars with --sotw.
func TestSidecarsByStateOfTheWorld(t *testing.T) {
	m := newMesh(t)
	m.Protocol("api", "http")
	m.Intentions("api", "web")
	up := procmesh.Addr(t)
	m.Write("api-1.hcl", proxied("api", "api-1", httpApp(t, "api"), procmesh.Addr(t)))
	m.Write("web-2.hcl", proxied("web", "web-2", procmesh.Addr(t), procmesh.Addr(t), "api", up))
	m.Sidecar("api-1", "api", "--sotw")
	m.Sidecar("web-2", "web", "--sotw")
	get := func(want string) {
		t.Helper()
		procmesh.Eventually(t, func() error {
			c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
			resp, err := c.Get("http://" + up + "/")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				return err
			}
			if got := resp.Status + " " + string(b); !strings.Contains(got, want) {
				return errorf("got %q, want %q", got, want)
			}
			return nil
		})
	}
	get("hello from api")
	m.Intentions("api") // updates arrive, too
	get("403")
	m.Intentions("api", "web")
	m.Write("api-2.hcl", proxied("api", "api-2", httpApp(t, "api two"), procmesh.Addr(t)))
	m.Sidecar("api-2", "api", "--sotw")
	m.Remove("api-1.hcl")
	get("hello from api two")
}
