package run

import "syscall"

// child are the attributes of what is started: a group of its own, and an end
// with the process that started it, however that ends.
func child() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
