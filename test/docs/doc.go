// Package docs keeps the documents true: every link, every test that a promise
// names, every make target and every command that they mention has to exist.
package docs
