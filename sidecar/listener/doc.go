// Package listener accepts connections: original destination, sniffing of TLS,
// the filter chain (by decide.Chain), the TLS handshake with the peer's
// identity, the network filters (by decide.Authorise), then the engine.
//
// Owns: [Set] (the open sockets, changed without closing those that stay),
// [Conn], drain. Does not know: routing, HTTP.
//
// The surface that compile and the engines use (signatures are fixed):
//
//	// Handler is an engine: it owns the connection from here and returns when it is over.
//	type Handler interface { Serve(ctx context.Context, c *Conn) }
//	// Conn is an accepted connection after TLS and authorisation.
//	type Conn struct {
//		netio.Conn                    // plaintext side: TLS is below
//		Peer        spiffeid.ID       // zero without mTLS
//		ALPN        string
//		TLS         bool
//		ServerName  string
//		Source, Destination netip.AddrPort
//		Listener, Chain string
//		Version     string            // snapshot's version
//		Draining    func() <-chan struct{} // closed when this connection should end after the work in hand
//	}
//	// Config is one listener of a compiled snapshot.
//	type Config struct { Resource *resource.Listener; Chains map[string]*Chain }  // by FilterChain.Name
//	type Chain struct { Resource *resource.FilterChain; Handler Handler; Trust func() *x509bundle.Set; Equal string }
//	func NewSet(Deps) *Set
//	func (s *Set) Update(version string, configs []Config) []error   // per listener; the others go on
//	func (s *Set) Drain(ctx) error
//	func (s *Set) Run(ctx) error
package listener
