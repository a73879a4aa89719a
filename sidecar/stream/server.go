package stream

// Handler answers exchanges: it is what an HTTP engine gives to the codecs of
// its connections. Exchange is called once per request, on a goroutine that it
// may block: HTTP/1's connection, or one of HTTP/2's workers. life ends when the
// client has gone, and the handler may end it itself (a time-out): then reads of
// the request's body and waits of the upstream fail, while the response can
// still be written. The exchange is over when Exchange returns: the codec then
// closes the request's body and finishes the response, and neither req, nor w,
// nor life, nor any string of the request's head may be used any more.
type Handler interface {
	Exchange(life *Scope, req *Request, w Responder)
	// Refused is called for a request that the codec could not read; the answer
	// is sent in the place of the codec's own. nil: the codec ends the connection
	// or the stream in its protocol's way.
	Refused(r Refusal) *Response
}

// Refusal is why a codec did not make an exchange of what the client sent.
type Refusal struct {
	Protocol Protocol
	Status   int // that the answer should have; 0: there is none to be sent
	Kind     RefusalKind
	Reason   string // for logs; names the field or frame
	// Method, Path and Authority are what was understood before, "" where nothing.
	Method, Path, Authority string
}

// RefusalKind is the class of a refusal.
type RefusalKind uint8

const (
	Malformed  RefusalKind = iota + 1 // not, or ambiguously, HTTP
	TooLarge                          // a limit of the head: size, count
	TooSlow                           // the head did not come in its time
	Flooded                           // the connection's abuse budget is used up
	Overloaded                        // the process sheds load
)

// Responder sends one response. One goroutine uses it, but for Interrupt.
type Responder interface {
	// Informational sends a 1xx head other than 101, at once.
	Informational(h *ResponseHead) error
	// Head sends the final head; end says that neither body nor trailers follow.
	// It may be held back until Write, Flush or Finish.
	Head(h *ResponseHead, end bool) error
	// Write sends a part of the body. It may be held back until the next Flush or
	// Finish; it blocks while the client takes no more. p is the caller's again
	// when it returns.
	Write(p []byte) (int, error)
	// Flush sends what is held back: to be called before the caller waits.
	Flush() error
	// Finish ends the body and sends what is held back.
	Finish(trailers Header) error
	// Accept sends the head of an accepted upgrade and gives the tunnel.
	Accept(h *ResponseHead) (Tunnel, error)
	// Abort makes the end of the exchange visible as a failure: HTTP/1.1 closes
	// the connection without the end of the message, HTTP/2 resets the stream.
	Abort()
	// Interrupt makes a blocked Write fail, and all later ones. Any goroutine.
	Interrupt()
}
