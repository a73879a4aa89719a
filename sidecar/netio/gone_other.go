//go:build !linux

package netio

// gone cannot tell here; a write finds out.
func (c *osConn) gone() bool { return false }
