package intercept

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Guard applies c for a sidecar that may not be there yet: rules that lapse by
// themselves, until ready returns nil; then they are confirmed. If that does not
// happen within the time given, or ctx ends, they are taken away again. A process
// that dies meanwhile leaves rules that lapse. ready is asked again every
// quarter of a second while it returns an error; nil is ready at once.
func Guard(ctx context.Context, m Manager, c Config, within time.Duration, ready func(context.Context) error) error {
	if ready == nil || within <= 0 {
		return m.Apply(ctx, c)
	}
	c.Provisional = within + 5*time.Second // to take them away, or to confirm
	if err := m.Apply(ctx, c); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	err := poll(wait, ready)
	if err == nil {
		err = m.Confirm(ctx)
	} else if ctx.Err() != nil {
		err = ctx.Err()
	} else {
		err = fmt.Errorf("intercept: the sidecar was not ready within %v, so that the redirection was taken back: %w; look at the sidecar's log, or give it more time", within, err)
	}
	if err == nil {
		return nil
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return errors.Join(err, m.Clean(clean))
}

// poll asks until there is no error, and returns the last one when ctx ends.
func poll(ctx context.Context, ready func(context.Context) error) error {
	t := time.NewTicker(250 * time.Millisecond)
	defer t.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-t.C:
		}
	}
}
