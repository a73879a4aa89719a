package notify

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func env(pairs ...string) func(string) string {
	return func(k string) string {
		for _, p := range pairs {
			if v, ok := strings.CutPrefix(p, k+"="); ok {
				return v
			}
		}
		return ""
	}
}

// TestSocket: what is told arrives as one message, by a path and by a name of
// the abstract namespace.
func TestSocket(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), "@parrel-test-notify-" + strconv.Itoa(os.Getpid())} {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: name})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		s, err := FromEnvironment(env("NOTIFY_SOCKET=" + name))
		if err != nil || s.Watchdog() != 0 {
			t.Fatal(s.Watchdog(), err)
		}
		if err := s.Tell(Ready, Status+"serving"); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		n, err := l.Read(b)
		if got := string(b[:n]); err != nil || got != "READY=1\nSTATUS=serving" {
			t.Errorf("%s: %q %v", name, got, err)
		}
		l.Close()
		if err := s.Tell(Stopping); err == nil {
			t.Errorf("%s: nobody listens, and there is no error", name)
		}
	}
}

func TestEnvironment(t *testing.T) {
	own := strconv.Itoa(os.Getpid())
	for _, c := range []struct {
		env      []string
		none     bool
		watchdog time.Duration
		err      string
	}{
		{nil, true, 0, ""},
		{[]string{"WATCHDOG_USEC=1000000"}, true, 0, ""},
		{[]string{"NOTIFY_SOCKET=vsock:2:1"}, true, 0, "NOTIFY_SOCKET=vsock:2:1 is no path"},
		{[]string{"NOTIFY_SOCKET=/run/x", "WATCHDOG_USEC=30000000"}, false, 15 * time.Second, ""},
		{[]string{"NOTIFY_SOCKET=/run/x", "WATCHDOG_USEC=30000000", "WATCHDOG_PID=" + own}, false, 15 * time.Second, ""},
		{[]string{"NOTIFY_SOCKET=/run/x", "WATCHDOG_USEC=30000000", "WATCHDOG_PID=1"}, false, 0, ""},
		{[]string{"NOTIFY_SOCKET=/run/x", "WATCHDOG_USEC=soon"}, false, 0, "WATCHDOG_USEC=soon is no number"},
	} {
		s, err := FromEnvironment(env(c.env...))
		if (s == nil) != c.none || s.Watchdog() != c.watchdog || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: %v, %s, %v", c.env, s, s.Watchdog(), err)
		}
	}
	var none *Socket
	if err := none.Tell(Ready); err != nil {
		t.Error(err)
	}
}
