//go:build !linux

package netio

// Acked is how many bytes the peer's TCP has acknowledged; it cannot tell here.
func Acked(Conn) (n uint64, ok bool) { return 0, false }

// Finished says that the peer has ended its side in order; it cannot tell here.
func Finished(Conn) bool { return false }
