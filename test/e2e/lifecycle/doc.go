// Package lifecycle tries `parrel run` and `parrel sidecar` at their start and
// end, with real processes on a folder of definitions: an application's first
// millisecond and its last, rolling restarts under load, systemd's notification.
// Read TestRollingRestart first.
package lifecycle
