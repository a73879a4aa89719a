package sim

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/parrel-mesh/parrel/sidecar/netio"
)

// Protocol is what an application speaks, in the words of service-defaults.
type Protocol string

// The protocols.
const (
	HTTP Protocol = "http"
	GRPC Protocol = "grpc"
	TCP  Protocol = "tcp"
)

// App is an application that says who it is: over HTTP it echoes the body with
// X-Instance and X-Target headers (?sleep=DURATION answers later, ?size=N sends N bytes
// instead), as gRPC it echoes a StringValue (and, streaming, each of them),
// over TCP it answers each line with "INSTANCE LINE".
type App struct {
	id     string
	served atomic.Int64
	hang   atomic.Bool
	stop   func()
	once   sync.Once
}

// Served is the number of requests, calls and lines that were answered.
func (a *App) Served() int64 { return a.served.Load() }

// Hang makes the application silent: it accepts and reads, and answers nothing
// until it is called with false. Only HTTP, unary gRPC and TCP heed it.
func (a *App) Hang(silent bool) { a.hang.Store(silent) }

// Stop ends it and waits.
func (a *App) Stop() { a.once.Do(a.stop) }

func (m *Mesh) app(i *Instance, p Protocol) *App {
	m.T.Helper()
	a := &App{id: i.ID}
	ln, err := i.host.Listen(m.ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(appPort)))
	if err != nil {
		m.T.Fatal(err)
	}
	switch p {
	case HTTP:
		a.http(m, ln)
	case GRPC:
		a.grpc(m, ln)
	case TCP:
		a.tcp(m, ln)
	default:
		m.T.Fatalf("sim: unknown protocol %q", p)
	}
	return a
}

// wait answers false where the caller went away meanwhile.
func (a *App) wait(ctx context.Context) bool {
	for a.hang.Load() {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(50 * time.Millisecond):
		}
	}
	return true
}

func (a *App) http(m *Mesh, ln netio.Listener) {
	srv := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || !a.wait(r.Context()) {
			return
		}
		if d, err := time.ParseDuration(r.URL.Query().Get("sleep")); err == nil {
			select {
			case <-time.After(d):
			case <-r.Context().Done():
				return
			}
		}
		w.Header().Set("X-Instance", a.id)
		w.Header().Set("X-Target", r.RequestURI)
		a.served.Add(1)
		if n, err := strconv.Atoi(r.URL.Query().Get("size")); err == nil {
			_, _ = io.Copy(w, io.LimitReader(letters{}, int64(n)))
			return
		}
		_, _ = w.Write(body)
	})}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	m.Go(func() { _ = srv.Serve(plain{ln}) })
	a.stop = func() { _ = srv.Close() }
}

// letters is a body without end.
type letters struct{}

func (letters) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}

// plain hides what netio's listener can do beyond net.Listener.
type plain struct{ net.Listener }

// sayMethod and talkMethod are the calls of the gRPC application.
const (
	sayMethod  = "/sim.Echo/Say"
	talkMethod = "/sim.Echo/Talk"
)

func (a *App) grpc(m *Mesh, ln netio.Listener) {
	srv := grpc.NewServer()
	srv.RegisterService(&grpc.ServiceDesc{ServiceName: "sim.Echo", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Say", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := new(wrapperspb.StringValue)
			if err := decode(in); err != nil {
				return nil, err
			}
			if !a.wait(ctx) {
				return nil, ctx.Err()
			}
			a.served.Add(1)
			return wrapperspb.String(a.id + " " + in.Value), nil
		}}},
		Streams: []grpc.StreamDesc{{StreamName: "Talk", ServerStreams: true, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
			for {
				in := new(wrapperspb.StringValue)
				if err := s.RecvMsg(in); errors.Is(err, io.EOF) {
					return nil
				} else if err != nil {
					return err
				}
				a.served.Add(1)
				if err := s.SendMsg(wrapperspb.String(a.id + " " + in.Value)); err != nil {
					return err
				}
			}
		}}},
	}, a)
	m.Go(func() { _ = srv.Serve(plain{ln}) })
	a.stop = srv.Stop
}

func (a *App) tcp(m *Mesh, ln netio.Listener) {
	ctx, cancel := context.WithCancel(m.ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.AcceptConn()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { _ = c.Reset() })()
				a.lines(ctx, c)
			})
		}
	})
	a.stop = func() { cancel(); _ = ln.Close(); wg.Wait() }
}

func (a *App) lines(ctx context.Context, c net.Conn) {
	in := bufio.NewReader(c)
	for {
		line, err := in.ReadString('\n')
		if err != nil || !a.wait(ctx) {
			return
		}
		a.served.Add(1)
		if _, err := fmt.Fprintf(c, "%s %s\n", a.id, strings.TrimSuffix(line, "\n")); err != nil {
			return
		}
	}
}
