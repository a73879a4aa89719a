package main

import (
	"fmt"
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/parrel-mesh/parrel/sidecar/overload"
)

// limitFlags are what the process may use.
type limitFlags struct {
	memory                              string
	connections, perListener, perSource int
}

func (f *limitFlags) bind(fs *pflag.FlagSet) {
	fs.StringVar(&f.memory, "memory-limit", "", "memory that the sidecar may use, such as 256MiB; \"off\": any (default: nine tenths of the control group's limit, if it has one)")
	fs.IntVar(&f.connections, "max-connections", 0, "open connections of all listeners; those beyond are closed (default: half of the file descriptors, and accepting waits)")
	fs.IntVar(&f.perListener, "max-connections-per-listener", 0, "open connections of each listener (default: as many as of all)")
	fs.IntVar(&f.perSource, "max-connections-per-source", 0, "open connections of one source address (default: half of all, and any number from loopback); -1: any number")
}

// minMemory is the least that --memory-limit takes: a sidecar that has started
// and does nothing needs half of it.
const minMemory = 32 << 20

func (f *limitFlags) config() (overload.Config, error) {
	c := overload.Config{Connections: f.connections, PerListener: f.perListener, PerSource: f.perSource}
	switch f.memory {
	case "":
		c.Memory = overload.MemoryLimit(os.DirFS("/")) / 10 * 9
	case "off":
	default:
		n, err := bytesOf(f.memory)
		if err != nil {
			return c, fmt.Errorf("sidecar: --memory-limit: %w", err)
		}
		if n < minMemory {
			return c, fmt.Errorf("sidecar: --memory-limit %s is too little to work with: give %dMiB or more", f.memory, minMemory>>20)
		}
		c.Memory = n
	}
	var err error
	c.Descriptors, err = overload.RaiseDescriptors()
	return c, err
}

// bytesOf reads a number of bytes: 268435456, 256MiB, 256M, 1GiB, 1G.
func bytesOf(s string) (int64, error) {
	number := strings.TrimRight(s, "KMGTiB")
	var shift int
	switch unit := strings.TrimSuffix(strings.TrimSuffix(s[len(number):], "B"), "i"); unit {
	case "":
	case "K":
		shift = 10
	case "M":
		shift = 20
	case "G":
		shift = 30
	case "T":
		shift = 40
	default:
		return 0, fmt.Errorf("%q is no number of bytes: write 256MiB or 1GiB", s)
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n <= 0 || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is no number of bytes: write 256MiB or 1GiB", s)
	}
	return n << shift, nil
}

// collectBelow makes the collector keep the heap below the limit, unless the
// environment says otherwise.
func collectBelow(bytes int64) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(bytes)
	}
}
