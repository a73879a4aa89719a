//go:build race

package dns

// raceDetector: what is pooled is then dropped at random.
const raceDetector = true
