package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// reauthorisation is how long an open connection may outlive its permission.
const reauthorisation = time.Second

// denyEndsConnection holds a connection to ledger open, forbids it, and wants
// it ended in time; then allows it again.
func denyEndsConnection(ctx context.Context, w *world) (err error) {
	conn, err := w.as("api-1").dial(ctx, "tcp", w.l.find("api-1").upstream("ledger"))
	if err != nil {
		return err
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := in.ReadString('\n'); err != nil {
		return fmt.Errorf("no greeting from ledger: %w", err)
	}
	if err := w.cat.put(ctx, intentionFile("ledger"), intentions("ledger", "deny", "api")); err != nil {
		return err
	}
	written := time.Now()
	defer func() {
		allow := w.cat.put(ctx, intentionFile("ledger"), intentions("ledger", "allow", "api"))
		if allow == nil {
			allow = w.eventually(ctx, func() error { _, err := w.ask(ctx); return err })
		}
		err = errors.Join(err, allow)
	}()
	if err := conn.SetReadDeadline(written.Add(reauthorisation)); err != nil {
		return err
	}
	_, err = in.ReadByte()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("it was still open %s after the intention was written", reauthorisation)
	case err == nil:
		return errors.New("ledger spoke without being asked")
	case errors.Is(err, io.EOF):
		return nil
	}
	return nil // reset: ended as well
}
