// Package static runs parrel's binary by the bootstraps of examples/static: as a
// gateway, as an opaque proxy, and as a pair with mutual TLS.
//
// Read first: TestPlain.
package static
