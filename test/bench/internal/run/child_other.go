//go:build !linux

package run

import "syscall"

// child are the attributes of what is started: a group of its own.
func child() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
