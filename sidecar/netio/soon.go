package netio

// WriteSoon writes a small message together with those of other connections, as
// soon as everybody has run who can; where there are none, or p is large, at once.
// It keeps nothing of p. An error of a message that was taken is told by the next
// operation of the connection; a write after it waits until it has left, and Close
// sends it as far as the kernel takes it.
//
// It is for the last part of a message whose answer is waited for next. Writes of
// one connection are one goroutine's at a time, as with Write.
func WriteSoon(c Conn, p []byte) (int, error) {
	if o, ok := c.(*osConn); ok {
		return o.writeSoon(p)
	}
	return c.Write(p)
}

// Settle waits until what WriteSoon took is the kernel's, or has failed. The write
// deadline bounds it.
func Settle(c Conn) error {
	if o, ok := base(c).(*osConn); ok {
		return o.settle()
	}
	return nil
}

// Slow says that the peer has not yet taken all of what WriteSoon took.
func Slow(c Conn) bool {
	o, ok := base(c).(*osConn)
	return ok && o.slow()
}

// Unsent says that what WriteSoon took last has failed, and no byte of it was sent.
func Unsent(c Conn) bool {
	o, ok := base(c).(*osConn)
	return ok && o.unsent()
}
