//go:build !linux

package demo

import "syscall"

// child are the attributes of the demo's processes: a group of their own. Without
// Linux nothing ends them where the demo itself is killed.
func child(uintptr) *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
