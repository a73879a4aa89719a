package static

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/sidecar/internal/testpki"
	"github.com/parrel-mesh/parrel/xds/client"
	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// disk is files in memory.
type disk struct {
	mu    sync.Mutex
	files map[string][]byte
}

func (d *disk) put(name string, text []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if text == nil {
		delete(d.files, name)
		return
	}
	d.files[name] = text
}

func (d *disk) read(name string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if b, ok := d.files[name]; ok {
		return b, nil
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// inbox keeps what was delivered.
type inbox struct {
	mu   sync.Mutex
	news []client.Update
}

func (i *inbox) Apply(u client.Update) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.news = append(i.news, u)
}

func (i *inbox) take() []client.Update {
	i.mu.Lock()
	defer i.mu.Unlock()
	out := i.news
	i.news = nil
	return out
}

// TestFilesAreReadAgain: a new certificate is delivered once both files fit; a
// bad one changes nothing.
func TestFilesAreReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pki := testpki.New(t, "ours")
		chain, key := pki.Leaf([]string{"one"})
		d := &disk{files: map[string][]byte{"c": chain, "k": key, "ca": pki.RootPEM()}}
		in := &inbox{}
		cert := &resource.Secret{Name: "cert", Files: &resource.CertFiles{Cert: "c", Key: "k"}}
		roots := &resource.Secret{Name: "roots", Files: &resource.CertFiles{CA: "ca"}}
		s, err := New(Config{Secrets: []*resource.Secret{cert, roots}, Handler: in, ReadFile: d.read,
			Clusters: []*resource.Cluster{{Name: "app"}}, Listeners: []*resource.Listener{{Name: "l"}}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := s.Run(ctx); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		defer wg.Wait()
		defer cancel()
		synctest.Wait()
		if got := kinds(in.take()); got != "SDS:cert,roots CDS:app LDS:l" {
			t.Errorf("delivered %q", got)
		}
		chain2, key2 := pki.Leaf([]string{"two"})
		d.put("c", chain2)
		time.Sleep(2 * reloadEvery)
		synctest.Wait()
		if got := in.take(); len(got) != 0 {
			t.Errorf("half a change was delivered: %q", kinds(got))
		}
		d.put("k", key2)
		time.Sleep(2 * reloadEvery)
		synctest.Wait()
		got := in.take()
		if kinds(got) != "SDS:cert" || string(got[0].Upserted[0].(*resource.Secret).ChainPEM) != string(chain2) {
			t.Errorf("delivered %q", kinds(got))
		}
		d.put("ca", nil)
		time.Sleep(2 * reloadEvery)
		synctest.Wait()
		if got := in.take(); len(got) != 0 {
			t.Errorf("without the file %q was delivered", kinds(got))
		}
	})
}

func kinds(us []client.Update) string {
	var out []string
	for _, u := range us {
		var names []string
		for _, r := range u.Upserted {
			names = append(names, r.ResourceName())
		}
		out = append(out, u.Type.Short()+":"+strings.Join(names, ","))
	}
	return strings.Join(out, " ")
}

// TestBadFiles: what cannot be used is said with its file.
func TestBadFiles(t *testing.T) {
	pki := testpki.New(t, "ours")
	chain, key := pki.Leaf([]string{"one"})
	_, other := pki.Leaf([]string{"two"})
	d := &disk{files: map[string][]byte{"c": chain, "k": key, "other": other, "empty": []byte("\n"), "text": []byte("hello")}}
	for want, f := range map[string]resource.CertFiles{
		"static: certificate_chain: open none:":                {Cert: "none", Key: "k"},
		"static: private_key: empty is empty":                  {Cert: "c", Key: "empty"},
		"static: c and other cannot be used together":          {Cert: "c", Key: "other"},
		"static: trusted_ca: text: no PEM block CERTIFICATE":   {CA: "text"},
		"static: trusted_ca: open none: file does not exist; ": {CA: "none"},
	} {
		_, err := New(Config{Secrets: []*resource.Secret{{Name: "s", Files: &f}}, ReadFile: d.read})
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
}
