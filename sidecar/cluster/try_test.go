package cluster

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
)

// A try that is used again is bounded by its own time: the wheel's call for the
// attempt before means nothing to it.
func TestTryAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := wheel.New()
		for range 100 {
			var life stream.Scope
			first := newTry(&life, w, time.Time{}, 30*time.Millisecond)
			time.Sleep(25 * time.Millisecond)
			if !first.answered() {
				t.Fatal("late before its time")
			}
			first.end()
			second := newTry(&life, w, time.Now(), 30*time.Millisecond)
			first.late() // late, in both senses
			time.Sleep(15 * time.Millisecond)
			if c := second.scope.Cause(); c != nil {
				t.Fatalf("another's end: %v", c)
			}
			time.Sleep(30 * time.Millisecond)
			synctest.Wait()
			if c := second.scope.Cause(); c != errPerTry {
				t.Fatalf("%v, want the end of its time", c)
			}
			if second.answered() {
				t.Fatal("answered after its time")
			}
			second.end()
			third := newTry(&life, w, time.Time{}, time.Hour)
			if third == second {
				t.Fatal("one that was cancelled is used again")
			}
			life.Cancel(nil)
			if third.scope.Cause() == nil {
				t.Fatal("the caller's end is not heard of")
			}
			third.answered()
			third.end()
			over := newTry(&life, w, time.Time{}, time.Hour)
			if over.scope.Cause() == nil {
				t.Fatal("an exchange that is over begins an attempt")
			}
			over.answered()
			over.end()
		}
	})
}

// The moment that the caller gives counts, not that of the call.
func TestTryFrom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		time.Sleep(time.Second)
		y := newTry(context.Background(), wheel.New(), began, 1500*time.Millisecond)
		time.Sleep(600 * time.Millisecond)
		synctest.Wait()
		if !errors.Is(y.scope.Cause(), errPerTry) {
			t.Error("its time counts from the call")
		}
		y.end()
	})
}

func BenchmarkTry(b *testing.B) {
	w := wheel.New()
	var life stream.Scope
	b.ReportAllocs()
	for b.Loop() {
		y := newTry(&life, w, time.Time{}, time.Minute)
		y.answered()
		y.end()
	}
}
