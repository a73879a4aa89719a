package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/test/golden"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// hostile is a record whose strings come from an attacker.
func hostile() Record {
	r := record()
	r.Path = "/\r\n\x1b[2J\"forged\": \xff\u0085\u2028"
	r.UserAgent = `x" y\`
	r.Detail = "policy \"p\"\n"
	r.Status, r.Code = 403, RBACDenied
	r.Request = stream.Header{{Name: "x-evil", Value: "a\nb"}, {Name: "x-two", Value: "1"}, {Name: "x-two", Value: "2"}}
	r.DownstreamRemote = netip.MustParseAddrPort("10.0.0.1:999")
	return r
}

func lines(t *testing.T, c resource.AccessLog, rs ...Record) string {
	t.Helper()
	var out bytes.Buffer
	rec, err := NewLogs(LogsConfig{Stdout: &out}).Compile([]resource.AccessLog{c})
	if err != nil {
		t.Fatal(err)
	}
	for i := range rs {
		if rs[i].Protocol == "tcp" {
			rec.ConnOpened(&rs[i])
			rec.ConnClosed(&rs[i])
			continue
		}
		rec.Request(&rs[i])
	}
	return out.String()
}

func TestLines(t *testing.T) {
	plain, evil, tcp, grpc := record(), hostile(), record(), record()
	tcp.Protocol, tcp.HTTP, tcp.Method, tcp.Path, tcp.Status, tcp.Code, tcp.Detail = "tcp", "", "", "", 0, UpstreamConnectTimeout, "dial 10.0.0.9:1"
	grpc.Protocol, grpc.GRPCStatus, grpc.Inbound, grpc.Attempts = "grpc", 14, false, 3
	all := []Record{plain, evil, tcp, grpc}

	def := lines(t, resource.AccessLog{Path: "/dev/stdout"}, all...)
	golden.Check(t, "testdata/default.jsonl", def)
	text := lines(t, resource.AccessLog{Path: "/dev/stdout", Text: `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% ` +
		`%BYTES_RECEIVED% %BYTES_SENT% %DURATION% "%REQ(X-EVIL)%" "%REQ(x-two)%" %REQ(:authority):2% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_HOST% ` +
		`%DOWNSTREAM_PEER_URI_SAN% %GRPC_STATUS% %START_TIME(%Y/%m/%dT%H:%M:%S.%3f)% %UPSTREAM_TRANSPORT_FAILURE_REASON% %PARREL_CODE% 100%%`}, all...)
	golden.Check(t, "testdata/text.log", text)
	js := lines(t, resource.AccessLog{Path: "/dev/stdout", JSON: map[string]string{"code": "%RESPONSE_CODE%", "grpc": "%GRPC_STATUS_NUMBER%",
		"mixed": "%REQ(:METHOD)% %REQ(:PATH)%", "evil": "%REQ(X-EVIL)%"}}, all...)
	golden.Check(t, "testdata/json.jsonl", js)

	for name, s := range map[string]string{"default": def, "text": text, "json": js} {
		if n := strings.Count(s, "\n"); n != len(all) {
			t.Errorf("%s: %d lines for %d records", name, n, len(all))
		}
		if i := strings.IndexFunc(s, func(r rune) bool { return r < ' ' && r != '\n' || r == 0x7f || r == 0x85 }); i >= 0 {
			t.Errorf("%s: a control character got through at %d", name, i)
		}
	}
	for line := range strings.Lines(def + js) {
		if !json.Valid([]byte(line)) {
			t.Errorf("no JSON: %s", line)
		}
	}
	if got := lines(t, resource.AccessLog{Path: "/dev/stdout", MinStatus: 400}, plain, evil); strings.Count(got, "\n") != 1 || !strings.Contains(got, "rbac_denied") {
		t.Errorf("MinStatus lets through: %s", got)
	}
}

func TestBadFormats(t *testing.T) {
	for text, want := range map[string]string{
		"%NO_SUCH%":              "unknown operator %NO_SUCH%",
		"%REQ()%":                "names no header",
		"%REQ(x%":                "no closing",
		"%DURATION":              "no closing",
		"%REQ(x):0%":             "is not a length",
		"%PROTOCOL(x)%":          "takes no argument",
		"%START_TIME(%Q)%":       "is not a known part of a time",
		"%RESPONSE_CODE:x% text": "is not a length",
	} {
		_, err := NewLogs(LogsConfig{}).Compile([]resource.AccessLog{{Path: "/dev/stdout", Text: text}})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), `telemetry: access log "/dev/stdout"`) {
			t.Errorf("%q: %v", text, err)
		}
	}
	_, err := NewLogs(LogsConfig{}).Compile([]resource.AccessLog{{Path: filepath.Join(t.TempDir(), "no", "such")}})
	if err == nil || !strings.Contains(err.Error(), "create its folder") {
		t.Error(err)
	}
}

// slow is a writer that takes its time.
type slow struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *slow) Write(p []byte) (int, error) {
	time.Sleep(50 * time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

// TestNothingIsLost: a slow file slows recording down; no line is lost, none is
// torn, memory stays bounded.
func TestNothingIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &slow{}
		l := NewLogs(LogsConfig{Stdout: w})
		ctx, cancel := context.WithCancel(t.Context())
		var run, writers sync.WaitGroup
		run.Go(func() { _ = l.Run(ctx) })
		synctest.Wait()
		rec, err := l.Compile([]resource.AccessLog{{Path: "/dev/stdout", Text: "%REQ(:PATH)%" + strings.Repeat("x", 1000)}})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 4 {
			writers.Go(func() {
				for j := range 1000 {
					r := record()
					r.Path = fmt.Sprintf("/%d-%d", i, j)
					rec.Request(&r)
				}
			})
		}
		writers.Wait()
		cancel()
		run.Wait()
		seen := map[string]bool{}
		for line := range strings.Lines(w.buf.String()) {
			if len(line) < 1000 {
				t.Fatalf("torn: %q", line)
			}
			seen[line] = true
		}
		if len(seen) != 4000 {
			t.Errorf("%d lines of 4000", len(seen))
		}
	})
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	l := NewLogs(LogsConfig{})
	rec, err := l.Compile([]resource.AccessLog{{Path: path, Text: "%REQ(:PATH)%"}})
	if err != nil {
		t.Fatal(err)
	}
	r := record()
	r.Path = "/old"
	rec.Request(&r)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	r.Path = "/new"
	rec.Request(&r)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Run(ctx); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]string{path + ".1": "/old\n", path: "/new\n"} {
		if b, err := os.ReadFile(p); err != nil || string(b) != want {
			t.Errorf("%s: %q %v", p, b, err)
		}
	}
}

func TestLineAllocations(t *testing.T) {
	rec, err := NewLogs(LogsConfig{Stdout: io.Discard}).Compile(DefaultAccessLog())
	if err != nil {
		t.Fatal(err)
	}
	r := record()
	rec.Request(&r)
	if n := testing.AllocsPerRun(100, func() { rec.Request(&r) }); n > 0 {
		t.Errorf("a line allocates %v times", n)
	}
}

// What the filter leaves out costs nothing: it is asked before anything is
// formatted.
func TestFilteredLogAllocatesNothing(t *testing.T) {
	var out bytes.Buffer
	rec, err := NewLogs(LogsConfig{Stdout: &out}).Compile([]resource.AccessLog{{Path: "/dev/stdout", MinStatus: 500}})
	if err != nil {
		t.Fatal(err)
	}
	r := record()
	if n := testing.AllocsPerRun(100, func() { rec.Request(&r) }); n != 0 || out.Len() != 0 {
		t.Errorf("%v allocations, log %q", n, out.String())
	}
	r.Status = 500
	if rec.Request(&r); out.Len() == 0 {
		t.Error("a status at the bound is not logged")
	}
}
