// Package shop is the small shop that parrel's demo runs: web → api → {orders,
// users, pricing, ledger}. Its programs know nothing of the mesh: each listens
// in plaintext on loopback and calls its upstreams on loopback ports, where a
// sidecar takes over.
//
// web, api, orders and users speak HTTP, pricing speaks gRPC, ledger speaks
// lines of text over TCP. Every answer says who answered and, where the
// protocol has a place for it (the x-forwarded-client-cert header, which the
// callee's sidecar sets and nobody else can), whom the callee saw calling.
//
// Entry point: [Run]. Read shop_test.go first.
package shop
