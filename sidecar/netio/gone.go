package netio

import "time"

// gone is a Conn that can look for a failure without blocking.
type gone interface{ gone() bool }

// Gone says, without blocking and while others read and write, that the
// connection has failed: the peer has reset it, or was given up as dead. A peer
// that has ended its own direction (FIN) may still be reading: that is no
// failure. A connection that cannot tell is said not to be gone.
func Gone(c Conn) bool {
	if g, ok := unwrap(c).(gone); ok {
		return g.gone()
	}
	return false
}

func (c *memConn) gone() bool {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	me := &c.p.end[c.side]
	return me.closed || me.err != nil && !me.errDue.After(time.Now())
}
