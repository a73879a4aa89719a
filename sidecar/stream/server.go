package stream

import "context"

// Handler answers exchanges: it is what an HTTP engine gives to the codecs of
// its connections. Called once per request, on a goroutine of the codec's; ctx
// ends when the client has gone. The exchange is over when Exchange returns:
// the codec then closes the request's body and finishes the response.
type Handler interface {
	Exchange(ctx context.Context, req *Request, w Responder)
	// Refused is called for a request that the codec could not read; the answer
	// is sent in the place of the codec's own. reason is for logs.
	Refused(ctx context.Context, p Protocol, status int, reason string) *Response
}

// Responder sends one response. One goroutine uses it, but for Interrupt.
type Responder interface {
	// Informational sends a 1xx head other than 101.
	Informational(h *ResponseHead) error
	// Head sends the final head. end says that neither body nor trailers follow.
	Head(h *ResponseHead, end bool) error
	// Write sends a part of the body; it is on the wire when Write returns.
	Write(p []byte) (int, error)
	// Finish ends the body.
	Finish(trailers Header) error
	// Accept sends the head of an accepted upgrade and gives the tunnel.
	Accept(h *ResponseHead) (Tunnel, error)
	// Abort makes the end of the exchange visible as a failure: HTTP/1.1 closes
	// the connection without the end of the message, HTTP/2 resets the stream.
	Abort()
	// Interrupt makes a blocked Write fail, and all later ones. Any goroutine.
	Interrupt()
}
