// Package consul is the catalogue of a Consul agent's datacenter, by blocking
// queries, the registration of sidecars with the agent, and the record of used
// join tokens in its KV.
//
// Owns: the discipline of blocking queries (index rules, back-off, stale
// reads), the bound on open queries and sockets, and what is believed of an
// answer: see [discovery.Guard].
//
// Does not know: xDS, the mesh snapshot, sidecars.
//
// Entry points: [New] and [Source.Run]; [NewRegistrar]; [NewUsedTokens].
//
// # The token
//
// The control plane's token needs these rules and no more:
//
//	node_prefix    "" { policy = "read" }
//	service_prefix "" { policy = "read" intentions = "read" }
//	agent_prefix   "" { policy = "read" } # the default intention policy, at /v1/agent/self
//	mesh              = "read"            # entries of the kinds mesh, exported-services, …
//	key_prefix "parrel/" { policy = "write" } # which join tokens were used, see UsedTokens
//
// Without agent read the default intention policy stays unknown, which means
// deny. Without mesh read the mesh entry is not seen, and requests are read
// strictly. Without key write no sidecar can join with a token. What a token may
// not read is named in Status.Problems. A sidecar that registers itself as
// SERVICE needs, with the agent on its host:
//
//	service "SERVICE"               { policy = "write" }
//	service "SERVICE-sidecar-proxy" { policy = "write" }
//	agent_prefix ""                 { policy = "read" }
//
// The token is sent to the agent alone and never logged.
//
// # What is asked
//
// One query each for the list of services, the pulse (has the catalogue a
// leader, did any check change), the CA's roots and each kind of config entry,
// and at most Config.Watches for services: with 100 services 122 open queries,
// with more the rest is swept by short reads, see watches.
//
// Invariants: all state belongs to one goroutine, the collector; an error never
// takes anything away; a service is delivered at most once per
// Config.Coalesce, and a first change at once.
//
// Read TestSourceRules first.
package consul

//go:generate go run ./fieldgen ../fields_gen.go
