package intercept

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// newManager makes the mechanism of o.
func newManager(o Options) (Manager, error) { return &manager{netns: o.NetNS, trace: o.Trace}, nil }

// manager is nftables' Manager. It keeps no socket open between calls.
type manager struct {
	netns string
	trace func(string)

	mu      sync.Mutex // one call at a time
	applied *Config    // last, for Hold
	groups  map[string]cgroup
}

var _ Manager = (*manager)(nil)

// step tells the trace what is about to be done.
func (m *manager) step(format string, a ...any) {
	if m.trace != nil {
		m.trace(fmt.Sprintf(format, a...))
	}
}

// sockets are the two that changing redirection takes.
type sockets struct{ route, nft *kernel }

func (m *manager) open() (s sockets, err error) {
	if s.route, err = openKernel(unix.NETLINK_ROUTE, m.netns); err != nil {
		return s, explain(err)
	}
	if s.nft, err = openKernel(unix.NETLINK_NETFILTER, m.netns); err != nil {
		s.route.close()
		return s, explain(err)
	}
	return s, nil
}

func (s sockets) close() { s.route.close(); s.nft.close() }

// Apply implements Manager.
func (m *manager) Apply(ctx context.Context, c Config) error {
	if err := errors.Join(ctx.Err(), c.Validate()); err != nil {
		return err
	}
	groups, missing, err := lookUp(c)
	if err := errors.Join(err, missing); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.answers(c); err != nil {
		return err
	}
	s, err := m.open()
	if err != nil {
		return err
	}
	defer s.close()
	if err := m.put(s, c, groups, c.lapse()); err != nil {
		return explain(err)
	}
	c.Provisional = 0 // what Hold makes again is for good
	m.applied, m.groups = &c, groups
	return nil
}

// answers says whether answers to connections in a client's name can come back. An
// application on 127.0.0.1 answers from there to the client's address, for which
// there is no route unless its socket has the packet mark of the sidecar's:
// net.ipv4.tcp_fwmark_accept. It is asked for and not set, since it would have to be
// set back.
func (m *manager) answers(c Config) error {
	if c.InboundPort == 0 || c.InboundMode != TProxy {
		return nil
	}
	v, err := inNetNS(m.netns, func() (string, error) {
		b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_fwmark_accept")
		if errors.Is(err, fs.ErrNotExist) {
			return "1", nil // no /proc: it cannot be known
		}
		return strings.TrimSpace(string(b)), err
	})
	if err != nil {
		return fmt.Errorf("intercept: reading net.ipv4.tcp_fwmark_accept: %w", err)
	}
	if v == "0" {
		return errors.New("intercept: inbound mode tproxy needs net.ipv4.tcp_fwmark_accept=1 in this network namespace, for the answers of applications on 127.0.0.1 to come back to the sidecar: set it (sysctl -w net.ipv4.tcp_fwmark_accept=1; in a compose file under sysctls), or use the inbound mode redirect")
	}
	return nil
}

// put makes c's state of whatever state there is: it needs no knowledge of who
// was here before, nor of how far they came.
func (m *manager) put(s sockets, c Config, groups map[string]cgroup, lapse time.Duration) error {
	ms, err := compose(c, groups, lapse).messages()
	if err != nil {
		return err
	}
	m.step("look")
	if _, _, err := s.nft.table(); err != nil {
		return err
	}
	lo, err := s.route.loopback()
	if err != nil {
		return err
	}
	add, remove, err := s.route.changes(c, lo)
	if err != nil {
		return err
	}
	// Routes before rules, since routing comes before NAT, and the stale ones after:
	// at no time are there rules without the routes that they need.
	for i, ch := range add {
		m.step("%s", ch.do.what)
		if err := s.route.ask(ch.do); err != nil && !errors.Is(err, unix.EEXIST) { // another's that does the same
			return errors.Join(err, undo(s.route, add[:i]))
		}
	}
	m.step("replace table inet %s", tableName)
	if err := s.nft.transact(ms); err != nil {
		return errors.Join(err, undo(s.route, add))
	}
	for _, ch := range remove {
		m.step("%s", ch.do.what)
		if err := s.route.ask(ch.do); err != nil && !gone(err) {
			return err
		}
	}
	m.step("done")
	return nil
}

func undo(k *kernel, done []change) (errs error) {
	for _, ch := range slices.Backward(done) {
		if err := k.ask(ch.undo); err != nil && !gone(err) {
			errs = errors.Join(errs, fmt.Errorf("taking back %s: %w", ch.do.what, err))
		}
	}
	return errs
}

// gone says that what was to be removed is not there.
func gone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) }

// table says whether our table is there and how it fails. A table of our name
// that we did not make is an error.
func (k *kernel) table() (there, failOpen bool, err error) {
	names, err := k.tables()
	if err != nil || !slices.Contains(names, tableName) {
		return false, false, err
	}
	chains, err := k.chains()
	switch {
	case err != nil:
		return false, false, err
	case slices.Contains(chains, markOpen):
		return true, true, nil
	case slices.Contains(chains, markClosed):
		return true, false, nil
	case len(chains) == 0: // removed meanwhile, or empty: nothing of anybody's is lost
		names, err = k.tables()
		if err != nil || !slices.Contains(names, tableName) {
			return false, false, err
		}
	}
	return false, false, ErrForeign
}

// Confirm implements Manager.
func (m *manager) Confirm(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.open()
	if err != nil {
		return err
	}
	defer s.close()
	there, open, err := s.nft.table()
	if err != nil {
		return explain(err)
	}
	if !there {
		return errors.New("intercept: no rules are in force, so that there is nothing to confirm: apply them first")
	}
	var lapse time.Duration
	if open {
		lapse = DefaultHoldFor
		if m.applied != nil {
			lapse = m.applied.holdFor()
		}
	}
	m.step("confirm")
	return explain(s.nft.renew(lapse))
}

// renew starts the time of the capture set's elements again: emptied and filled in
// one transaction, there is no moment without them. (An element's time cannot be
// changed before Linux 6.12, and one that has lapsed cannot be removed by name.)
func (k *kernel) renew(lapse time.Duration) error {
	s := captureSet(lapse)
	return k.transact([]message{s.empty(), s.elements()})
}

// Clean implements Manager.
func (m *manager) Clean(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.open()
	if err != nil {
		return err
	}
	defer s.close()
	return explain(m.clean(s))
}

// clean takes the rules away before the routes, the reverse of put.
func (m *manager) clean(s sockets) error {
	m.step("look")
	there, _, foreign := s.nft.table()
	if foreign != nil && !errors.Is(foreign, ErrForeign) {
		return foreign
	}
	if there {
		m.step("remove table inet %s", tableName)
		if err := s.nft.transact([]message{deleteTable()}); err != nil && !gone(err) {
			return err
		}
	}
	m.applied = nil
	lo, err := s.route.loopback()
	if err != nil && !errors.Is(err, errLoopbackDown) {
		return err
	}
	_, remove, err := s.route.changes(Config{}, lo)
	if err != nil {
		return err
	}
	for _, ch := range remove {
		m.step("%s", ch.do.what)
		if err := s.route.ask(ch.do); err != nil && !gone(err) {
			return err
		}
	}
	m.step("done")
	return foreign
}

// Cgroups are the cgroups of c's workloads that exist now, by the names that c
// has, with what tells one from another of its name that is made later: rules
// are about the former alone, and Apply refuses a workload whose cgroup does not exist.
func Cgroups(c Config) (map[string]uint64, error) {
	groups, _, err := lookUp(Config{Outbound: c.Outbound})
	if err != nil {
		return nil, err
	}
	ids := make(map[string]uint64, len(groups))
	for name, g := range groups {
		ids[name] = g.id
	}
	return ids, nil
}

// lookUp finds the cgroups that c names. missing are those that are not there.
func lookUp(c Config) (groups map[string]cgroup, missing, err error) {
	names := append(cgroupsOf(c.Outbound), c.ExcludeCgroups...)
	if len(names) == 0 {
		return nil, nil, nil
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, nil, fmt.Errorf("intercept: finding the cgroup hierarchy: %w", err)
	}
	defer f.Close()
	root, err := cgroupRoot(f)
	if err != nil {
		return nil, nil, err
	}
	groups = map[string]cgroup{}
	byID := map[uint64]string{}
	for _, n := range names {
		g, err := findCgroup(root, n, inode)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			missing = errors.Join(missing, err)
			continue
		case err != nil:
			return nil, nil, err
		}
		if other, ok := byID[g.id]; ok && other != n {
			return nil, nil, fmt.Errorf("intercept: %s and %s are the same cgroup: name it once", other, n)
		}
		byID[g.id] = n
		groups[n] = g
	}
	return groups, missing, nil
}

// inode is a cgroup's id: the number of its folder's inode (kernfs).
func inode(path string) (uint64, error) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.IsDir() {
		return 0, fmt.Errorf("%s is no folder", path)
	}
	return sys.Ino, nil
}

// printConfig implements Print.
func printConfig(c Config) (string, error) {
	if err := c.Validate(); err != nil {
		return "", err
	}
	groups, missing, err := lookUp(c)
	if err := errors.Join(err, missing); err != nil {
		return "", err
	}
	return header(c) + compose(c, groups, c.lapse()).text(), nil
}

// header are the routes, which nft(8) cannot make, as comments.
func header(c Config) string {
	s := "# parrel redirect: what apply does, by netlink. Routes first:\n"
	routes, policies := wanted(c)
	for _, r := range routes {
		s += "#   " + r.String() + "\n"
	}
	for _, p := range policies {
		s += "#   " + p.String() + "\n"
	}
	return s + "# then, as one transaction:\n"
}
