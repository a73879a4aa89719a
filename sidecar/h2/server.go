package h2

import (
	"context"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/parrel-mesh/parrel/sidecar/internal/nethttp"
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// Preface is what an HTTP/2 client sends first (RFC 9113, section 3.4).
const Preface = http2.ClientPreface

// Server is what all connections of one engine share. Read-only after it is
// first used.
type Server struct {
	Handler     stream.Handler
	IdleTimeout time.Duration // without a stream; 0: none
	MaxHeader   int           // bytes of a header list; 0: net/http's default
	MaxStreams  uint32        // concurrent; 0: 1000
	Log         *slog.Logger  // nil: none
}

// Flow-control windows: enough for one stream to fill a fast local link, small
// enough that a stuck application holds little memory.
const (
	streamWindow = 1 << 20
	connWindow   = 4 << 20
)

// Serve serves one connection until it is over. When ctx ends the connection is
// closed; when draining is closed no new stream is taken and the connection
// ends with its last stream. A nil draining never is.
func (s *Server) Serve(ctx context.Context, conn net.Conn, draining <-chan struct{}) {
	ctx, cancel := context.WithCancel(ctx)
	c := &serverConn{s: s}
	hs := &http.Server{MaxHeaderBytes: s.MaxHeader, ErrorLog: errorLog(s.Log)}
	conf := &http2.Server{
		MaxConcurrentStreams:         s.MaxStreams,
		IdleTimeout:                  s.IdleTimeout,
		MaxUploadBufferPerStream:     streamWindow,
		MaxUploadBufferPerConnection: connWindow,
	}
	if conf.MaxConcurrentStreams == 0 {
		conf.MaxConcurrentStreams = 1000
	}
	var watch sync.WaitGroup
	defer func() {
		cancel()
		watch.Wait()
		c.wait()
		_ = conn.Close()
	}()
	if err := http2.ConfigureServer(hs, conf); err != nil { // only for a bad TLS configuration, and there is none
		return
	}
	watch.Go(func() {
		select {
		case <-draining:
			_ = hs.Shutdown(ctx) // runs http2's own hook, which sends GOAWAY; there is nothing to wait for
			<-ctx.Done()
		case <-ctx.Done():
		}
		_ = conn.Close()
	})
	conf.ServeConn(conn, &http2.ServeConnOpts{Context: ctx, BaseConfig: hs, Handler: http.HandlerFunc(c.exchange)})
}

// serverConn counts the exchanges of one connection: their handlers may outlive
// http2's ServeConn.
type serverConn struct {
	s      *Server
	mu     sync.Mutex
	closed bool // guarded by mu
	open   sync.WaitGroup
}

func (c *serverConn) exchange(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.open.Add(1)
	c.mu.Unlock()
	defer c.open.Done()
	nethttp.Serve(r.Context(), c.s.Handler, stream.HTTP2, w, r)
}

func (c *serverConn) wait() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.open.Wait()
}

func errorLog(l *slog.Logger) *log.Logger {
	if l == nil {
		return slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	}
	return slog.NewLogLogger(l.Handler(), slog.LevelDebug)
}
