package interop

import (
	"encoding/xml"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// specCases is how many cases h2spec 2.2.1 has.
const specCases = 145

// report is h2spec's JUnit output.
type report struct {
	Suites []struct {
		Name  string `xml:"name,attr"`
		Cases []struct {
			Package string    `xml:"package,attr"`
			Name    string    `xml:"classname,attr"`
			Skipped *struct{} `xml:"skipped"`
			Failure *text     `xml:"failure"`
			Error   *text     `xml:"error"`
		} `xml:"testcase"`
	} `xml:"testsuite"`
}

type text struct {
	Text string `xml:",innerxml"`
}

// TestH2Spec: every case of h2spec, in plaintext with prior knowledge and over
// TLS, with an HTTP/1.1 application behind.
func TestH2Spec(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, strings.Repeat("0123456789abcdef", 64))
	}))
	t.Cleanup(app.Close)
	plain, secure := address(t), address(t)
	certs := certificates(t)
	start(t, "front", bootstrap{
		Admin: address(t),
		Listeners: []tcpListener{
			{Address: plain, HTTP: true, Cluster: "app"},
			{Address: secure, HTTP: true, Cluster: "app", TLS: certs.server(false)},
		},
		Clusters: []cluster{{Name: "app", Address: app.Listener.Addr().String()}},
	})
	for name, at := range map[string]string{"h2c": plain, "tls": secure} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out := filepath.Join(t.TempDir(), "report.xml")
			args := []string{"-h", host(at), "-p", port(at), "--timeout", "3", "-j", out, "--strict"}
			if name == "tls" {
				args = append(args, "-t", "-k")
			}
			log, runErr := run(t, "h2spec", args...)
			data, err := os.ReadFile(out)
			if err != nil {
				t.Fatalf("no report: %v, %v\n%s", err, runErr, log)
			}
			var r report
			if err := xml.Unmarshal(data, &r); err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, s := range r.Suites {
				for _, c := range s.Cases {
					n++
					switch {
					case c.Failure != nil:
						t.Errorf("%s: %s: %s", c.Package, c.Name, c.Failure.Text)
					case c.Error != nil:
						t.Errorf("%s: %s: %s", c.Package, c.Name, c.Error.Text)
					case c.Skipped != nil:
						t.Errorf("%s: %s: skipped by h2spec", c.Package, c.Name)
					}
				}
			}
			if n < specCases {
				t.Errorf("%d cases ran, h2spec has %d", n, specCases)
			}
		})
	}
}
