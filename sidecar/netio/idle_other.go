//go:build !linux

package netio

type poller struct{}

func (*poller) close() {}

// parkSocket: there is no epoll here.
func (*Idler) parkSocket(*osConn, Waker) bool { return false }
