package static

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/xds/client"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// reloadEvery is how often certificate files are looked at. Reading small files
// is cheaper than being wrong about which of them changed: links and mounts are
// swapped in ways that file notification does not see.
const reloadEvery = 2 * time.Second

// Config of a Source.
type Config struct {
	Listeners []*resource.Listener
	Clusters  []*resource.Cluster
	Secrets   []*resource.Secret // those with Files are read
	Handler   client.Handler
	Log       *slog.Logger                      // nil: none
	Now       func() time.Time                  // nil: time.Now
	ReadFile  func(name string) ([]byte, error) // nil: os.ReadFile
}

// Source delivers a static configuration. Its methods are safe for concurrent
// use.
type Source struct {
	c       Config
	since   time.Time
	held    []client.Held
	secrets []*resource.Secret // as last delivered; Run's goroutine only
}

// New reads the certificate files. Any that cannot be used is an error.
func New(c Config) (*Source, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.ReadFile == nil {
		c.ReadFile = os.ReadFile
	}
	s := &Source{c: c, since: c.Now()}
	var errs []error
	for _, x := range c.Secrets {
		full, err := s.read(x)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.secrets = append(s.secrets, full)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	for _, r := range s.Resources() {
		s.held = append(s.held, client.Held{Type: r.ResourceType(), Name: r.ResourceName(), Resource: r, Version: "static", Updated: s.since})
	}
	return s, nil
}

// Resources are all of the configuration, with the secrets that New read.
func (s *Source) Resources() []resource.Resource {
	var out []resource.Resource
	for _, x := range s.secrets {
		out = append(out, x)
	}
	for _, x := range s.c.Clusters {
		out = append(out, x)
	}
	for _, x := range s.c.Listeners {
		out = append(out, x)
	}
	return out
}

// read fills a secret from its files; one without files is as it is.
func (s *Source) read(x *resource.Secret) (*resource.Secret, error) {
	f := x.Files
	if f == nil {
		return x, nil
	}
	out := &resource.Secret{Name: x.Name}
	var err error
	text := func(what, name string) []byte {
		b, e := s.c.ReadFile(name)
		switch {
		case e != nil:
			err = errors.Join(err, fmt.Errorf("static: %s: %w; the sidecar's user must be able to read it", what, e))
		case len(bytes.TrimSpace(b)) == 0:
			err = errors.Join(err, fmt.Errorf("static: %s: %s is empty", what, name))
		}
		return b
	}
	if f.CA != "" {
		roots := text("trusted_ca", f.CA)
		if err == nil {
			if _, e := mtls.ParseCertificates(roots); e != nil {
				err = fmt.Errorf("static: trusted_ca: %s: %w", f.CA, e)
			}
		}
		out.TrustPEM = []resource.TrustBundle{{RootsPEM: roots}}
		return out, err
	}
	out.ChainPEM, out.KeyPEM = text("certificate_chain", f.Cert), text("private_key", f.Key)
	if err == nil {
		if _, e := tls.X509KeyPair(out.ChainPEM, out.KeyPEM); e != nil {
			err = fmt.Errorf("static: %s and %s cannot be used together: %w", f.Cert, f.Key, e)
		}
	}
	return out, err
}

// Subscribe does nothing: everything is delivered.
func (s *Source) Subscribe(resource.Type, []string) {}

// Status says that the configuration is there.
func (s *Source) Status() client.Status {
	return client.Status{Connected: true, Since: s.since, Server: "static configuration"}
}

// Held lists the configuration as New read it.
func (s *Source) Held() []client.Held { return s.held }

// Run delivers everything, then secrets whose files have changed, until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	deliver := func(t resource.Type, rs []resource.Resource) {
		s.c.Handler.Apply(client.Update{Type: t, Upserted: rs})
	}
	deliver(resource.TypeSecret, resources(s.secrets))
	deliver(resource.TypeCluster, resources(s.c.Clusters))
	deliver(resource.TypeListener, resources(s.c.Listeners))

	var files []int // indices of secrets that have files
	for i, x := range s.c.Secrets {
		if x.Files != nil {
			files = append(files, i)
		}
	}
	if len(files) == 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	tick := time.NewTicker(reloadEvery)
	defer tick.Stop()
	last := make(map[int]string)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		for _, i := range files {
			s.reload(i, last)
		}
	}
}

// reload reads one secret again. last keeps what was wrong, so that each trouble
// has one line and not one every two seconds.
func (s *Source) reload(i int, last map[int]string) {
	x, err := s.read(s.c.Secrets[i])
	if err != nil {
		if last[i] != err.Error() {
			s.c.Log.Error("certificate files are not taken over; the last good ones stay in use", "error", err)
			last[i] = err.Error()
		}
		return
	}
	delete(last, i)
	if resource.Equal(x, s.secrets[i]) {
		return
	}
	s.secrets[i] = x
	s.c.Handler.Apply(client.Update{Type: resource.TypeSecret, Upserted: []resource.Resource{x}})
	s.c.Log.Info("certificate files read again", "secret", x.Name)
}

func resources[R resource.Resource](in []R) []resource.Resource {
	out := make([]resource.Resource, len(in))
	for i, r := range in {
		out[i] = r
	}
	return out
}
