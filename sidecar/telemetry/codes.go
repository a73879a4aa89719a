package telemetry

// Code is the closed list of reasons why the mesh itself ended, refused or
// failed something. Each has Envoy's response flag, a stable id for machines,
// the RFC 9209 proxy-status error and one sentence for people (see Table).
type Code uint8

const (
	OK                            Code = iota
	NoRoute                            // NR
	NoCluster                          // NC
	NoHealthyUpstream                  // UH
	UpstreamConnectFailure             // UF
	UpstreamConnectTimeout             // UF
	UpstreamTLSFailure                 // UF: handshake or identity refused
	UpstreamReset                      // UR: before the response head
	UpstreamConnectionTermination      // UC
	UpstreamProtocolError              // UPE
	UpstreamRequestTimeout             // UT
	UpstreamOverflow                   // UO: breaker
	RetryLimit                         // URX
	DownstreamReset                    // DC
	DownstreamProtocolError            // DPE
	DownstreamTLSFailure               // handshake: plaintext, no certificate, wrong identity …
	RBACDenied                         // L7 or L4 authorisation refused
	ReauthorisedDenied                 // open connection ended because its permission was withdrawn
	StreamIdleTimeout                  // SI
	RequestTimeout                     // slow request
	DrainTimeout
	NoFilterChain         // NR on a listener
	NoIdentity            // own certificate missing or expired
	LocalPanic            // a handler panicked
	Overload              // OM
	RequestHeaderTooLarge // a limit on the head's size or count
	RequestHeaderTimeout  // the head did not come in its time
	DownstreamFlood       // the connection's abuse budget is used up
	Misdirected           // SNI and authority disagree
	DirectResponse        // the route's own answer, with a status of an error
	ConnectionLimit       // a listener's or the process's
	SourceLimit           // one address has too many connections
	DNSTimeout            // DF: no resolver answered in time
	DNSError              // DF: no resolver could be asked
	NotRedirected         // NR: a capture listener's connection without an original destination
	CaptureLoop           // NR: the original destination is a capture listener
	OutsideMesh           // NR: the mesh allows its own destinations only
	codeEnd
)
