// Package server serves xDS v3, delta and state of the world, aggregated, with
// go-control-plane's stream loops over a cache of its own.
//
// Owns: the cache of serialised resources, subscriptions, per-workload views,
// the authentication of streams, the record of what each stream wants, has
// acknowledged and has refused. Does not know: catalogue, policy, how a
// resource is made ([Provider]) and who may speak as whom ([Authoriser]).
//
// Entry points: [New], [Server.Register], [Server.Changed], [Server.Status].
// Read first: server_test.go, then random_test.go of xds/client.
//
// # How it works
//
// Each stream has its own go-control-plane loop, whose cache is the stream
// itself. A resource is an entry: serialised once, its version the hash of its
// bytes (so two control planes that agree give the same versions), held by the
// subscriptions that want it, gone with the last of them. Entries are shared
// per dialect, or private to a node. [Server.Changed] makes the named shared
// entries anew, marks their holders, and gives each of their streams a turn; it
// touches no other stream. When the stream's goroutine takes its turn, it first
// makes what belongs to its workload alone, then decides what to send: one
// response a type is in flight at most, so a slow client holds a mark instead
// of a queue, and is disconnected when it does not answer in time.
//
// # Invariants
//
//   - A stream serves the node that its first request named and the Authoriser
//     granted to the certificate's SPIFFE id; it cannot become another. A private
//     resource is only ever made for, and served to, its own node. A shared one
//     is served to a workload whose Names hold it, or for whom Resource said ok.
//   - A stream does not outlive the certificate that opened it.
//   - Additions leave in the order CDS, EDS, LDS, RDS; an addition waits while an
//     earlier type has one waiting for an ACK; removals leave when all else is
//     acknowledged, LDS and RDS before CDS before EDS. Secrets wait for nothing.
//   - A version that a stream refused is not sent to it again, but once after
//     another version in between. State of the world has to repeat listeners and
//     clusters whole: where the client named what it refused, the version it kept
//     is repeated instead.
//   - Delta tells of a name that does not exist (removed_resources); state of the
//     world does so by absence for LDS and CDS, and for others stays silent until
//     it exists.
//   - No call to the Provider or to the codec, and no send, under the lock.
package server
