// Command check brings the mesh of examples/compose up, proves what it promises,
// takes it down again, and says "demo: N passed, M failed" on the last line of
// standard output. The exit code is 0 or 1.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	passed, failed := demo(ctx)
	stop()
	fmt.Printf("demo: %d passed, %d failed\n", passed, failed)
	if failed > 0 {
		os.Exit(1)
	}
}

func demo(ctx context.Context) (passed, failed int) {
	s, err := newStack(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "check:", err)
		return 0, 1
	}
	defer func() {
		if err := s.down(); err != nil {
			fmt.Fprintln(os.Stderr, "check: take everything down:", err)
			failed++
		}
	}()
	if err := s.up(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "check:", err)
		s.logs(ctx)
		return 0, 1
	}
	for _, c := range checks() {
		cctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
		began := time.Now()
		err := c.run(cctx, s)
		cancel()
		if err != nil {
			failed++
			fmt.Printf("FAIL  %s: %v\n", c.name, err)
			continue
		}
		passed++
		fmt.Printf("ok    %s (%d ms)\n", c.name, time.Since(began).Milliseconds())
	}
	if failed > 0 {
		s.logs(context.WithoutCancel(ctx))
	}
	return passed, failed
}

// stack is the running mesh.
type stack struct {
	compose []string // docker-compose, or docker compose
	dir     string   // examples/compose
	project string
	env     []string
	web     string // URL
	consul  string // URL
}

func newStack(ctx context.Context) (*stack, error) {
	if out, err := exec.CommandContext(ctx, "docker", "info", "--format", "{{.ServerVersion}}").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("there is no Docker engine to be reached: %s: start one (dockerd), or look at the same mesh without one: `sudo parrel demo --netns`", strings.TrimSpace(string(out)))
	}
	s := &stack{project: fmt.Sprintf("parrel-check-%d", os.Getpid())}
	switch {
	case os.Getenv("COMPOSE") != "":
		s.compose = strings.Fields(os.Getenv("COMPOSE"))
	case exec.CommandContext(ctx, "docker", "compose", "version").Run() == nil:
		s.compose = []string{"docker", "compose"}
	default:
		s.compose = []string{"docker-compose"}
		if _, err := exec.LookPath("docker-compose"); err != nil {
			return nil, errors.New("there is neither `docker compose` nor docker-compose: install one of them")
		}
	}
	var err error
	if s.dir, err = folder(); err != nil {
		return nil, err
	}
	web, err := freePort()
	if err != nil {
		return nil, err
	}
	consul, err := freePort(web)
	if err != nil {
		return nil, err
	}
	s.web, s.consul = fmt.Sprintf("http://127.0.0.1:%d/", web), fmt.Sprintf("http://127.0.0.1:%d", consul)
	s.env = append(os.Environ(), "COMPOSE_PROJECT_NAME="+s.project, fmt.Sprintf("WEB_PORT=%d", web), fmt.Sprintf("CONSUL_PORT=%d", consul))
	return s, nil
}

// folder finds examples/compose from where the command was started.
func folder() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := wd; ; d = filepath.Dir(d) {
		for _, dir := range []string{d, filepath.Join(d, "examples", "compose")} {
			if _, err := os.Stat(filepath.Join(dir, "shop.yaml")); err == nil {
				return dir, nil
			}
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("examples/compose is not to be found above %s: start this in the repository", wd)
		}
	}
}

// up starts everything with the one command that users type, and waits for the
// first good answer.
func (s *stack) up(ctx context.Context) error {
	began := time.Now()
	upCtx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	if out, err := s.run(upCtx, "up", "-d"); err != nil {
		return fmt.Errorf("%s up: %w\n%s", strings.Join(s.compose, " "), err, out)
	}
	started := time.Since(began)
	first, cancelFirst := context.WithTimeout(ctx, 3*time.Minute)
	defer cancelFirst()
	if err := eventually(first, func() error { _, err := s.ask(first); return err }); err != nil {
		return fmt.Errorf("no good answer from web within 3 minutes of the start: %w", err)
	}
	fmt.Printf("demo: up after %.1f s, first good call after %.1f s\n", started.Seconds(), time.Since(began).Seconds())
	return nil
}

func (s *stack) down() error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	out, err := s.run(ctx, "--profile", "more", "down", "-v", "--remove-orphans", "-t", "5")
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

func (s *stack) run(ctx context.Context, args ...string) (string, error) {
	args = append(append(append([]string{}, s.compose[1:]...), "-f", filepath.Join(s.dir, "docker-compose.yaml")), args...)
	c := exec.CommandContext(ctx, s.compose[0], args...)
	c.Dir, c.Env = s.dir, s.env
	out, err := c.CombinedOutput()
	return string(out), err
}

// logs prints the end of every container's log.
func (s *stack) logs(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out, err := s.run(ctx, "logs", "--no-color", "--tail=12")
	if err != nil {
		out += err.Error()
	}
	fmt.Fprintln(os.Stderr, out)
}
