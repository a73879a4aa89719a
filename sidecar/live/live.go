package live

// Entry is one open connection. It must be comparable; a pointer is best.
type Entry interface {
	// Recheck answers from the configuration in force now whether the
	// connection may stay: Keep, CloseAfterRequest (its chain changed) or
	// CloseNow (no longer allowed) with the reason. Called without locks held,
	// from one goroutine at a time.
	Recheck() (Verdict, string)
	// End ends the connection: at once, or after the request in hand (HTTP/1.1
	// Connection: close, HTTP/2 GOAWAY). Must not block.
	End(v Verdict, reason string)
}

// Verdict is the fate of an open connection.
type Verdict uint8

const (
	Keep Verdict = iota
	CloseAfterRequest
	CloseNow
)
