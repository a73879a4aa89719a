// Package arch holds the borders between packages: who may import whom, with
// the reason beside each rule. It reads the module's imports, so a border is
// crossed in the build or not at all.
package arch
