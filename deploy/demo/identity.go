package demo

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/mtls/ca"
	"github.com/parrel-mesh/parrel/mtls/remote"
	xdsclient "github.com/parrel-mesh/parrel/xds/client"
)

// identityOf issues an SVID of service from authority, as only somebody with
// the CA's directory can.
func (w *world) identityOf(ctx context.Context, authority *ca.CA, service string) (*mtls.Cell, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	id, err := mtls.ServiceID(authority.TrustDomain(), "default", w.l.datacenter, service)
	if err != nil {
		return nil, err
	}
	issued, err := authority.Sign(ctx, mtls.Request{CSR: csr, ID: id, TTL: time.Hour})
	if err != nil {
		return nil, err
	}
	bundles, err := w.bundles()
	if err != nil {
		return nil, err
	}
	return mtls.NewCell(&mtls.Snapshot{
		SVID:    &x509svid.SVID{ID: id, Certificates: issued.Chain, PrivateKey: key},
		Bundles: bundles,
	}), nil
}

// member is an identity of service from the demo's own CA.
func (w *world) member(ctx context.Context, service string) (*mtls.Cell, error) {
	authority, err := w.openCA()
	if err != nil {
		return nil, err
	}
	return w.identityOf(ctx, authority, service)
}

// bundles are the demo CA's roots.
func (w *world) bundles() (*x509bundle.Set, error) {
	authority, err := w.openCA()
	if err != nil {
		return nil, err
	}
	return authority.Bundles()
}

// getAs sends a request to the users-1 sidecar's public listener with the
// identity given, and returns the response's status.
func (w *world) getAs(ctx context.Context, id mtls.Source) (int, error) {
	want, err := spiffeid.FromString(w.l.spiffeID("users"))
	if err != nil {
		return 0, err
	}
	cfg := mtls.ClientConfig(mtls.ClientParams{Params: mtls.Params{Identity: id, Authorise: mtls.Expect(want), ALPN: []string{"http/1.1"}}})
	conn, err := w.visitor().dial(ctx, "tcp", w.l.find("users-1").proxyAddr())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	return roundTrip(ctx, tls.Client(conn, cfg))
}

// roundTrip sends one request on a raw connection.
func roundTrip(ctx context.Context, conn net.Conn) (int, error) {
	if d, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(d); err != nil {
			return 0, err
		}
	}
	if _, err := io.WriteString(conn, "GET /users HTTP/1.1\r\nHost: users\r\nConnection: close\r\n\r\n"); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return resp.StatusCode, nil
}

// refused turns the outcome of an attempt that must fail into the check's: any
// answer below 400 means that it was let in, and a time-out that it was left
// hanging.
func refused(status int, err error) error {
	var ne net.Error
	switch {
	case err == nil && status != http.StatusForbidden:
		return fmt.Errorf("it was answered with status %d", status)
	case errors.As(err, &ne) && ne.Timeout():
		return errors.New("it was neither answered nor refused")
	}
	return nil
}

func plaintextRefused(ctx context.Context, w *world) error {
	conn, err := w.visitor().dial(ctx, "tcp", w.l.find("users-1").proxyAddr())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := refused(roundTrip(ctx, conn)); err != nil {
		return err
	}
	return w.logged(ctx, "sidecar-east", "plaintext")
}

// logged wants a line with that text in a process's log.
func (w *world) logged(ctx context.Context, name, text string) error {
	return w.eventually(ctx, func() error {
		b, err := os.ReadFile(w.l.logFile(name))
		if err != nil {
			return err
		}
		if !strings.Contains(string(b), text) {
			return fmt.Errorf("the log of %s does not give the reason (%q)", name, text)
		}
		return nil
	})
}

// anonymous is the TLS configuration of a client that trusts the mesh's roots and
// checks the server by them, but has no certificate of its own.
func (w *world) anonymous() (*tls.Config, error) {
	bundles, err := w.bundles()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2", "http/1.1"},
		// The peer has a SPIFFE id and no DNS name: its chain is checked below,
		// by the rules that sidecars apply.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, _, err := x509svid.Verify(cs.PeerCertificates, bundles)
			return err
		},
	}, nil
}

// noCertificateRefused: the client trusts the mesh's root and checks the
// server, but has no certificate of its own.
func noCertificateRefused(ctx context.Context, w *world) error {
	cfg, err := w.anonymous()
	if err != nil {
		return err
	}
	conn, err := w.visitor().dial(ctx, "tcp", w.l.find("users-1").proxyAddr())
	if err != nil {
		return err
	}
	defer conn.Close()
	return refused(roundTrip(ctx, tls.Client(conn, cfg)))
}

func rightIdentity(ctx context.Context, w *world) error {
	id, err := w.member(ctx, "api")
	if err != nil {
		return err
	}
	status, err := w.getAs(ctx, id)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("users answered api with status %d", status)
	}
	return err
}

func wrongIdentity(ctx context.Context, w *world) error {
	id, err := w.member(ctx, "orders")
	if err != nil {
		return err
	}
	return refused(w.getAs(ctx, id))
}

func foreignIdentity(ctx context.Context, w *world) error {
	td, err := spiffeid.TrustDomainFromString(w.l.trustDomain)
	if err != nil {
		return err
	}
	other, err := ca.Open(filepath.Join(w.l.dir, "foreign-ca"), ca.Config{TrustDomain: td})
	if err != nil {
		return err
	}
	id, err := w.identityOf(ctx, other, "api")
	if err != nil {
		return err
	}
	return refused(w.getAs(ctx, id))
}

// configFor opens an xDS stream as node with the identity given (nil: none) and
// says how many resources came, and the last error.
func (w *world) configFor(ctx context.Context, id mtls.Source, node string) (int, string, error) {
	td, err := spiffeid.TrustDomainFromString(w.l.trustDomain)
	if err != nil {
		return 0, "", err
	}
	var creds credentials.TransportCredentials
	if id != nil {
		creds = credentials.NewTLS(mtls.ClientConfig(mtls.ClientParams{Params: mtls.Params{
			Identity: id, Authorise: mtls.Expect(mtls.ControlPlaneID(td)), ALPN: []string{"h2"}}}))
	} else {
		cfg, err := w.anonymous()
		if err != nil {
			return 0, "", err
		}
		creds = credentials.NewTLS(cfg)
	}
	got := &counter{}
	c, err := xdsclient.New(xdsclient.Config{
		Node: xdsclient.Node{ID: node},
		Dial: func(context.Context) (*grpc.ClientConn, error) {
			return grpc.NewClient("passthrough:///"+w.l.xdsAddr(), append(xdsclient.DialOptions(), grpc.WithTransportCredentials(creds),
				grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
					return w.visitor().dial(ctx, "tcp", address)
				}))...)
		},
		Handler: got,
	})
	if err != nil {
		return 0, "", err
	}
	rctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- c.Run(rctx) }()
	defer func() { cancel(); <-done }()
	err = w.eventually(ctx, func() error {
		s := c.Status()
		if s.LastError == "" && !s.Connected {
			return errors.New("the stream was neither answered nor refused")
		}
		return nil
	})
	cancel()
	done <- <-done // Run has returned: the counter is at rest
	return got.n, c.Status().LastError, err
}

// counter counts the resources that a stream brought.
type counter struct{ n int }

func (c *counter) Apply(u xdsclient.Update) { c.n += len(u.Upserted) }

func noIdentityNoConfig(ctx context.Context, w *world) error {
	n, reason, err := w.configFor(ctx, nil, "web-1-sidecar-proxy")
	if err != nil {
		return err
	}
	if n > 0 || reason == "" {
		return fmt.Errorf("it got %d resources (error %q)", n, reason)
	}
	return nil
}

func otherNodeNoConfig(ctx context.Context, w *world) error {
	id, err := w.member(ctx, "orders")
	if err != nil {
		return err
	}
	if n, reason, err := w.configFor(ctx, id, "orders-1-sidecar-proxy"); err != nil || n == 0 {
		return fmt.Errorf("orders got nothing of its own (%d resources, error %q, %w)", n, reason, err)
	}
	n, reason, err := w.configFor(ctx, id, "web-1-sidecar-proxy")
	if err != nil {
		return err
	}
	if n > 0 || !strings.Contains(reason, "web-1-sidecar-proxy") {
		return fmt.Errorf("it got %d resources (error %q)", n, reason)
	}
	return nil
}

// usedToken joins with the token that host west has used.
func usedToken(ctx context.Context, w *world) error {
	token, err := os.ReadFile(w.l.tokenFile("west"))
	if err != nil {
		return err
	}
	src, err := remote.New(remote.Config{
		Address: w.l.xdsAddr(), DataDir: filepath.Join(w.l.dir, "data", "thief"), Service: "users",
		Token: strings.TrimSpace(string(token)),
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return w.visitor().dial(ctx, "tcp", address)
		},
	})
	if err != nil {
		return err
	}
	rctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- src.Run(rctx) }()
	defer func() { cancel(); <-done }()
	return w.eventually(ctx, func() error {
		s := src.Current()
		if s.SVID != nil {
			return errors.New("the token gave an identity a second time")
		}
		if s.Err == nil || !strings.Contains(s.Err.Error(), "used") {
			return fmt.Errorf("no word of the token being used: %v", s.Err)
		}
		return nil
	})
}
