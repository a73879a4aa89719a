package l4

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/sidecar/cluster"
	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// records keeps what was recorded.
type records struct {
	mu     sync.Mutex
	opened int
	closed []telemetry.Record
}

func (r *records) Request(*telemetry.Record)    {}
func (r *records) ConnOpened(*telemetry.Record) { r.mu.Lock(); defer r.mu.Unlock(); r.opened++ }
func (r *records) ConnClosed(x *telemetry.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = append(r.closed, *x)
}

// dialer is a cluster of one address.
type dialer struct {
	net  netio.Net
	addr string
}

func (d dialer) Connect(ctx context.Context, _ cluster.Options) (netio.Conn, *cluster.Attempt, error) {
	a := &cluster.Attempt{Host: d.addr, Tries: 1, Instance: "db-1"}
	c, err := d.net.Dial(ctx, "tcp", d.addr)
	if err != nil {
		return nil, a, &cluster.Error{Code: telemetry.UpstreamConnectFailure, Detail: err.Error(), Err: err}
	}
	return c, a, nil
}

// rig is a client, the engine on a proxy host, and an application.
type rig struct {
	m                  *netio.Memory
	client, proxy, app *netio.Host
	appL               netio.Listener
	rec                *records
	stop               context.CancelFunc // the drain's deadline
	front              *listener.Conn     // the last accepted
	draining           *stream.Scope
	conns              []netio.Conn // of the client and the application
}

func run(t *testing.T, p resource.TCPProxy, f func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{m: netio.NewMemory(), rec: &records{}, draining: new(stream.Scope)}
		r.client, r.proxy, r.app = r.m.Host("client", "10.0.0.1"), r.m.Host("proxy", "10.0.0.2"), r.m.Host("app", "10.0.0.3")
		var err error
		if r.appL, err = r.app.Listen(t.Context(), "tcp", ":5432"); err != nil {
			t.Fatal(err)
		}
		e, err := New(Config{Proxy: &p, Source: "web", Destination: "db", Clusters: func(name string) (Cluster, bool) {
			return dialer{r.proxy, "10.0.0.3:5432"}, name != "missing"
		}}, Deps{Recorder: r.rec, Rand: rand.New(rand.NewPCG(1, 2)).Uint64})
		if err != nil {
			t.Fatal(err)
		}
		l, err := r.proxy.Listen(t.Context(), "tcp", ":15001")
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		r.stop = stop
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				c, err := l.AcceptConn()
				if err != nil {
					return
				}
				r.front = &listener.Conn{Conn: c, Listener: "out", Chain: "db", Version: "7",
					Source:   netip.MustParseAddrPort(c.RemoteAddr().String()),
					Draining: r.draining}
				front := r.front
				wg.Go(func() { e.Serve(ctx, front) })
			}
		})
		f(t, r)
		l.Close()
		r.appL.Close()
		stop()
		wg.Wait()
		for _, c := range r.conns {
			c.Close()
		}
		if n := r.proxy.Open(); n != 0 {
			t.Errorf("%d connections of the engine are open", n)
		}
		r.client.Kill()
		r.app.Kill()
	})
}

func (r *rig) dial(t *testing.T) (client, app netio.Conn) {
	t.Helper()
	c, err := r.client.Dial(t.Context(), "tcp", "10.0.0.2:15001")
	if err != nil {
		t.Fatal(err)
	}
	a, err := r.appL.AcceptConn()
	if err != nil {
		t.Fatal(err)
	}
	r.conns = append(r.conns, c, a)
	return c, a
}

// ended waits for the record of the only connection.
func (r *rig) ended(t *testing.T) telemetry.Record {
	t.Helper()
	synctest.Wait()
	r.rec.mu.Lock()
	defer r.rec.mu.Unlock()
	if len(r.rec.closed) != 1 || r.rec.opened != 1 {
		t.Fatalf("%d opened, %d closed", r.rec.opened, len(r.rec.closed))
	}
	return r.rec.closed[0]
}

var db = resource.TCPProxy{Cluster: "db"}

func TestHalfCloseBothWays(t *testing.T) {
	run(t, db, func(t *testing.T, r *rig) {
		c, a := r.dial(t)
		io.WriteString(c, "question")
		c.CloseWrite()
		if b, err := io.ReadAll(a); string(b) != "question" || err != nil {
			t.Fatalf("%q %v", b, err)
		}
		time.Sleep(time.Hour)
		io.WriteString(a, "late answer")
		a.CloseWrite()
		if b, err := io.ReadAll(c); string(b) != "late answer" || err != nil {
			t.Fatalf("%q %v", b, err)
		}
		x := r.ended(t)
		if x.BytesIn != 8 || x.BytesOut != 11 || x.Code != telemetry.OK || x.Cluster != "db" || x.UpstreamInstance != "db-1" ||
			x.Duration != time.Hour || x.SourceService != "web" || x.DestinationService != "db" || x.Version != "7" {
			t.Errorf("%+v", x)
		}
	})
	run(t, db, func(t *testing.T, r *rig) {
		c, a := r.dial(t)
		a.CloseWrite()
		if b, err := io.ReadAll(c); len(b) != 0 || err != nil {
			t.Fatalf("%q %v", b, err)
		}
		io.WriteString(c, "still open")
		c.CloseWrite()
		if b, err := io.ReadAll(a); string(b) != "still open" || err != nil {
			t.Fatalf("%q %v", b, err)
		}
	})
}

func TestResetIsPassedOn(t *testing.T) {
	run(t, db, func(t *testing.T, r *rig) {
		c, a := r.dial(t)
		c.Reset()
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the application sees %v", err)
		}
		if x := r.ended(t); x.Code != telemetry.DownstreamReset {
			t.Errorf("%v %s", x.Code, x.Detail)
		}
	})
	run(t, db, func(t *testing.T, r *rig) {
		c, a := r.dial(t)
		a.Reset()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client sees %v", err)
		}
		if x := r.ended(t); x.Code != telemetry.UpstreamConnectionTermination {
			t.Errorf("%v %s", x.Code, x.Detail)
		}
	})
}

// A reader that does not read stops the writer after what the two connections
// and one buffer hold.
func TestSlowReaderIsBounded(t *testing.T) {
	run(t, db, func(t *testing.T, r *rig) {
		c, a := r.dial(t)
		c.SetWriteDeadline(time.Now().Add(time.Minute))
		n, err := c.Write(make([]byte, 10<<20))
		const kernel = 2 * 64 << 10 // of the memory network's two connections
		if err == nil || n > kernel+64<<10 {
			t.Errorf("%d bytes went into the mesh: %d of them are not in socket buffers (%v)", n, n-kernel, err)
		}
		c.CloseWrite()
		if got, err := io.Copy(io.Discard, a); got != int64(n) || err != nil {
			t.Errorf("%d of %d bytes came out: %v", got, n, err)
		}
	})
}

func TestManyBytesArriveUnchanged(t *testing.T) {
	run(t, db, func(t *testing.T, r *rig) {
		c, a := r.dial(t)
		rnd := rand.New(rand.NewPCG(5, 6))
		data := make([]byte, 8<<20)
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		want := sha256.Sum256(data)
		var wg sync.WaitGroup
		for _, pair := range [][2]netio.Conn{{c, a}, {a, c}} {
			wg.Go(func() { pair[0].Write(data); pair[0].CloseWrite() })
			wg.Go(func() {
				h := sha256.New()
				io.Copy(h, pair[1])
				if !bytes.Equal(h.Sum(nil), want[:]) {
					t.Error("the bytes changed on their way")
				}
			})
		}
		wg.Wait()
	})
}

func TestNoIdleTimeoutByDefault(t *testing.T) {
	run(t, db, func(t *testing.T, r *rig) {
		c, a := r.dial(t)
		time.Sleep(3 * time.Hour)
		io.WriteString(c, "SELECT 1")
		if _, err := io.ReadFull(a, make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
	})
}

func TestConfiguredIdleTimeout(t *testing.T) {
	p := db
	p.IdleTimeout = time.Minute
	run(t, p, func(t *testing.T, r *rig) {
		c, a := r.dial(t)
		for range 5 { // bytes in one direction keep it
			time.Sleep(50 * time.Second)
			io.WriteString(a, "x")
			io.ReadFull(c, make([]byte, 1))
		}
		start := time.Now()
		if _, err := c.Read(make([]byte, 1)); err == nil || time.Since(start) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if x := r.ended(t); x.Code != telemetry.StreamIdleTimeout || x.BytesOut != 5 {
			t.Errorf("%+v", x)
		}
	})
}

func TestDrainingWaitsForTheDeadline(t *testing.T) {
	run(t, db, func(t *testing.T, r *rig) {
		c, a := r.dial(t)
		r.draining.Cancel(nil)
		time.Sleep(time.Minute)
		io.WriteString(c, "x")
		if _, err := io.ReadFull(a, make([]byte, 1)); err != nil {
			t.Fatalf("draining cut an opaque connection: %v", err)
		}
		r.stop()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("after the deadline: %v", err)
		}
		if x := r.ended(t); x.Code != telemetry.DrainTimeout {
			t.Errorf("%v", x.Code)
		}
	})
}

func TestEndedFromOutside(t *testing.T) {
	run(t, db, func(t *testing.T, r *rig) {
		c, a := r.dial(t)
		r.front.End(telemetry.ReauthorisedDenied, "intention web -> db denies")
		for _, x := range []netio.Conn{c, a} {
			if _, err := x.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%v", err)
			}
		}
		if x := r.ended(t); x.Code != telemetry.ReauthorisedDenied || x.Detail == "" {
			t.Errorf("%v %q", x.Code, x.Detail)
		}
	})
}

func TestNobodyThere(t *testing.T) {
	for _, c := range []struct {
		cluster string
		code    telemetry.Code
	}{{"db", telemetry.UpstreamConnectFailure}, {"missing", telemetry.NoCluster}} {
		run(t, resource.TCPProxy{Cluster: c.cluster}, func(t *testing.T, r *rig) {
			r.appL.Close()
			x, err := r.client.Dial(t.Context(), "tcp", "10.0.0.2:15001")
			if err != nil {
				t.Fatal(err)
			}
			defer x.Close()
			if _, err := x.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the client sees %v", err)
			}
			if rec := r.ended(t); rec.Code != c.code || rec.Detail == "" {
				t.Errorf("%v %q", rec.Code, rec.Detail)
			}
		})
	}
}

func TestWeighted(t *testing.T) {
	e, err := New(Config{Proxy: &resource.TCPProxy{Weighted: []resource.WeightedCluster{
		{Name: "v1", Weight: 1}, {Name: "none"}, {Name: "v2", Weight: 3}}}}, Deps{Rand: rand.New(rand.NewPCG(1, 2)).Uint64})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for range 40_000 {
		got[e.target()]++
	}
	if got["v1"] < 9_500 || got["v1"] > 10_500 || got["v1"]+got["v2"] != 40_000 {
		t.Error(got)
	}
	for _, p := range []resource.TCPProxy{{}, {Cluster: "a", Weighted: []resource.WeightedCluster{{Name: "b", Weight: 1}}},
		{Weighted: []resource.WeightedCluster{{Name: "b"}}}} {
		if _, err := New(Config{Proxy: &p}, Deps{}); err == nil {
			t.Errorf("%+v was accepted", p)
		}
	}
}
