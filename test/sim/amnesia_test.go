package sim

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestAmnesia: a catalogue that suddenly knows nothing fails no request, the
// control plane says that it is stale, and what is confirmed twice is believed
// (DP5).
func TestAmnesia(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, Config{Seed: 31, Latency: time.Millisecond}, 2)
		loads := s.load(LoadConfig{RPS: 20})
		t.Log("the leader is gone: answers are empty, and the strongest reading gets none")
		s.Catalogue.Amnesia(false)
		time.Sleep(time.Minute)
		st := s.Plane.Status()
		if !st.Source.Stale || st.Source.Reason == "" || len(st.Source.StaleService) != 4 {
			t.Errorf("the status does not show it: %+v", st.Source)
		}
		if s.Plane.Metric("parrel_controlplane_source_stale") != 1 {
			t.Error("nor does the metric")
		}
		s.Catalogue.Recover()
		time.Sleep(5 * time.Second)
		if st := s.Plane.Status(); st.Source.Stale || len(st.Source.StaleService) > 0 {
			t.Errorf("still stale after recovery: %+v", st.Source)
		}

		t.Log("a control plane that starts during an amnesia does not empty those who have something")
		s.Catalogue.Amnesia(false)
		s.Plane.Kill()
		s.Plane.Start()
		time.Sleep(time.Minute)
		s.Catalogue.Recover()
		s.Plane.InSync(7, time.Minute)
		clean(t, loads, 1500)
	})
}

// TestEmptyService: the last instances of a service are kept until two strong
// readings say that they are gone; then nobody is called any more.
func TestEmptyService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, Config{Seed: 32, Latency: time.Millisecond}, 2)
		s.api[0].Deregister()
		time.Sleep(time.Second)
		none(t, "with one instance", s.burst(3))

		s.Catalogue.Amnesia(false)
		s.Catalogue.Recover()
		s.api[1].Deregister()
		time.Sleep(900 * time.Millisecond)
		if status, _, body, err := s.web.Get(apiPort, "/"); err != nil || status != 200 {
			t.Errorf("before any confirmation: %d %s %v", status, body, err)
		}
		time.Sleep(3 * time.Second)
		status, _, body, err := s.web.Get(apiPort, "/")
		if err != nil || status != 503 {
			t.Errorf("after the confirmations: %d %s %v", status, body, err)
		}
		s.api[0].Register()
		s.api[1].Register()
		time.Sleep(time.Second)
		none(t, "registered again", s.burst(3))
	})
}
