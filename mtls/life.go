package mtls

import (
	"context"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Alarms in percent of the life: the first, when the certificate should long
// have been renewed (sources renew at half), and the step to the next ones. The
// last is at 100.
const (
	alarmFrom = 70
	alarmStep = 5
)

// Life says how much of the leaf's life has passed at that time: 0 at its
// beginning, 1 and more after its end.
func Life(svid *x509svid.SVID, now time.Time) float64 {
	leaf := svid.Certificates[0]
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	if life <= 0 {
		return 1
	}
	return float64(now.Sub(leaf.NotBefore)) / float64(life)
}

// Alarm is a certificate that nears its end, or has passed it.
type Alarm struct {
	ID      string
	Life    float64 // see [Life]
	Expires time.Time
	Expired bool
}

// WatchConfig of [WatchLife].
type WatchConfig struct {
	Source  Source
	OnAlarm func(Alarm)      // nil: only the log
	Log     *slog.Logger     // nil: discard
	Now     func() time.Time // nil: time.Now
}

// WatchLife raises an alarm at 70 % of the life of the source's certificate,
// again at each further 5 %, and when it has expired; until ctx ends, whose
// error it returns.
func WatchLife(ctx context.Context, c WatchConfig) error {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	var watched *x509svid.SVID
	next := alarmFrom
	for {
		changed := c.Source.Changed()
		svid := c.Source.Current().SVID
		if svid != watched {
			watched, next = svid, alarmFrom
		}
		var due <-chan time.Time // nil: nothing to wait for
		stop := func() bool { return false }
		if svid != nil && len(svid.Certificates) > 0 && next <= 100 {
			now := c.Now()
			if passed := Life(svid, now) * 100; passed >= float64(next) {
				c.raise(svid, passed/100, now)
				for ; float64(next) <= passed && next <= 100; next += alarmStep {
				}
			}
			if next <= 100 {
				leaf := svid.Certificates[0]
				at := leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 100 * time.Duration(next))
				t := time.NewTimer(max(at.Sub(now), time.Millisecond))
				due, stop = t.C, t.Stop
			}
		}
		select {
		case <-ctx.Done():
			stop()
			return ctx.Err()
		case <-changed:
		case <-due:
		}
		stop()
	}
}

func (c WatchConfig) raise(svid *x509svid.SVID, life float64, now time.Time) {
	a := Alarm{ID: svid.ID.String(), Life: life, Expires: svid.Certificates[0].NotAfter, Expired: life >= 1}
	if a.Expired {
		c.Log.Error("the certificate has expired: connections are refused until it is renewed", "id", a.ID, "expired", a.Expires)
	} else {
		c.Log.Warn("the certificate should have been renewed by now: check that the issuer can be reached",
			"id", a.ID, "expires", a.Expires, "left", a.Expires.Sub(now).Round(time.Second))
	}
	if c.OnAlarm != nil {
		c.OnAlarm(a)
	}
}
