package live

import "github.com/spiffe/go-spiffe/v2/spiffeid"

// Entry describes one open connection.
type Entry struct {
	Listener string
	Chain    string      // filter chain's name
	Peer     spiffeid.ID // zero where the peer has no identity
	// Recheck answers from the configuration in force now whether the
	// connection may stay: Keep, CloseAfterRequest (its chain changed) or
	// CloseNow (no longer allowed) with the reason. Called without locks held,
	// from one goroutine at a time.
	Recheck func() (Verdict, string)
	// End ends the connection: at once, or after the request in hand (HTTP/1.1
	// Connection: close, HTTP/2 GOAWAY). Must not block.
	End func(v Verdict, reason string)
}

// Verdict is the fate of an open connection.
type Verdict uint8

const (
	Keep Verdict = iota
	CloseAfterRequest
	CloseNow
)
