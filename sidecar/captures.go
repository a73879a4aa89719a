package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Capture ports of several workloads.
//
// Why: the port at which a redirected connection arrives says whose it is, and
// nobody can forge that; but configuration has one port for everybody
// (OutboundListenerPort, 15001), since it does not know who shares a host.
//
// Conditions: the first workload that asks for the port of all gets it, each
// further one the first free port from firstCapture on. A port that was asked
// for by another number is kept. Inbound there is one socket for all, since
// original destinations tell workloads apart (shared.go).
//
// First start: in the order in which configurations come.
//
// Recovery: who has which port is kept on disk, so that a restart, or the return
// of a service, changes nothing that rules rely on. A port is given to another
// workload only when all are taken: the longest unused first.
const (
	commonCapture = 15001
	firstCapture  = 15101
	lastCapture   = 15999
)

// captures is what the workloads of a process share of capture ports.
type captures struct {
	network netio.Net
	log     *slog.Logger
	record  telemetry.Recorder
	clock   func() int64 // seconds
	file    string       // "": nothing is kept
	others  func(name string) []*workload

	wg sync.WaitGroup // accept loops of shared sockets

	mu      sync.Mutex
	ports   map[string]assigned // guarded by mu: by workload
	present map[string][]uint16 // guarded by mu: capture ports of each workload's configuration
	sockets map[string]*shared  // guarded by mu: by address
	claims  map[string]claimant // guarded by mu: by workload

	own atomic.Pointer[map[uint16]bool] // all of present
}

// assigned is a workload's outbound capture port.
type assigned struct {
	Port uint16 `json:"port"`
	Used int64  `json:"used"` // seconds since 1970: when it was asked for last
}

func newCaptures(s *Sidecar, file string) (*captures, error) {
	c := &captures{network: s.traffic, log: s.deps.Log, record: s.record, file: file, clock: func() int64 { return s.deps.Now().Unix() },
		others: s.others, ports: map[string]assigned{}, present: map[string][]uint16{}, sockets: map[string]*shared{}, claims: map[string]claimant{}}
	c.own.Store(&map[uint16]bool{})
	if file == "" {
		return c, nil
	}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &c.ports)
	}
	if err != nil {
		return nil, fmt.Errorf("sidecar: %s, which says which workload has which capture port: %w; remove it, and make the rules of redirection anew afterwards", file, err)
	}
	return c, nil
}

// ownPort says whether a capture listener of this process has the port.
func (c *captures) ownPort(port uint16) bool { return (*c.own.Load())[port] }

// place says where a workload's listeners are opened, and takes in what they
// capture. The configurations are not changed.
func (c *captures) place(w *workload, configs []listener.Config) []listener.Config {
	out := slices.Clone(configs)
	var ports []uint16
	mine := claimant{workload: w}
	for i := range out {
		l := out[i].Resource
		if !l.UseOriginalDst || l.Address.Path != "" {
			continue
		}
		port := l.Address.Port
		switch l.Direction {
		case resource.Outbound:
			port = c.assign(w, l.Address)
			out[i].Bind = resource.Address{Host: l.Address.Host, Port: port}
		case resource.Inbound:
			mine.claim(l)
		}
		ports = append(ports, port)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	name := w.cfg.name()
	c.present[name], c.claims[name] = ports, mine
	c.shareLocked()
	return out
}

// forget takes a workload out. Its port stays its own.
func (c *captures) forget(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.present, name)
	delete(c.claims, name)
	c.shareLocked()
}

// captured says whether a workload's configuration captures.
func (c *captures) captured(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.present[name]) > 0
}

// refresh takes in what changed of the services.
func (c *captures) refresh() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shareLocked()
}

// shareLocked makes known what the workloads have.
func (c *captures) shareLocked() {
	own := map[uint16]bool{}
	for _, ports := range c.present {
		for _, p := range ports {
			own[p] = true
		}
	}
	c.own.Store(&own)
	table := newClaimTable(c.claims)
	for _, s := range c.sockets {
		s.table.Store(table)
	}
}

// assign gives a workload its outbound capture port. Its socket is held from
// then on, where it is not the port of all.
func (c *captures) assign(w *workload, a resource.Address) uint16 {
	if a.Port != commonCapture || w.Sidecar.cfg.Static {
		return a.Port
	}
	name := w.cfg.name()
	for after := uint16(0); ; {
		port, isNew := c.reserve(w, after)
		if !isNew || port < firstCapture {
			return port
		}
		if _, err := w.listeners.Hold(context.Background(), resource.Address{Host: a.Host, Port: port}); err == nil {
			return port
		}
		c.mu.Lock()
		delete(c.ports, name) // another process has it
		c.mu.Unlock()
		after = port
	}
}

// reserve finds a workload's port, or a new one beyond after.
func (c *captures) reserve(w *workload, after uint16) (port uint16, isNew bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := w.cfg.name()
	mine, had := c.ports[name]
	if !had {
		mine.Port = c.freeLocked(w, after)
	}
	if now := c.clock(); !had || now-mine.Used >= 3600 {
		mine.Used = now
		c.ports[name] = mine
		if err := c.save(); err != nil {
			w.log.Warn("sidecar: the capture port could not be kept; after a restart it may be another", telemetry.KeyFile, c.file, telemetry.KeyError, err.Error())
		}
	}
	return mine.Port, !had
}

// freeLocked finds a port that is nobody's.
func (c *captures) freeLocked(w *workload, after uint16) uint16 {
	taken := map[uint16]bool{}
	for _, a := range c.ports {
		taken[a.Port] = true
	}
	for _, ports := range c.present {
		for _, p := range ports {
			taken[p] = true
		}
	}
	if !taken[commonCapture] && after == 0 {
		return commonCapture
	}
	for p := max(firstCapture, after+1); p <= lastCapture; p++ {
		if !taken[p] {
			return p
		}
	}
	oldest := ""
	for _, name := range slices.Sorted(maps.Keys(c.ports)) {
		if _, here := c.present[name]; !here && (oldest == "" || c.ports[name].Used < c.ports[oldest].Used) {
			oldest = name
		}
	}
	if oldest == "" {
		w.log.Error("sidecar: no capture port is left; the listener cannot be opened", "from", firstCapture, "to", lastCapture)
		return commonCapture
	}
	port := c.ports[oldest].Port
	delete(c.ports, oldest)
	w.log.Warn("sidecar: a capture port changes hands, since all are taken: make the rules of redirection anew", "from", oldest, "port", port)
	return port
}

func (c *captures) save() error {
	if c.file == "" {
		return nil
	}
	data, err := json.MarshalIndent(c.ports, "", " ")
	if err != nil {
		return err
	}
	tmp := c.file + ".tmp"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, c.file)
}

// workloadNet is the network of one workload's listeners: what is shared with
// other workloads is shared, and what collides with one is said to.
type workloadNet struct {
	netio.Net
	w *workload
}

func (n workloadNet) Listen(ctx context.Context, network, address string) (netio.Listener, error) {
	if n.w.sharesInbound(address) {
		return n.w.captures.join(ctx, n.w.cfg.name(), address)
	}
	ln, err := n.Net.Listen(ctx, network, address)
	if errors.Is(err, syscall.EADDRINUSE) {
		for _, o := range n.w.captures.others(n.w.cfg.name()) {
			for _, st := range o.listeners.Status() {
				if samePort(st.Address, address) && st.Err == "" {
					return nil, fmt.Errorf("%w: the workload %s of this process has %s (%s): give one of them another port (OutboundListenerPort, LocalBindPort, or the proxy's own)",
						err, o.cfg.name(), st.Address, st.Name)
				}
			}
		}
	}
	return ln, err
}

func samePort(a, b string) bool {
	_, p, err := net.SplitHostPort(a)
	_, q, berr := net.SplitHostPort(b)
	return err == nil && berr == nil && p == q
}

// sharesInbound says whether an address is that of an inbound capture listener.
func (w *workload) sharesInbound(address string) bool {
	if c := &w.Sidecar.cfg; c.Static || c.AllLocal == nil && len(c.Workloads) < 2 {
		return false
	}
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return false
	}
	w.captures.mu.Lock()
	defer w.captures.mu.Unlock()
	return slices.Contains(w.captures.claims[w.cfg.name()].sockets, ap)
}

func addrPortOf(a resource.Address) netip.AddrPort {
	ap, _ := netip.ParseAddrPort(net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port))))
	return ap
}
