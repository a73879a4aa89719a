package run

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test's own binary is the application, and for what concerns a whole
// process the supervisor too: asApp and asSupervisor say which.
const (
	asApp        = "PARREL_TEST_APP"
	asSupervisor = "PARREL_TEST_SUPERVISOR"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(asApp); what != "" {
		os.Exit(application(what))
	}
	if os.Getenv(asSupervisor) != "" {
		os.Exit(superviseHere())
	}
	// Whoever started the tests may have signals ignored, as nohup and shells do for
	// what runs in the background. Children inherit that; what is caught they do not.
	for _, sig := range signals {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
	os.Exit(m.Run())
}

// application does, one after the other, what words say: say:TEXT, exit:CODE,
// listen:PORT, orphan (a child that outlives its parent and then ends), wait
// (for a signal, which it says, and goes on), catch:SIGNALS (says each, and goes
// on at once), forever.
func application(words string) int {
	all := make(chan os.Signal, 10)
	for word := range strings.FieldsSeq(words) {
		verb, arg, _ := strings.Cut(word, ":")
		switch verb {
		case "say":
			fmt.Println(arg)
		case "exit":
			n, err := strconv.Atoi(arg)
			if err != nil {
				return 99
			}
			return n
		case "listen":
			l, err := net.Listen("tcp", "127.0.0.1:"+arg)
			if err != nil {
				fmt.Println(err)
				return 98
			}
			defer l.Close()
		case "orphan":
			// sh starts a child and exits: whoever reaps orphans gets the child.
			cmd := exec.Command("sh", "-c", "sleep 0.05 & echo orphan $!")
			out, err := cmd.Output()
			if err != nil {
				return 97
			}
			fmt.Print(string(out))
		case "catch":
			for name := range strings.SplitSeq(arg, ",") {
				signal.Notify(all, signals[name])
			}
			fmt.Println("catching")
		case "group": // is it the parent's?
			parents, err := syscall.Getpgid(os.Getppid())
			fmt.Println("parent's group:", err == nil && parents == syscall.Getpgrp())
		case "read":
			line, err := bufio.NewReader(os.Stdin).ReadString('\n')
			fmt.Println("read", strings.TrimSpace(line), err)
		case "wait":
			fmt.Println("got", <-all)
		case "sleep":
			d, err := time.ParseDuration(arg)
			if err != nil {
				return 96
			}
			time.Sleep(d)
		case "term": // itself, without a handler
			signal.Reset(syscall.SIGTERM)
			_ = syscall.Kill(os.Getpid(), syscall.SIGTERM)
			time.Sleep(time.Minute)
		case "kill":
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		case "forever":
			for {
				time.Sleep(time.Hour)
			}
		}
	}
	return 0
}

var signals = map[string]syscall.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "HUP": syscall.SIGHUP, "QUIT": syscall.SIGQUIT,
	"USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2, "WINCH": syscall.SIGWINCH}
