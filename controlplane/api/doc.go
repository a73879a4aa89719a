// Package api is the control plane's JSON API: what the CLI and the pages show.
//
//	GET /v1/status                       the control plane, its source, each sidecar and type
//	GET /v1/catalog                      services, instances, health, protocol, upstreams
//	GET /v1/config/TYPE/NODE             generated resources of a workload; TYPE is
//	                                     clusters, listeners, routes, endpoints or secrets
//	GET /v1/explain?from=&to=            one call, decided as the sidecars decide it
//	      &method=&path=&authority=&header=NAME:VALUE
//	GET /v1/analyze                      what parrel does not do of what was written
//	GET /healthz                         200 when the catalogue has been read, else 503
//	GET /metrics                         Prometheus
//
// NODE, from and to are a node id or the name of a service, whose first
// workload it then is. The JSON of every answer is a contract: keys are only
// ever added. Errors are {"error": "one sentence"}.
//
// Owns: the shapes. Does not know: how resources are made or decided; it asks
// controlplane/generate and xds/decide. Nothing can be changed through it: only
// GET and HEAD are answered, to Host headers that are loopback names and
// addresses or configured, so that no page in a browser can be rebound to it.
// Join tokens are made by who can open the CA's directory, never here.
//
// Read first: TestGolden.
package api
