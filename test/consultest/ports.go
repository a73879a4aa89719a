package consultest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// The ports that tests get: below the kernel's range for outgoing connections
// and above those that a self-registering sidecar takes. Test processes that
// run at once each have a block, so that none takes a port that another has
// been given and not opened yet, or has closed to open it again.
const (
	firstPort = 22000
	lastPort  = 31900
	blockSize = 900
)

var ports struct {
	sync.Mutex
	block int
	next  int
	lock  *os.File // held to the end of the process; nil: no block was free
}

// Port finds a port of loopback that nobody listens on, in TCP and in UDP, and
// gives it to nobody else before all others of its block.
func Port(t testing.TB) int {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	if ports.block == 0 {
		ports.block = reserve()
	}
	for range blockSize {
		port := ports.block + ports.next
		ports.next = (ports.next + 1) % blockSize
		if free(port) {
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// reserve finds a block that no other test process has. Where all are taken it
// shares one.
func reserve() int {
	blocks := (lastPort - firstPort) / blockSize
	start := rand.IntN(blocks)
	for i := range blocks {
		first := firstPort + (start+i)%blocks*blockSize
		f, err := os.OpenFile(filepath.Join(os.TempDir(), fmt.Sprintf("parrel-test-ports-%d.lock", first)), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			continue
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			ports.lock = f
			return first
		}
		f.Close()
	}
	return firstPort + start*blockSize
}

func free(port int) bool {
	l, err := net.Listen("tcp", address(port))
	if err != nil {
		return false
	}
	defer l.Close()
	u, err := net.ListenPacket("udp", address(port))
	if err != nil {
		return false
	}
	u.Close()
	return true
}
