package stream

// Chunks is a Body that lends its bytes instead of copying them. The engines'
// own bodies are; what a filter puts in their place need not be.
type Chunks interface {
	Body
	// Next lends the next bytes, at least one unless there is an error. They are
	// valid until the next call of Next, Read or Close. Bytes may come together
	// with io.EOF.
	Next() ([]byte, error)
	// Ready says that Next would not block: bytes, the end or a failure are there.
	Ready() bool
}

// Poison, set before anything is served, makes every buffer that is given back
// unreadable, so that a test notices who kept a string of a head for too long.
// For tests alone.
var Poison bool

// Poisoned fills a buffer that is about to be given back, where Poison is set.
func Poisoned(b []byte) {
	if Poison {
		for i := range b {
			b[i] = 0xDB
		}
	}
}
