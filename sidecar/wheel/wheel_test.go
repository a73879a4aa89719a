package wheel

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, start := New(), time.Now()
		var fired []time.Duration
		var tm Timer
		tm.Init(w, func() { fired = append(fired, time.Since(start)) })
		for _, d := range []time.Duration{0, 3 * time.Millisecond, 15 * time.Second, time.Hour} {
			start, fired = time.Now(), nil
			tm.Set(d)
			time.Sleep(d + 2*Tick)
			synctest.Wait()
			if len(fired) != 1 || fired[0] < d || fired[0] > d+2*Tick {
				t.Errorf("set to %s: fired after %v", d, fired)
			}
			time.Sleep(time.Minute)
			if len(fired) != 1 {
				t.Errorf("set to %s: fired again: %v", d, fired)
			}
		}
	})
}

// Set moves a time-out both ways; Stop takes it back.
func TestMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, n := New(), 0
		var tm Timer
		tm.Init(w, func() { n++ })
		tm.Set(time.Second)
		for range 20 { // put off again and again
			time.Sleep(500 * time.Millisecond)
			tm.Set(time.Second)
		}
		if n != 0 {
			t.Fatal("fired although it was put off")
		}
		tm.Set(time.Hour)
		tm.Set(time.Second) // and back
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		if n != 1 {
			t.Fatalf("fired %d times", n)
		}
		tm.Set(time.Second)
		tm.Stop()
		time.Sleep(time.Hour)
		tm.Set(time.Second)
		tm.Remove()
		time.Sleep(time.Hour)
		if n != 1 {
			t.Fatalf("fired %d times after Stop and Remove", n)
		}
	})
}

// Many timers against what each was set to last.
func TestMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		w := New()
		type entry struct {
			Timer
			want  time.Time
			fired []time.Time
		}
		es := make([]entry, 300)
		for i := range es {
			e := &es[i]
			e.Init(w, func() { e.fired = append(e.fired, time.Now()) })
		}
		set := func(e *entry) {
			d := time.Duration(r.Int64N(int64(40 * time.Second)))
			e.want, e.fired = time.Now().Add(d), nil
			e.Set(d)
		}
		for range 2000 {
			if e := &es[r.IntN(len(es))]; e.want.IsZero() || e.want.After(time.Now().Add(5*Tick)) {
				set(e)
			}
			time.Sleep(time.Duration(r.Int64N(int64(20 * time.Millisecond))))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		for i := range es {
			e := &es[i]
			if e.want.IsZero() {
				continue
			}
			if len(e.fired) != 1 || e.fired[0].Before(e.want) || e.fired[0].Sub(e.want) > 2*Tick {
				t.Fatalf("timer %d: want %s, fired %v", i, e.want, e.fired)
			}
		}
	})
}

func TestSetAllocatesNothing(t *testing.T) {
	w := New()
	var tm Timer
	tm.Init(w, func() {})
	tm.Set(time.Hour)
	defer tm.Remove()
	if n := testing.AllocsPerRun(100, func() { tm.Set(time.Hour); tm.Stop() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkSet(b *testing.B) {
	w := New()
	var tm Timer
	tm.Init(w, func() {})
	defer tm.Remove()
	for b.Loop() {
		tm.Set(15 * time.Second)
	}
}
