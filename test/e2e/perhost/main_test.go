//go:build linux

package perhost

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/parrel-mesh/parrel/test/e2e/rig"
)

// hostEnv says that this process is in the namespace already.
const hostEnv = "PARREL_PERHOST"

// parrel is the binary; why says why there is none.
var parrel, why string

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(hostEnv) == "" && os.Geteuid() == 0 {
		os.Exit(again())
	}
	os.Exit(run(m))
}

// again runs this program in a network namespace that ends with it.
func again() int {
	runtime.LockOSThread() // Pdeathsig follows the thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), hostEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "perhost: in a network namespace:", err)
		return 1
	}
	return 0
}

func run(m *testing.M) int {
	switch {
	case os.Geteuid() != 0:
		why = "making a network namespace and rules of redirection needs root"
		return m.Run()
	case !tool("nft", "list", "ruleset"):
		why = "this kernel, or this machine, has no nftables (apt install nftables)"
		return m.Run()
	}
	for _, args := range []string{"link set lo up", "link add host0 type veth peer name host1", "addr add " + hostAddr + "/24 dev host0", "link set host0 up"} {
		if !tool("ip", strings.Fields(args)...) {
			why = "this process may not set up a network namespace by ip (apt install iproute2): ip " + args
			return m.Run()
		}
	}
	binary, remove, err := rig.Build()
	if err != nil {
		fmt.Fprintln(os.Stderr, "perhost:", err)
		return 1
	}
	defer remove()
	parrel = binary
	return m.Run()
}

func tool(name string, args ...string) bool {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "perhost: %s %s: %v: %s\n", name, strings.Join(args, " "), err, out)
	}
	return err == nil
}
