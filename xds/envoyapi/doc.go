// Package envoyapi speaks Envoy's other protos where users meet them: the admin
// API's shapes.
//
// Owns: [ConfigDump] and [Clusters], the JSON of /config_dump and /clusters
// (admin v3), under Envoy's field names. Does not know: engines, streams.
//
// Invariants: a private key never appears; equal input gives equal bytes. Read
// first: TestConfigDump.
package envoyapi
