package shop

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// serveLedger is a server-first line protocol: a greeting, then one JSON answer
// for each line. TCP has no place for the caller's identity: Peer stays empty.
func serveLedger(ctx context.Context, c Config, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("shop: ledger: %w", err)
		}
		wg.Go(func() {
			defer conn.Close()
			end := context.AfterFunc(ctx, func() { conn.Close() })
			defer end()
			ledgerSession(c, conn)
		})
	}
}

func ledgerSession(c Config, conn net.Conn) {
	fmt.Fprintf(conn, "ledger %s ready\n", c.Instance)
	in := bufio.NewScanner(conn)
	for in.Scan() {
		b, err := json.Marshal(Answer{Service: "ledger", Instance: c.Instance, Version: c.Version, Path: in.Text()})
		if err != nil {
			return
		}
		if _, err := conn.Write(append(b, '\n')); err != nil {
			return
		}
	}
}

// AskLedger opens a connection, reads the greeting, asks once and closes.
func AskLedger(ctx context.Context, addr string) (*Answer, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if dl, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(dl); err != nil {
			return nil, err
		}
	} else if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, err
	}
	in := bufio.NewReader(conn)
	greeting, err := in.ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("ledger: no greeting: %w", err)
	}
	if !strings.HasPrefix(greeting, "ledger ") {
		return nil, fmt.Errorf("ledger: unexpected greeting %q", greeting)
	}
	if _, err := fmt.Fprintln(conn, "balance"); err != nil {
		return nil, err
	}
	line, err := in.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("ledger: no answer: %w", err)
	}
	var ans Answer
	if err := json.Unmarshal(line, &ans); err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	return &ans, nil
}
