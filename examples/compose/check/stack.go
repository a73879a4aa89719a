package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/parrel-mesh/parrel/examples/shop"
)

// freePort finds a port of loopback below the kernel's range for outgoing
// connections.
func freePort(not ...int) (int, error) {
next:
	for p := 18080; p < 19000; p++ {
		for _, n := range not {
			if p == n {
				continue next
			}
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p))
		if err != nil {
			continue
		}
		return p, l.Close()
	}
	return 0, errors.New("no port from 18080 to 18999 is free")
}

var client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}

// ask sends one request to web; an error anywhere in the answer's tree is an error.
func (s *stack) ask(ctx context.Context) (*shop.Answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.web, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	var a shop.Answer
	if err := json.Unmarshal(body, &a); err != nil {
		return nil, fmt.Errorf("web answered %s: %.200s", resp.Status, body)
	}
	if resp.StatusCode != http.StatusOK {
		return &a, fmt.Errorf("web answered %s: %s", resp.Status, a.FirstError())
	}
	return &a, nil
}

func eventually(ctx context.Context, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// load asks all the time until it is stopped, and counts.
type load struct {
	stop  context.CancelFunc
	done  sync.WaitGroup
	mu    sync.Mutex
	good  int
	row   int // good ones since the last failure
	fails []string
}

func (s *stack) load(ctx context.Context) *load {
	ctx, stop := context.WithCancel(ctx)
	l := &load{stop: stop}
	for range 2 {
		l.done.Go(func() {
			for ctx.Err() == nil {
				_, err := s.ask(context.WithoutCancel(ctx))
				l.mu.Lock()
				if err != nil {
					l.row = 0
					l.fails = append(l.fails, fmt.Sprintf("%s %v", time.Now().Format("15:04:05.000"), err))
				} else {
					l.good++
					l.row++
				}
				l.mu.Unlock()
				select {
				case <-ctx.Done():
				case <-time.After(25 * time.Millisecond):
				}
			}
		})
	}
	return l
}

// end stops the load and wants that no call failed.
func (l *load) end() error {
	l.stop()
	l.done.Wait()
	if len(l.fails) > 0 {
		return fmt.Errorf("%d of %d calls failed, and none may; the first: %s", len(l.fails), l.good+len(l.fails), l.fails[0])
	}
	return nil
}

// streak waits until so many calls in a row have succeeded, from now on.
func (l *load) streak(ctx context.Context, n int) error {
	l.mu.Lock()
	l.row = 0
	l.mu.Unlock()
	return eventually(ctx, func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.row >= n {
			return nil
		}
		last := "none"
		if len(l.fails) > 0 {
			last = l.fails[len(l.fails)-1]
		}
		return fmt.Errorf("never %d good calls in a row; the last failure: %s", n, last)
	})
}

// container is one of the project's, as the engine tells it.
type container struct {
	id      string
	pid     int
	started string
	address string
}

func (s *stack) container(ctx context.Context, service string) (container, error) {
	out, err := exec.CommandContext(ctx, "docker", "ps", "-q", "--filter", "label=com.docker.compose.project="+s.project, "--filter", "label=com.docker.compose.service="+service).Output()
	id := strings.TrimSpace(string(out))
	if err != nil || id == "" || strings.Contains(id, "\n") {
		return container{}, fmt.Errorf("there is not one running container of %s: %q %v", service, id, err)
	}
	out, err = exec.CommandContext(ctx, "docker", "inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}} {{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", id).Output()
	f := append(strings.Fields(string(out)), "", "", "")
	pid, convErr := strconv.Atoi(f[0])
	if err := errors.Join(err, convErr); err != nil {
		return container{}, fmt.Errorf("inspect %s: %w", service, err)
	}
	return container{id: id, pid: pid, started: f[1], address: f[2]}, nil
}

// log is what a service's container has written so far.
func (s *stack) log(ctx context.Context, service string) (string, error) {
	c, err := s.container(ctx, service)
	if err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, "docker", "logs", c.id).CombinedOutput()
	return string(out), err
}

// kill kills the first process of a service's container, as a crash would: the
// engine starts it again.
func (s *stack) kill(ctx context.Context, service string) (container, error) {
	c, err := s.container(ctx, service)
	if err != nil {
		return c, err
	}
	return c, syscall.Kill(c.pid, syscall.SIGKILL)
}

// child finds the process of a container that is not its first.
func (c container) child(ctx context.Context) (int, error) {
	out, err := exec.CommandContext(ctx, "docker", "top", c.id, "-eo", "pid,ppid,comm").Output()
	if err != nil {
		return 0, fmt.Errorf("docker top: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) > 1 && f[1] == strconv.Itoa(c.pid) {
			return strconv.Atoi(f[0])
		}
	}
	return 0, fmt.Errorf("no child of %d: %s", c.pid, out)
}

// entry writes a config entry.
func (s *stack) entry(ctx context.Context, body string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, s.consul+"/v1/config", bytes.NewBufferString(body))
	if err != nil {
		return err
	}
	_, err = s.do(req)
	return err
}

// get reads a path of Consul's API.
func (s *stack) get(ctx context.Context, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.consul+path, nil)
	if err != nil {
		return "", err
	}
	return s.do(req)
}

func (s *stack) do(req *http.Request) (string, error) {
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("consul answered %s: %.200s", resp.Status, b)
	}
	return string(b), err
}
