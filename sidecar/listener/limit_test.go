package listener

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/overload"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

// limited is a Set under limits that serves until the test's function is over.
func limited(t *testing.T, c overload.Config, d overload.Deps, f func(b *bench, m *overload.Manager)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		net := netio.NewMemory()
		b := &bench{t: t, rec: &records{}, log: &locked{}, server: net.Host("server", "10.0.0.1"), client: net.Host("client", "10.0.0.2")}
		m := overload.New(c, d)
		b.set = NewSet(Deps{Net: m.Net(b.server), Record: b.rec, Overload: m})
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{}, 2)
		go func() { _ = b.set.Run(ctx); ended <- struct{}{} }()
		go func() { _ = m.Run(ctx); ended <- struct{}{} }()
		f(b, m)
		cancel()
		<-ended
		<-ended
	})
}

// answers says whether a connection is served.
func answers(c netio.Conn) error {
	if _, err := io.WriteString(c, "x\n"); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := c.Read(make([]byte, 100))
	return err
}

// TestLimits: a connection beyond a limit is reset, with its code, the others
// are served, and an ended one makes room.
func TestLimits(t *testing.T) {
	for _, tt := range []struct {
		name string
		c    overload.Config
		code telemetry.Code
	}{
		{"process", overload.Config{Connections: 2, PerSource: -1}, telemetry.ConnectionLimit},
		{"every listener", overload.Config{PerListener: 2}, telemetry.ConnectionLimit},
		{"this listener", overload.Config{PerListener: 100, Listeners: map[string]int{"a": 2}}, telemetry.ConnectionLimit},
		{"source", overload.Config{PerSource: 2}, telemetry.SourceLimit},
	} {
		t.Run(tt.name, func(t *testing.T) {
			limited(t, tt.c, overload.Deps{}, func(b *bench, _ *overload.Manager) {
				b.update("1", plain("a", 80, echo))
				one, two := b.dial(80), b.dial(80)
				for _, c := range []netio.Conn{one, two} {
					if err := answers(c); err != nil {
						b.t.Error(err)
					}
				}
				three := b.dial(80)
				defer three.Close()
				if err := answers(three); !errors.Is(err, syscall.ECONNRESET) {
					b.t.Errorf("the third connection: %v", err)
				}
				recs := b.rec.take()
				if len(recs) != 1 || recs[0].Code != tt.code || recs[0].DownstreamRemote.Addr() != netip.MustParseAddr("10.0.0.2") || recs[0].Listener != "a" {
					b.t.Errorf("records: %+v", recs)
				}
				if got := b.set.Status()[0].Counts; got.Limited != 1 || got.Accepted != 3 || got.Active != 2 {
					b.t.Errorf("counts: %+v", got)
				}
				_ = one.Close()
				synctest.Wait()
				four := b.dial(80)
				if err := answers(four); err != nil {
					b.t.Errorf("after one ended: %v", err)
				}
				if err := answers(two); err != nil {
					b.t.Errorf("one of the first: %v", err)
				}
				_, _ = two.Close(), four.Close()
			})
		})
	}
}

// TestShortOfMemory: listeners stop accepting, then refuse, end the youngest
// connections, and take clients again when the memory is back.
func TestShortOfMemory(t *testing.T) {
	var used atomic.Int64
	limited(t, overload.Config{Memory: 100 << 20}, overload.Deps{Memory: used.Load}, func(b *bench, m *overload.Manager) {
		b.update("1", plain("a", 80, echo))
		old := b.dial(80)
		if err := answers(old); err != nil {
			b.t.Fatal(err)
		}
		young := b.dial(80)
		if err := answers(young); err != nil {
			b.t.Fatal(err)
		}
		used.Store(90 << 20)
		time.Sleep(200 * time.Millisecond)
		if m.State() != overload.Slow {
			b.t.Fatalf("state %v", m.State())
		}
		passed := b.dial(80) // the one that Accept waited for already
		if err := answers(passed); err != nil {
			b.t.Fatal(err)
		}
		waits := b.dial(80)
		if err := answers(waits); err == nil || !strings.Contains(fmt.Sprint(err), "timeout") {
			b.t.Errorf("a new connection is served in state %v: %v", m.State(), err)
		}
		used.Store(96 << 20)
		time.Sleep(360 * time.Millisecond) // two are ended in this time
		late := b.dial(80)
		defer late.Close()
		if err := answers(late); !errors.Is(err, syscall.ECONNRESET) {
			b.t.Errorf("a new connection while requests are refused: %v", err)
		}
		used.Store(10 << 20)
		time.Sleep(time.Second)
		if err := answers(young); err == nil {
			b.t.Error("the younger connection was not ended")
		}
		for _, c := range []netio.Conn{old, b.dial(80)} {
			if err := answers(c); err != nil {
				b.t.Errorf("afterwards: %v", err)
			}
			_ = c.Close()
		}
		codes := map[telemetry.Code]int{}
		for _, r := range b.rec.take() {
			codes[r.Code]++
		}
		if codes[telemetry.Overload] == 0 {
			b.t.Errorf("records: %v", codes)
		}
		_, _, _ = young.Close(), passed.Close(), waits.Close()
	})
}
