//go:build !linux

package netio

// soon is a connection's part in bursts: here messages are sent at once.
type soon struct{}

func (c *osConn) writeSoon(p []byte) (int, error) { return c.Write(p) }
func (c *osConn) settled() bool                   { return true }
func (c *osConn) settle() error                   { return nil }
func (c *osConn) push()                           {}
func (c *osConn) sooner(err error) error          { return err }
func (c *osConn) slow() bool                      { return false }
func (c *osConn) unsent() bool                    { return false }
func (c *osConn) enterBurst()                     {}
func (c *osConn) leaveBurst()                     {}
