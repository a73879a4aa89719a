// Package telemetry is what a sidecar says of itself: the closed list of codes,
// the record of a request or connection, metrics in Istio's names, access logs
// in Envoy's words, and the keys of slog attributes.
//
// Owns: [Table], [Record], [Metrics], [Logs]. Does not know: who fills records,
// who reads metrics.
//
// Entry points: [NewMetrics] and [NewLogs], once a process; [Logs.Compile] for
// each set of access logs; [Multi] joins recorders.
//
// Invariants: every code has a flag, an id, a status and a sentence, and stands
// in docs/codes.md; the number of series is capped and nothing counted is lost;
// recording allocates nothing after a label set's first time; one record is one
// line, whatever a client put into it; no line is lost while the owner runs.
//
// Read table_test.go and accesslog_test.go first.
package telemetry
