package run

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
)

// process is the application. It belongs to the supervisor's goroutine.
type process struct {
	pid    int
	group  bool // it leads a process group of its own
	exited bool
	status syscall.WaitStatus
}

// find looks the program up as a shell does; the code is for an exit.
func find(name string) (path string, code int, err error) {
	path, err = exec.LookPath(name)
	switch {
	case err == nil:
		return path, 0, nil
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound):
		return "", CodeNotFound, fmt.Errorf("run: there is no program %s: give its path, or have it in PATH", name)
	}
	return "", CodeNotRun, fmt.Errorf("run: %s cannot be run: %w", name, err)
}

// start runs the program. Its standard streams are this process's, and on a
// terminal its process group too: job control is the shell's. Elsewhere it leads
// a group, so that its own children can be killed with it.
func (c *Config) start(path string, terminal bool) (*process, error) {
	attr := &syscall.ProcAttr{Env: c.Env, Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setpgid: !terminal}}
	if c.OnLoss == Stop {
		withParent(attr.Sys)
	}
	if u := c.User; u != nil {
		attr.Sys.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}
	}
	pid, err := syscall.ForkExec(path, c.Argv, attr)
	switch {
	case err == nil:
		return &process{pid: pid, group: !terminal}, nil
	case errors.Is(err, syscall.ENOEXEC):
		return nil, fmt.Errorf("run: %s is neither a program of this machine nor a script with a first line #!: %w", path, err)
	case c.User != nil && errors.Is(err, syscall.EPERM):
		return nil, fmt.Errorf("run: cannot become the user %s: %w; start parrel as root, or leave --user out", c.User.Name, err)
	}
	return nil, fmt.Errorf("run: cannot run %s: %w", path, &os.PathError{Op: "exec", Path: path, Err: err})
}

// signal sends to the application alone: its children are its own business.
func (p *process) signal(sig syscall.Signal) {
	if !p.exited {
		_ = syscall.Kill(p.pid, sig) // it may have become a zombie meanwhile
	}
}

// kill ends the application, and what it started as far as that is still in its
// group.
func (p *process) kill() {
	if p.exited {
		return
	}
	if p.group {
		_ = syscall.Kill(-p.pid, syscall.SIGKILL)
	}
	_ = syscall.Kill(p.pid, syscall.SIGKILL)
}

// reap waits for every child that has ended: the application, and orphans that
// the kernel gave to this process because it is the first of its PID namespace.
func (p *process) reap() {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil || pid <= 0:
			return
		case p != nil && pid == p.pid && (ws.Exited() || ws.Signaled()):
			p.exited, p.status = true, ws
		}
	}
}

// code is what a shell would say of how the application ended.
func (p *process) code() int {
	if p.status.Signaled() {
		return codeSignalled + int(p.status.Signal())
	}
	return p.status.ExitStatus()
}
