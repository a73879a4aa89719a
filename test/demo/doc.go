// Package demo runs `parrel demo` as a user does: on files and on a real Consul,
// to its end and interrupted, and looks for what it left behind.
package demo
