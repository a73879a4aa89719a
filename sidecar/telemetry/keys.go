package telemetry

// Keys of slog attributes: the whole vocabulary of the sidecar's logs. A value
// has the same key in every package, and in the JSON access log where it is
// there too.
const (
	KeyError       = "error"
	KeyCode        = "code"   // id of a Code
	KeyDetail      = "detail" // free text behind a code
	KeyWorkload    = "workload"
	KeyListener    = "listener"
	KeyChain       = "chain"
	KeyRoute       = "route"
	KeyCluster     = "cluster"
	KeyEndpoint    = "endpoint"
	KeyVersion     = "version"  // of the configuration
	KeyResource    = "resource" // name of an xDS resource
	KeyType        = "type"     // of an xDS resource: LDS, RDS …
	KeyPeer        = "peer"     // SPIFFE id
	KeySource      = "source"
	KeyDestination = "destination"
	KeyPolicy      = "policy"
	KeyFilter      = "filter"
	KeyMethod      = "method"
	KeyPath        = "path"
	KeyAuthority   = "authority"
	KeyRequestID   = "request_id"
	KeyStatus      = "status"
	KeyDuration    = "duration"
	KeyAddress     = "address"
	KeyFile        = "file"
	KeyServer      = "server"
	KeyAttempt     = "attempt"
	KeyStack       = "stack"
	KeyCount       = "count"
)
