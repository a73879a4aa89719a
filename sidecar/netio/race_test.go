//go:build race

package netio

// raceDetector: what is pooled is then dropped at random.
const raceDetector = true
