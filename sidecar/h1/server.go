package h1

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/internal/nethttp"
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// Server is what all connections of one engine share. Read-only after it is
// first used.
type Server struct {
	Handler       stream.Handler
	HeaderTimeout time.Duration // for a request's head, from its first byte; 0: none
	IdleTimeout   time.Duration // between requests; 0: none
	MaxHeader     int           // bytes; 0: net/http's default
	Log           *slog.Logger  // nil: none
}

// linger bounds how long a connection is kept after a response that came
// before the request's end, so that the response is not lost to an RST.
const (
	lingerTime  = 2 * time.Second
	lingerBytes = 4 << 20
)

// Serve serves one connection until it is over. When ctx ends the connection is
// closed; when draining is closed it ends after the request in hand. A nil
// draining never is.
func (s *Server) Serve(ctx context.Context, conn net.Conn, draining <-chan struct{}) {
	c := &serverConn{Conn: conn, s: s, ctx: ctx, over: make(chan struct{})}
	c.own.Store(true)
	srv := &http.Server{
		Handler:                      http.HandlerFunc(c.exchange),
		ReadHeaderTimeout:            s.HeaderTimeout,
		IdleTimeout:                  s.IdleTimeout,
		MaxHeaderBytes:               s.MaxHeader,
		DisableGeneralOptionsHandler: true,
		BaseContext:                  func(net.Listener) context.Context { return ctx },
		ConnState:                    c.state,
		ErrorLog:                     errorLog(s.Log),
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Conn.Close() })
	defer stop()
	_ = srv.Serve(&once{c: c, l: conn.LocalAddr()}) // starts the connection's goroutine and returns

	select {
	case <-c.over:
	case <-draining:
		// Not Shutdown: it would drop a request that has just been read.
		srv.SetKeepAlivesEnabled(false)
		<-c.over
	}
	c.handlers.Wait()
	_ = c.Conn.Close()
}

// once is a listener of one connection.
type once struct {
	c *serverConn
	l net.Addr
}

func (o *once) Accept() (net.Conn, error) {
	if c := o.c; c != nil {
		o.c = nil
		return c, nil
	}
	return nil, net.ErrClosed
}

func (o *once) Close() error   { return nil }
func (o *once) Addr() net.Addr { return o.l }

// serverConn is the connection as net/http sees it.
type serverConn struct {
	net.Conn
	s        *Server
	ctx      context.Context
	over     chan struct{} // closed when net/http is through with the connection
	once     sync.Once
	handlers sync.WaitGroup
	own      atomic.Bool // no handler has run since the last request ended: what is written is net/http's own
	unread   atomic.Bool
}

func (c *serverConn) state(_ net.Conn, st http.ConnState) {
	switch st {
	case http.StateIdle:
		c.own.Store(true)
	case http.StateClosed, http.StateHijacked:
		c.once.Do(func() { close(c.over) })
	}
}

func (c *serverConn) exchange(w http.ResponseWriter, r *http.Request) {
	c.handlers.Add(1)
	defer c.handlers.Done()
	c.own.Store(false)
	if nethttp.Serve(r.Context(), c.s.Handler, stream.HTTP1, w, r) {
		c.unread.Store(true)
		// net/http reads on for a while before it closes; not for ever.
		_ = c.Conn.SetReadDeadline(time.Now().Add(lingerTime))
	}
}

// Write replaces what net/http answers by itself.
func (c *serverConn) Write(p []byte) (int, error) {
	if !c.own.Load() {
		return c.Conn.Write(p)
	}
	const prefix = "HTTP/1.1 "
	if !bytes.HasPrefix(p, []byte(prefix)) || len(p) < len(prefix)+3 {
		return c.Conn.Write(p)
	}
	status, err := strconv.Atoi(string(p[len(prefix) : len(prefix)+3]))
	if err != nil || status < 400 {
		return c.Conn.Write(p)
	}
	line, _, _ := strings.Cut(string(p[len(prefix):]), "\r\n")
	resp := c.s.Handler.Refused(c.ctx, stream.HTTP1, status, line)
	if resp == nil {
		return c.Conn.Write(p)
	}
	if _, err := c.Conn.Write(render(resp)); err != nil {
		return 0, err
	}
	c.unread.Store(true)
	return len(p), nil
}

// render writes a response as one message that ends the connection.
func render(r *stream.Response) []byte {
	var body []byte
	if r.Body != nil {
		buf := make([]byte, 4096) // mesh-made: short
		for {
			n, err := r.Body.Read(buf)
			body = append(body, buf[:n]...)
			if err != nil {
				break
			}
		}
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", r.Head.Status, http.StatusText(r.Head.Status))
	for _, f := range r.Head.Header {
		if f.Name != "content-length" {
			fmt.Fprintf(&b, "%s: %s\r\n", http.CanonicalHeaderKey(f.Name), f.Value)
		}
	}
	fmt.Fprintf(&b, "Content-Length: %d\r\nConnection: close\r\n\r\n", len(body))
	b.Write(body)
	return b.Bytes()
}

// CloseWrite lets net/http close gracefully.
func (c *serverConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// Close lingers where the peer may still be sending: closing with unread bytes
// would make the kernel send an RST, which can overtake the response
// (RFC 9112, section 9.6).
func (c *serverConn) Close() error {
	if c.unread.Swap(false) && c.ctx.Err() == nil && c.CloseWrite() == nil {
		_ = c.Conn.SetReadDeadline(time.Now().Add(lingerTime))
		buf := make([]byte, 16<<10)
		for left := lingerBytes; left > 0; {
			n, err := c.Conn.Read(buf)
			left -= n
			if err != nil {
				break
			}
		}
	}
	return c.Conn.Close()
}

// errorLog sends net/http's own words to the log at debug level: what matters
// of them reaches the engine as refusals and failed reads.
func errorLog(l *slog.Logger) *log.Logger {
	if l == nil {
		return slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	}
	return slog.NewLogLogger(l.Handler(), slog.LevelDebug)
}
