package demo

import "syscall"

// child are the attributes of the demo's processes: a group of their own, and an
// end with the process that started them, however that ends. flags are clone(2)'s
// namespaces.
func child(flags uintptr) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Cloneflags: flags}
}
