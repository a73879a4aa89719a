// Command handshake opens TLS connections, one after the other on each of a few
// goroutines, and closes them when the handshake is over: each is a new TCP
// connection and a full TLS 1.3 handshake with X25519, without resumption.
//
//	handshake PORT SECS
//
// It prints one line of JSON: rate (handshakes a second), n, times in
// microseconds. Certificates are not verified: the server's cost is measured, and
// the client's must not be what limits it.
package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
)

const workers = 8

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "handshake:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: handshake PORT SECS")
	}
	secs, err := strconv.ParseFloat(args[1], 64)
	if err != nil {
		return err
	}
	var (
		mu    sync.Mutex
		took  []float64 // microseconds
		first error
		wg    sync.WaitGroup
	)
	start := time.Now()
	end := start.Add(time.Duration(secs * float64(time.Second)))
	for range workers {
		wg.Go(func() {
			mine, err := until(end, net.JoinHostPort("127.0.0.1", args[0]))
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
			if first == nil {
				first = err
			}
		})
	}
	wg.Wait()
	if first != nil {
		return first
	}
	if len(took) == 0 {
		return errors.New("no handshake ended in time")
	}
	slices.Sort(took)
	return json.NewEncoder(os.Stdout).Encode(map[string]float64{
		"rate": float64(len(took)) / time.Since(start).Seconds(), "n": float64(len(took)),
		"p50": took[len(took)/2], "p99": took[len(took)-1-len(took)/100],
	})
}

func until(end time.Time, addr string) ([]float64, error) {
	conf := &tls.Config{
		InsecureSkipVerify: true, // see above
		MinVersion:         tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519},
		SessionTicketsDisabled: true, ServerName: "bench.local", NextProtos: []string{"http/1.1"},
	}
	var took []float64
	for {
		at := time.Now()
		if !at.Before(end) {
			return took, nil
		}
		conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
		if err != nil {
			return took, err
		}
		if err := conn.(*net.TCPConn).SetLinger(0); err != nil { // no TIME_WAIT: the ports would run out
			return took, err
		}
		if err := conn.SetDeadline(at.Add(10 * time.Second)); err != nil {
			return took, err
		}
		if err := tls.Client(conn, conf).Handshake(); err != nil {
			return took, err
		}
		took = append(took, float64(time.Since(at).Nanoseconds())/1e3)
		conn.Close()
	}
}
