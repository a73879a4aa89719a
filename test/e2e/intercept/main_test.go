//go:build linux

package intercept

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"github.com/parrel-mesh/parrel/sidecar/intercept"
	"github.com/parrel-mesh/parrel/test/e2e/rig"
)

// The test binary is also the process that tests end, or put into a cgroup.
const childEnv = "PARREL_INTERCEPT_CHILD"

func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		var c child
		if err := json.Unmarshal([]byte(text), &c); err != nil {
			fmt.Println(err)
			os.Exit(2)
		}
		c.run()
		os.Exit(0)
	}
	flag.Parse()
	code := m.Run()
	if built.remove != nil {
		built.remove()
	}
	os.Exit(code)
}

// child is what a process of its own does.
type child struct {
	NetNS  string
	Apply  *intercept.Config // puts it in force,
	Clean  bool              // or cleans,
	KillAt int               // and is killed before this step, counted from 1; 0: never
	Dial   string            // or says what comes of a connection
}

func (c child) run() {
	if c.Dial != "" {
		fmt.Print(enter(c.NetNS, nobody, func() string { return dial("tcp", c.Dial) }))
		return
	}
	n := 0
	m, err := intercept.New(intercept.Options{NetNS: c.NetNS, Trace: func(string) {
		if n++; n == c.KillAt {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}})
	if err == nil && c.Clean {
		err = m.Clean(context.Background())
	} else if err == nil {
		err = m.Apply(context.Background(), *c.Apply)
	}
	if err != nil {
		fmt.Print("error: " + err.Error())
		return
	}
	fmt.Print("done after " + strconv.Itoa(n))
}

var built struct {
	once   sync.Once
	binary string
	remove func()
	err    error
}

// parrel builds the binary once.
func parrel(t *testing.T) string {
	t.Helper()
	t.Setenv("CGO_ENABLED", "0") // as it is shipped: it needs no library
	built.once.Do(func() { built.binary, built.remove, built.err = rig.Build() })
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.binary
}
