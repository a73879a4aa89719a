package mtls_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

func writeFiles(t *testing.T, dir string, svid *x509svid.SVID, sec1 bool, roots ...*x509.Certificate) mtls.StaticConfig {
	t.Helper()
	cert, key, err := svid.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if sec1 {
		block, _ := pem.Decode(key)
		k, _ := x509.ParsePKCS8PrivateKey(block.Bytes)
		der, err := x509.MarshalECPrivateKey(mustEC(t, k))
		if err != nil {
			t.Fatal(err)
		}
		key = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	}
	var ca []byte
	for _, r := range roots {
		ca = append(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Raw})...)
	}
	c := mtls.StaticConfig{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), CA: filepath.Join(dir, "ca.pem")}
	for path, data := range map[string][]byte{c.Cert: cert, c.Key: key, c.CA: ca} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// TestStaticFilesRefuse: nothing starts without a CA (ID8).
func TestStaticFilesRefuse(t *testing.T) {
	root := newAuthority(t, "root")
	for _, c := range []struct {
		name, want string
		spoil      func(c *mtls.StaticConfig)
	}{
		{"no CA configured", "no CA file is configured", func(c *mtls.StaticConfig) { c.CA = "" }},
		{"CA missing", "CA file: open ", func(c *mtls.StaticConfig) { os.Remove(c.CA) }},
		{"CA unreadable", "CA file: read ", func(c *mtls.StaticConfig) { os.Remove(c.CA); os.Mkdir(c.CA, 0o700) }},
		{"CA empty", "ca.pem is empty", func(c *mtls.StaticConfig) { os.WriteFile(c.CA, []byte(" \n"), 0o600) }},
		{"CA is no PEM", "no PEM block CERTIFICATE", func(c *mtls.StaticConfig) { os.WriteFile(c.CA, []byte("hello"), 0o600) }},
		{"CA is a leaf", "is not a CA's", func(c *mtls.StaticConfig) { c.CA = c.Cert }},
		{"certificate missing", "certificate file: open ", func(c *mtls.StaticConfig) { os.Remove(c.Cert) }},
		{"key missing", "key file: open ", func(c *mtls.StaticConfig) { os.Remove(c.Key) }},
		{"key of another", "no SPIFFE identity together", func(c *mtls.StaticConfig) {
			_, key, _ := root.leaf(webID).Marshal()
			os.WriteFile(c.Key, key, 0o600)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := writeFiles(t, t.TempDir(), root.leaf(apiID), false, root.cert)
			c.spoil(&conf)
			if _, err := mtls.NewStaticFiles(conf); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}

// TestStaticFilesReload: a change is taken over; half of one is not.
func TestStaticFilesReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root, dir := newAuthority(t, "root"), t.TempDir()
		conf := writeFiles(t, dir, root.leaf(apiID), true, root.cert)
		f, err := mtls.NewStaticFiles(conf)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = f.Run(ctx) }()
		defer func() { cancel(); <-done }()
		first, changed := f.Current(), f.Changed()
		os.Remove(conf.CA)
		time.Sleep(time.Minute)
		if f.Current() != first {
			t.Error("without a CA file the last good identity went away")
		}
		next := root.leaf(apiID)
		writeFiles(t, dir, next, false, root.cert)
		time.Sleep(3 * time.Second)
		select {
		case <-changed:
		default:
			t.Error("the change was not announced")
		}
		if !f.Current().SVID.Certificates[0].Equal(next.Certificates[0]) {
			t.Error("the new certificate is not in use")
		}
	})
}

// TestWatchLife: alarms from 70 % on, to the end, and none for a fresh one (ID3).
func TestWatchLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := newAuthority(t, "root")
		fresh := func() *x509svid.SVID {
			return root.leaf(webID, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now(), time.Now().Add(100*time.Hour) })
		}
		src := cell(fresh(), setFor("mesh.test", root.cert))
		var mu sync.Mutex // guards raised and expired
		var raised []int
		expired := 0
		alarms := func() []int {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(raised)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = mtls.WatchLife(ctx, mtls.WatchConfig{Source: src, OnAlarm: func(a mtls.Alarm) {
				mu.Lock()
				defer mu.Unlock()
				raised = append(raised, int(a.Life*100+0.5))
				if a.Expired {
					expired++
				}
			}})
		}()
		defer func() { cancel(); <-done }()
		time.Sleep(69 * time.Hour)
		if got := alarms(); len(got) != 0 {
			t.Errorf("alarms at %v before 70 %%", got)
		}
		time.Sleep(10 * time.Hour)
		if got := alarms(); !slices.Equal(got, []int{70, 75}) {
			t.Errorf("alarms at %v", got)
		}
		src.Set(&mtls.Snapshot{SVID: fresh()})
		time.Sleep(60 * time.Hour)
		if got := alarms(); len(got) != 2 {
			t.Errorf("an alarm for a fresh certificate: %v", got)
		}
		time.Sleep(60 * time.Hour)
		if got := alarms(); !slices.Equal(got, []int{70, 75, 70, 75, 80, 85, 90, 95, 100}) || expired != 1 {
			t.Errorf("alarms at %v, %d of them for the end", got, expired)
		}
	})
}

func TestServiceIDs(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("1111-2222.consul")
	for _, c := range []struct {
		in   mtls.Service
		want string
	}{
		{mtls.Service{Datacenter: "dc1", Name: "web"}, "spiffe://1111-2222.consul/ns/default/dc/dc1/svc/web"},
		{mtls.Service{Partition: "default", Namespace: "team", Datacenter: "dc1", Name: "web"}, "spiffe://1111-2222.consul/ns/team/dc/dc1/svc/web"},
		{mtls.Service{Partition: "p1", Datacenter: "dc1", Name: "web"}, "spiffe://1111-2222.consul/ap/p1/ns/default/dc/dc1/svc/web"},
	} {
		id, err := c.in.ID(td)
		if err != nil || id.String() != c.want {
			t.Errorf("%+v: %v, %v", c.in, id, err)
			continue
		}
		back, err := mtls.ParseServiceID(id)
		again, _ := back.ID(td)
		if err != nil || again != id || back.Name != "web" {
			t.Errorf("%s came back as %+v, %v", id, back, err)
		}
	}
	for _, s := range []mtls.Service{{Datacenter: "dc1"}, {Name: "web"}, {Datacenter: "dc1", Name: "a/b"}, {Datacenter: "dc1", Name: ".."}, {Datacenter: "dc1", Name: "ü"}} {
		if id, err := s.ID(td); err == nil {
			t.Errorf("%+v became %s", s, id)
		}
	}
	for _, s := range []string{"spiffe://x/parrel/controlplane", "spiffe://x/ns/a/dc/b/svc/c/d", "spiffe://x/ns/a/dc/b", "spiffe://x", "spiffe://x/zz/p/ns/a/dc/b/svc/c"} {
		if got, err := mtls.ParseServiceID(spiffeid.RequireFromString(s)); err == nil {
			t.Errorf("%s is %+v", s, got)
		}
	}
	if id := mtls.ControlPlaneID(td); id.String() != "spiffe://1111-2222.consul/parrel/controlplane" || !mtls.Reserved(id) {
		t.Error(id)
	}
}
