package cluster

import (
	"net/netip"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Options is what a route says about one request.
type Options struct {
	Hash          uint64
	HasHash       bool
	Retry         *resource.Retry // nil: the safe default
	PerTryTimeout time.Duration   // 0: none
	// Destination is where a redirected connection meant to go: what a cluster of
	// type ORIGINAL_DST dials. Zero: the connection was not redirected.
	Destination netip.AddrPort
	Now         time.Time // where the caller has just read the clock, from which the first attempt's time counts; zero: read it
}

// Attempt says where a request or connection went. Never nil, also beside an error.
type Attempt struct {
	Host     string // endpoint's address, "" where none was picked
	Instance string // id of the instance
	Peer     string // SPIFFE id that the endpoint proved
	Tries    int
	TLS      bool
}

// Error is why a request or connection failed in the mesh.
type Error struct {
	Code   telemetry.Code
	Detail string
	Err    error
}

func (e *Error) Error() string {
	s := "cluster: " + e.Code.String()
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }
