package client

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

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
	// SaveDelay gathers changes before they are written; 0: 1 s.
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
	// Complete: every name subscribed to of this type has been answered for.
	Complete bool
	Warnings []wire.Warning
}

// Handler takes updates, one at a time, in order. What it was given counts as
// accepted: it is acknowledged and kept on disk.
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
type Refused struct {
	Type                         resource.Type
	Name, Version, Field, Reason string
}

// Held is one resource as the client holds it.
type Held struct {
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
type Client struct{ cfg Config }

// New makes a Client.
func New(c Config) (*Client, error) {
	if c.Handler == nil || c.Dial == nil {
		return nil, errors.New("client: Config needs Dial and Handler")
	}
	return &Client{cfg: c}, nil
}

// Subscribe names all that is wanted of RDS, EDS or SDS; it replaces what was
// wanted before. LDS and CDS are wildcard. Never blocks; may be called from
// Handler.Apply.
func (c *Client) Subscribe(t resource.Type, names []string) {}

// Run keeps a stream open until ctx ends.
func (c *Client) Run(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// Status is the present state.
func (c *Client) Status() Status { return Status{} }

// Held lists what is held, in make-before-break order, then by name.
func (c *Client) Held() []Held { return nil }

// DialOptions are the gRPC options by which a silent, half-dead connection is
// noticed within 40 s.
func DialOptions() []grpc.DialOption { return nil }

// FileOptions are of NewFileStore. Zero fields take the defaults.
type FileOptions struct {
	NodeID string           // refuse a file of another node; "": any
	MaxAge time.Duration    // refuse an older file; 0: 30 days
	Now    func() time.Time // nil: time.Now
}

// NewFileStore keeps the set in one file, checksummed, replaced by atomic
// rename, 0600, with the previous generation beside it.
func NewFileStore(path string, o FileOptions) Store { return nil }
