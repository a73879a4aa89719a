package intercept

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"
)

// Hold implements Manager.
func (m *manager) Hold(ctx context.Context, h Holding) error {
	m.mu.Lock()
	applied := m.applied
	m.mu.Unlock()
	if applied == nil {
		return errors.New("intercept: nothing was applied by this process, so that there is nothing to hold: apply first")
	}
	if h.Notify == nil {
		h.Notify = func(error) {}
	}
	every := applied.holdFor() / 3
	t := time.NewTicker(every)
	defer t.Stop()
	dead := false
	for {
		err := h.alive(ctx, every)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !dead:
			h.Notify(fmt.Errorf("intercept: the sidecar does not answer, the rules are not held: %w", err))
		case err == nil && dead:
			h.Notify(errors.New("intercept: the sidecar answers again, the rules are held"))
		}
		dead = err != nil
		if !dead {
			switch err := m.keep(); {
			case errors.Is(err, ErrCleaned):
				return err
			case err != nil:
				h.Notify(err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

func (h Holding) alive(ctx context.Context, within time.Duration) error {
	if h.Alive == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return h.Alive(ctx)
}

// keep renews what lapses and repairs what is no longer as it was applied.
func (m *manager) keep() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.applied == nil { // by this process
		return ErrCleaned
	}
	c := *m.applied
	s, err := m.open()
	if err != nil {
		return err
	}
	defer s.close()
	groups, missing, err := lookUp(c)
	if err != nil {
		return err
	}
	why, err := m.broken(s, c, groups)
	if err != nil {
		return explain(err)
	}
	var lapse time.Duration
	if c.FailOpen {
		lapse = c.holdFor()
	}
	if why == "" {
		return explain(s.nft.renew(lapse))
	}
	// A workload whose cgroup is gone has no process: the others must not wait for it.
	if err := m.put(s, c, groups, lapse); err != nil {
		return explain(err)
	}
	m.groups = groups
	return errors.Join(fmt.Errorf("intercept: the rules were made again: %s", why), missing)
}

// cleaned says that the table is not there because somebody asked for that: a
// firewall that is reloaded takes tables away, Clean the routes as well.
func (m *manager) cleaned(s sockets, c Config) bool {
	routes, _ := wanted(c)
	lo, err := s.route.loopback()
	if err != nil || len(routes) == 0 {
		return false
	}
	have, _, err := s.route.ours(lo)
	return err == nil && len(have) == 0
}

// broken says what of the rules is not as it was applied, "" when nothing is.
func (m *manager) broken(s sockets, c Config, groups map[string]cgroup) (string, error) {
	there, _, err := s.nft.table()
	switch {
	case err != nil:
		return "", err
	case !there && m.cleaned(s, c):
		return "", ErrCleaned
	case !there:
		return "somebody removed the table inet " + tableName, nil
	case !maps.Equal(groups, m.groups):
		return "a cgroup was made anew", nil
	}
	rules, err := s.nft.rules()
	if err != nil {
		return "", err
	}
	want := 0
	for _, ch := range compose(c, groups, 0).chains {
		want += len(ch.rules)
	}
	if len(rules) != want {
		return fmt.Sprintf("of %d rules %d were there", want, len(rules)), nil
	}
	lo, err := s.route.loopback()
	if err != nil {
		return "", err
	}
	add, _, err := s.route.changes(c, lo)
	if err != nil || len(add) == 0 {
		return "", err
	}
	return "missing was: " + add[0].do.what, nil
}
