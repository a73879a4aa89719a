// Package static is static configurations to start from; its README says what
// each shows. The test here reads them; test/e2e/static runs them.
package static
