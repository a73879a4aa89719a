package health

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var t0 = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func set(statuses ...resource.HealthStatus) []Endpoint {
	out := make([]Endpoint, len(statuses))
	for i, s := range statuses {
		out[i] = Endpoint{fmt.Sprint(i), s}
	}
	return out
}

// in is the usable addresses, as text.
func in(t *Tracker, now time.Time) string {
	var out []string
	states, _ := t.States(now)
	for _, s := range states {
		if s.Usable {
			out = append(out, s.Address)
		}
	}
	return strings.Join(out, " ")
}

func fail(t *Tracker, address string, n int, now time.Time) {
	for range n {
		t.Failed(address, "refused", now)
	}
}

const ok = resource.Healthy

func TestCatalogue(t *testing.T) {
	tr := NewTracker()
	tr.Set(set(resource.HealthUnknown, ok, resource.Unhealthy, resource.Draining, resource.Degraded), 0)
	if got := in(tr, t0); got != "0 1 4" {
		t.Errorf("in: %s", got)
	}
	states, _ := tr.States(t0)
	if states[2].Why != "unhealthy in the catalogue" || states[3].Why != "draining in the catalogue" {
		t.Errorf("%+v", states)
	}
	tr.Set(set(resource.Unhealthy, resource.Unhealthy), 0)
	if got := in(tr, t0); got != "" {
		t.Errorf("critical instances are used without a panic threshold: %s", got)
	}
}

func TestPanicThreshold(t *testing.T) {
	tr := NewTracker()
	tr.Set(set(ok, resource.Unhealthy, resource.Unhealthy), 30)
	if got := in(tr, t0); got != "0" {
		t.Errorf("33 %% is not below 30: %s", got)
	}
	tr.Set(set(ok, resource.Unhealthy, resource.Unhealthy), 50)
	if got := in(tr, t0); got != "0 1 2" {
		t.Errorf("33 %% is below 50: %s", got)
	}
	if s, _ := tr.States(t0); !strings.Contains(s[1].Why, "panic threshold") {
		t.Errorf("%+v", s[1])
	}
}

func TestEjectionGrowsAndEnds(t *testing.T) {
	tr := NewTracker()
	tr.Set(set(ok, ok, ok), 0)
	fail(tr, "1", Threshold-1, t0)
	if got := in(tr, t0); got != "0 1 2" {
		t.Fatalf("ejected too early: %s", got)
	}
	now := t0
	for n := 1; n <= 3; n++ {
		fail(tr, "1", 1, now)
		if got := in(tr, now); got != "0 2" {
			t.Fatalf("ejection %d: %s", n, got)
		}
		_, next := tr.States(now)
		if d := next.Sub(now); d != time.Duration(n)*BaseEjection {
			t.Errorf("ejection %d lasts %v", n, d)
		}
		now = next
		if got := in(tr, now); got != "0 1 2" {
			t.Errorf("not let in again: %s", got)
		}
	}
	tr.Succeeded("1")
	fail(tr, "1", Threshold-1, now)
	if got := in(tr, now); got != "0 1 2" {
		t.Errorf("a success did not clear the failures: %s", got)
	}
	now = now.Add(time.Hour)
	fail(tr, "1", 1, now)
	if _, next := tr.States(now); next.Sub(now) != BaseEjection {
		t.Errorf("an hour later the ejections are not forgotten: %v", next.Sub(now))
	}
}

func TestStateSurvivesSet(t *testing.T) {
	tr := NewTracker()
	tr.Set(set(ok, ok, ok), 0)
	fail(tr, "1", Threshold, t0)
	tr.Set(set(ok, ok, ok, ok), 0)
	if got := in(tr, t0); got != "0 2 3" {
		t.Errorf("forgotten: %s", got)
	}
	if !tr.Succeeded("1") || in(tr, t0) != "0 1 2 3" {
		t.Error("a success must let it in")
	}
	fail(tr, "3", Threshold, t0)
	tr.Set(set(ok), 0)
	tr.Set(set(ok, ok, ok, ok), 0)
	if got := in(tr, t0); got != "0 1 2 3" {
		t.Errorf("what was seen of an address that left came back: %s", got)
	}
}

// Whatever fails, half of what the catalogue allows stays, and never nothing.
func TestEjectionNeverEmpties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tr := NewTracker()
		n := rapid.IntRange(1, 9).Draw(t, "n")
		eps := make([]Endpoint, n)
		allowed := 0
		for i := range eps {
			eps[i] = Endpoint{fmt.Sprint(i), resource.HealthStatus(rapid.IntRange(0, 4).Draw(t, "status"))}
			if usable(eps[i].Status) {
				allowed++
			}
		}
		tr.Set(eps, 0)
		now := t0
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 8).Draw(t, "seconds")) * time.Second)
			a := fmt.Sprint(rapid.IntRange(0, n-1).Draw(t, "address"))
			if rapid.IntRange(0, 5).Draw(t, "kind") == 0 {
				tr.Succeeded(a)
			} else {
				tr.Failed(a, "refused", now)
			}
			left := len(strings.Fields(in(tr, now)))
			if allowed > 0 && left == 0 || (allowed-left)*100 > allowed*MaxShare {
				t.Fatalf("%d of %d are left", left, allowed)
			}
		}
	})
}

// TestReadmitted: where all that is in has failed last, what is out gets another
// chance before its time, unless it has failed just now.
func TestReadmitted(t *testing.T) {
	tr := NewTracker()
	tr.Set(set(ok, ok, resource.Unhealthy), 0)
	fail(tr, "0", Threshold, t0)
	if got := in(tr, t0); got != "1" {
		t.Fatalf("in: %s", got)
	}
	now := t0.Add(Readmit / 2)
	if tr.Failed("1", "refused", now) || in(tr, now) != "1" {
		t.Errorf("in: %s, although 0 has failed just now", in(tr, now))
	}
	now = t0.Add(Readmit)
	if !tr.Failed("1", "refused", now) || in(tr, now) != "0 1" {
		t.Errorf("in: %s, want both", in(tr, now))
	}
	if !tr.Failed("0", "refused", now) || in(tr, now) != "1" {
		t.Errorf("in: %s: the one that still fails is to be out again", in(tr, now))
	}
	tr.Succeeded("1")
	now = now.Add(Readmit)
	tr.Set(set(ok, ok, ok), 0)
	if tr.Failed("1", "refused", now); in(tr, now) != "1 2" {
		t.Errorf("in: %s: one that has not failed is in, so that nobody is readmitted", in(tr, now))
	}
}
