package h2

import "github.com/parrel-mesh/parrel/sidecar/stream"

// Budget bounds what a peer may make us do for nothing. A connection holds
// tokens; what costs the peer a few bytes and us work takes some, useful work
// and time give some back, never above the start. Where none are left the
// connection ends with GOAWAY(ENHANCE_YOUR_CALM).
//
// The arithmetic, with the defaults of 400 tokens and 20 a second:
//
//	cost  what the peer does
//	2     RST_STREAM of a young stream (< 50 ms) before its response began (rapid reset)
//	4     anything that makes us reset a stream (MadeYouReset: bad frames, windows, lengths)
//	2     a stream beyond the concurrency that we allow
//	2     SETTINGS
//	1     PING, PRIORITY, WINDOW_UPDATE, an acknowledgement, CONTINUATION, an unknown frame,
//	      a frame on a stream that is over, empty DATA that does not end a stream
//	1     a malformed message
//	16    a header list beyond its limit (HPACK bomb)
//	16    a stream that opened no window for as long as a write may take
//
//	gain  what was worth it
//	4     a stream that came to its end on both sides without a reset
//	3     a DATA frame that we sent, unless the peer's window kept it below 256 bytes
//	1     a DATA frame with at least 1 kB that the peer sent
//
// So every flood of one kind is over after at most 400 + 20 per second of
// frames, and in mixtures each completed stream excuses two resets. A sound peer
// stays far from zero: it sends at most two WINDOW_UPDATEs and a PING for a few
// DATA frames that it got, h2load and gRPC one WINDOW_UPDATE for half a window;
// keep-alive comes every 10 s at most; a caller that gives every second call up
// at once is even; one that gives up calls that took 50 ms pays nothing, since
// the number of streams bounds their rate.
type Budget struct {
	Tokens    int // 0: 400
	PerSecond int // 0: 20
}

const (
	defaultTokens    = 400
	defaultPerSecond = 20

	costRapidReset = 2
	costMadeReset  = 4
	costRefused    = 2
	costSettings   = 2
	costFrame      = 1
	costMalformed  = 1
	costBomb       = 16
	costZeroWindow = 16

	gainStream = 4
	gainSent   = 3
	gainGot    = 1

	starved    = 256  // bytes of DATA: less, with more waiting, is the peer's doing
	worthwhile = 1024 // bytes of DATA that count
	// young is how long a stream counts as one that was opened to be reset,
	// nanoseconds.
	young = 50e6
	// maxControl is how many bytes of answers (acknowledgements, resets) wait at
	// the most for a peer that does not read.
	maxControl = 64 << 10
)

// bucket holds a connection's tokens; guarded by the connection's mu.
type bucket struct {
	tokens, full int
	rate         int
	filled       int64 // moment of the last filling, by the wheel
}

func (b *bucket) init(conf Budget, now int64) {
	if conf.Tokens <= 0 {
		conf.Tokens = defaultTokens
	}
	if conf.PerSecond <= 0 {
		conf.PerSecond = defaultPerSecond
	}
	*b = bucket{tokens: conf.Tokens, full: conf.Tokens, rate: conf.PerSecond, filled: now}
}

func (b *bucket) gain(n int) { b.tokens = min(b.tokens+n, b.full) }

// take charges n; false: there are not so many. now is the wheel's.
func (b *bucket) take(n int, now int64) bool {
	if b.tokens -= n; b.tokens >= 0 {
		return true
	}
	const second = 1e9
	if add := (now - b.filled) / (second / int64(b.rate)); add > 0 {
		b.gain(int(min(add, int64(b.full))))
		b.filled = now
	}
	return b.tokens >= 0
}

// charge makes the peer pay; the caller holds mu.
func (c *conn) charge(n int, what string) *connError {
	if c.bucket.take(n, c.now) {
		return nil
	}
	return &connError{EnhanceYourCalm, "too much work for nothing, at last by " + what, stream.Flooded}
}
