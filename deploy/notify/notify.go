// Package notify tells a service manager how this process is: systemd's
// notification protocol (sd_notify(3)), which others speak too.
//
// Owns: the socket and its words. Does not know: what is ready or alive; that is
// said by the caller.
//
// Test to read first: TestSocket.
package notify

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// What is told. STATUS is followed by a sentence.
const (
	Ready    = "READY=1"
	Stopping = "STOPPING=1"
	Watchdog = "WATCHDOG=1"
	Status   = "STATUS="
)

// Variables of the environment that are for this process alone, and not for what
// it starts.
var Variables = []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}

// Socket is where a service manager listens. Nil is none: nobody hears.
// Safe for concurrent use.
type Socket struct {
	address  net.UnixAddr
	watchdog time.Duration
}

// FromEnvironment finds the socket; nil where no service manager asked.
func FromEnvironment(getenv func(string) string) (*Socket, error) {
	path := getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil, nil
	}
	if path[0] != '/' && path[0] != '@' {
		return nil, fmt.Errorf("notify: NOTIFY_SOCKET=%s is no path of a Unix socket and no @NAME: the service manager is not told", path)
	}
	s := &Socket{address: net.UnixAddr{Net: "unixgram", Name: path}}
	usec := getenv("WATCHDOG_USEC")
	if usec == "" || getenv("WATCHDOG_PID") != "" && getenv("WATCHDOG_PID") != strconv.Itoa(os.Getpid()) {
		return s, nil
	}
	n, err := strconv.ParseInt(usec, 10, 64)
	if err != nil || n <= 0 {
		return s, fmt.Errorf("notify: WATCHDOG_USEC=%s is no number of microseconds: there is no watchdog", usec)
	}
	s.watchdog = time.Duration(n) * time.Microsecond
	return s, nil
}

// Watchdog is how often [Watchdog] is to be told, half of the time after which
// the service manager takes this process for dead; 0: it need not be told.
func (s *Socket) Watchdog() time.Duration {
	if s == nil {
		return 0
	}
	return s.watchdog / 2
}

// Tell sends lines in one message.
func (s *Socket) Tell(lines ...string) error {
	if s == nil {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &s.address)
	if err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(strings.Join(lines, "\n"))); err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	return nil
}
