package client

import (
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/parrel-mesh/parrel/xds/internal/refusal"
	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/wire"
)

// Node says who asks.
type Node struct {
	ID       string
	Cluster  string
	Metadata map[string]string
}

// Backoff is the pause between attempts: from Min doubling up to Max, each
// drawn between half and the whole of it. Zero fields take 200 ms and 30 s.
type Backoff struct {
	Min, Max time.Duration
	// Reset: a stream that lived this long starts again from Min; 0: 10 s.
	Reset time.Duration
}

// Config is what a Client needs.
type Config struct {
	Node Node
	// Dial makes one connection; one attempt a call. The client closes it.
	// The dialer must enable gRPC keepalive, or a half-dead connection is never
	// noticed: use DialOptions.
	Dial  func(ctx context.Context) (*grpc.ClientConn, error)
	SotW  bool  // state of the world, for servers that have only that
	Store Store // nil: nothing on disk
	// Check says whether this sidecar can execute the resource, beyond Decode
	// and Validate. nil: no further check.
	Check   func(resource.Resource) error
	Handler Handler
	Log     *slog.Logger  // nil: none
	Rand    func() uint64 // nil: math/rand/v2
	Backoff Backoff
	// SaveDelay gathers changes before they are written, which is how much a
	// kill -9 may lose; 0: 200 ms.
	SaveDelay time.Duration
	// Decode reads a resource; nil: wire.Decode.
	Decode func(*anypb.Any) (resource.Resource, []wire.Warning, error)
}

// Update is what one response, or the disk, changed of one type.
type Update struct {
	Type     resource.Type
	Upserted []resource.Resource
	Removed  []string
	Versions map[string]string // of the upserted, by name
	FromDisk bool
	Warnings []wire.Warning
}

// Handler takes updates, one at a time, in order, on Run's goroutine. What it
// was given counts as accepted: it is acknowledged after Apply returned, and
// kept on disk. Apply may call Subscribe; it must not block.
type Handler interface{ Apply(Update) }

// Status is the client's present state.
type Status struct {
	Connected bool      // a stream is open and has answered
	Since     time.Time // of Connected's present value
	Server    string    // what the control plane calls itself
	Attempts  int       // failed attempts since the last stream that answered
	LastError string    // why there is, or was last, no stream
	FromDisk  time.Time // when the set loaded from disk was saved; zero: none loaded
	StoreErr  string    // what went wrong with the disk; "" where nothing did
	Types     []TypeStatus
}

// TypeStatus is what the client holds of one type.
type TypeStatus struct {
	Type        resource.Type
	Versions    map[string]string // last good, by name
	Subscribed  int               // names asked for; -1: wildcard
	Updated     time.Time
	ACKs, NACKs uint64
	LastNACK    *NACK
}

// NACK is one refusal.
type NACK struct {
	At        time.Time
	Resources []Refused
}

// Refused is one refused resource.
type Refused = refusal.Refused

// Held is one resource as the client holds it.
type Held struct {
	Type           resource.Type
	Name           string
	Resource       resource.Resource // last good; nil where none was ever accepted
	Version        string
	Updated        time.Time
	Refused        string // why the newest version was refused; "" where it was not
	RefusedVersion string
}

// State is a last good set, as a Store keeps it.
type State struct {
	NodeID  string
	Created time.Time
	Types   map[resource.Type]map[string]Saved
}

// Saved is one resource on disk.
type Saved struct {
	Version string
	Any     []byte // the serialised google.protobuf.Any
}

// Store keeps the last good set.
type Store interface {
	// Load returns nil, nil where nothing was ever saved. A State together with
	// an error is usable: an older generation, and the error says why.
	Load() (*State, error)
	Save(*State) error
}

// Client is the ADS client.
type Client struct {
	cfg     Config
	changed chan struct{} // capacity 1: subscriptions changed
	save    chan struct{} // capacity 1: the set changed

	mu     sync.Mutex // guards all below
	types  map[resource.Type]*typeState
	status Status
}

// typeState is one type, over all streams. Guarded by Client.mu.
type typeState struct {
	typ        resource.Type
	wildcard   bool
	subscribed bool                // Subscribe was called
	want       map[string]struct{} // of a named type
	held       map[string]*held
	version    string // SotW: of the last accepted response
	updated    time.Time
	acks       uint64
	nacks      uint64
	lastNACK   *NACK
}

// held is one resource: the last good version, and the refusal of a newer one.
type held struct {
	res     resource.Resource // nil: none was ever accepted
	any     []byte
	version string
	updated time.Time
	refused *Refused
}

// New makes a Client. Config.Node.ID, Dial and Handler must be set.
func New(c Config) (*Client, error) {
	switch {
	case c.Node.ID == "":
		return nil, errors.New("client: Config.Node.ID is empty; set it to the proxy's service id")
	case c.Dial == nil:
		return nil, errors.New("client: Config.Dial is nil; the client needs a way to the control plane")
	case c.Handler == nil:
		return nil, errors.New("client: Config.Handler is nil; nobody would take the configuration")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Rand == nil {
		c.Rand = rand.Uint64
	}
	if c.Decode == nil {
		c.Decode = wire.Decode
	}
	if c.SaveDelay <= 0 {
		c.SaveDelay = 200 * time.Millisecond
	}
	c.Backoff = c.Backoff.withDefaults()
	cl := &Client{
		cfg: c, changed: make(chan struct{}, 1), save: make(chan struct{}, 1),
		types: map[resource.Type]*typeState{}, status: Status{Since: time.Now()},
	}
	for _, t := range resource.Types() {
		cl.types[t] = &typeState{
			typ: t, wildcard: t == resource.TypeListener || t == resource.TypeCluster,
			want: map[string]struct{}{}, held: map[string]*held{},
		}
	}
	return cl, nil
}

func (b Backoff) withDefaults() Backoff {
	if b.Min <= 0 {
		b.Min = 200 * time.Millisecond
	}
	if b.Max <= 0 {
		b.Max = 30 * time.Second
	}
	b.Max = max(b.Max, b.Min)
	if b.Reset <= 0 {
		b.Reset = 10 * time.Second
	}
	return b
}

// pause before attempt n (from 0).
func (b Backoff) pause(n int, draw uint64) time.Duration {
	d := b.Max
	if n < 62 && b.Min <= b.Max>>n {
		d = b.Min << n
	}
	half := d / 2
	return half + time.Duration(draw%uint64(d-half+1))
}

// Subscribe names all that is wanted of RDS, EDS or SDS; it replaces what was
// wanted before, and what is no longer wanted is forgotten. LDS and CDS are
// wildcard: calls for them change nothing. Never blocks; may be called from
// Handler.Apply.
func (c *Client) Subscribe(t resource.Type, names []string) {
	c.mu.Lock()
	ts := c.types[t]
	if ts == nil || ts.wildcard {
		c.mu.Unlock()
		return
	}
	want := make(map[string]struct{}, len(names))
	for _, n := range names {
		want[n] = struct{}{}
	}
	same := ts.subscribed && maps.Equal(want, ts.want)
	ts.want, ts.subscribed = want, true
	forgot := false
	for n := range ts.held {
		if _, ok := want[n]; !ok {
			delete(ts.held, n)
			forgot = true
		}
	}
	c.mu.Unlock()
	if !same {
		signal(c.changed)
	}
	if forgot {
		signal(c.save)
	}
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Status is the present state.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	s.Types = nil
	for _, t := range resource.Types() {
		ts := c.types[t]
		x := TypeStatus{
			Type: t, Versions: map[string]string{}, Subscribed: len(ts.want), Updated: ts.updated,
			ACKs: ts.acks, NACKs: ts.nacks, LastNACK: ts.lastNACK,
		}
		if ts.wildcard {
			x.Subscribed = -1
		}
		for n, h := range ts.held {
			if h.res != nil {
				x.Versions[n] = h.version
			}
		}
		s.Types = append(s.Types, x)
	}
	return s
}

// Held lists what is held, in make-before-break order of types, then by name.
func (c *Client) Held() []Held {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Held
	for _, t := range resource.Types() {
		ts := c.types[t]
		for _, n := range slices.Sorted(maps.Keys(ts.held)) {
			h := ts.held[n]
			x := Held{Type: t, Name: n, Resource: h.res, Version: h.version, Updated: h.updated}
			if h.refused != nil {
				x.Refused, x.RefusedVersion = h.refused.String(), h.refused.Version
			}
			out = append(out, x)
		}
	}
	return out
}

// DialOptions are the gRPC options by which a silent, half-dead connection is
// noticed within 30 s, and by which a response of any size is read.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(256 << 20)),
		grpc.WithDisableServiceConfig(),
	}
}

func contentVersion(b []byte) string {
	h := xxhash.New()
	_, _ = h.Write(b)
	return hex.EncodeToString(h.Sum(nil))
}
