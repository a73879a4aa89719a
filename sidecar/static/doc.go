// Package static delivers a configuration that stands in a file to a sidecar,
// and reads certificate files anew when they change.
//
// Owns: [Source]; which files belong to which secret. Does not know: the form of
// the file (xds/bootstrap), TLS, what the sidecar does with the configuration.
// Entry point: [New], then [Source.Run].
//
// Invariants: everything is delivered once, secrets before what refers to them;
// afterwards only secrets change. Files that cannot be read, or do not fit each
// other, change nothing: what was good stays in force, with one line in the log.
//
// Test to read first: TestFilesAreReadAgain.
package static
