package stream

// FailureKind is the class of a [Failure].
type FailureKind uint8

const (
	// FailedStale: a connection that had been used before ended before anything of
	// a response came. The usual race of a server that closes what is idle.
	FailedStale FailureKind = iota + 1
	// FailedRefused: the peer says that it did not process the request
	// (REFUSED_STREAM, a GOAWAY below the stream's id; RFC 9113, section 8.7).
	FailedRefused
	// FailedReset: the connection or the stream ended in the middle.
	FailedReset
	// FailedProtocol: what came is not, or ambiguously, HTTP, or beyond a limit.
	FailedProtocol
	// FailedCancelled: the exchange's own scope ended.
	FailedCancelled
	// FailedGone: the connection takes no further exchange; nothing was sent.
	FailedGone
	// FailedRequest: the request's own body could not be read to its end.
	FailedRequest
)

func (k FailureKind) String() string {
	switch k {
	case FailedStale:
		return "stale"
	case FailedRefused:
		return "refused"
	case FailedReset:
		return "reset"
	case FailedProtocol:
		return "protocol"
	case FailedCancelled:
		return "cancelled"
	case FailedGone:
		return "gone"
	case FailedRequest:
		return "request"
	}
	return "-"
}

// Failure is why an upstream connection could not carry an exchange to its end.
type Failure struct {
	Kind FailureKind
	// Sent says that a byte of the request may have reached the peer.
	Sent   bool
	Detail string
	Err    error
}

func (f *Failure) Error() string {
	if f.Err != nil {
		return f.Detail + ": " + f.Err.Error()
	}
	return f.Detail
}

func (f *Failure) Unwrap() error { return f.Err }

// Idempotent says whether a method may be sent again though it may have been
// carried out (RFC 9110, section 9.2.2).
func Idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}
