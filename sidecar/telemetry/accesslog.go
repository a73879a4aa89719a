package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// LogsConfig configures Logs.
type LogsConfig struct {
	Stdout, Stderr io.Writer     // nil: os.Stdout, os.Stderr
	Flush          time.Duration // longest time that a line waits; 0: 100 ms
	// Open opens a log file for appending; nil: os.OpenFile, mode 0640.
	Open func(path string) (io.WriteCloser, error)
}

// Logs owns the files of a process's access logs: one for each path, however
// many listeners write to it. Safe for concurrent use.
type Logs struct {
	c    LogsConfig
	kick chan struct{} // a buffer wants to be written now

	mu      sync.Mutex
	sinks   map[string]*sink // by path; guarded by mu
	running bool             // guarded by mu
}

// NewLogs makes the access logs of one process.
func NewLogs(c LogsConfig) *Logs {
	if c.Stdout == nil {
		c.Stdout = os.Stdout
	}
	if c.Stderr == nil {
		c.Stderr = os.Stderr
	}
	if c.Flush <= 0 {
		c.Flush = 100 * time.Millisecond
	}
	if c.Open == nil {
		c.Open = func(path string) (io.WriteCloser, error) {
			return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
		}
	}
	return &Logs{c: c, kick: make(chan struct{}, 1), sinks: map[string]*sink{}}
}

// DefaultAccessLog is one JSON line for each request and connection on
// standard output.
func DefaultAccessLog() []resource.AccessLog { return []resource.AccessLog{{Path: "/dev/stdout"}} }

// Compile makes a Recorder that writes to the given access logs; none: one
// that writes nothing. Its error names the format and the operator, or the file
// that cannot be opened.
func (l *Logs) Compile(logs []resource.AccessLog) (Recorder, error) {
	out := make([]Recorder, len(logs))
	for i := range logs {
		line, err := compileLine(&logs[i])
		if err != nil {
			return nil, err
		}
		s, err := l.sink(logs[i].Path)
		if err != nil {
			return nil, err
		}
		out[i] = &AccessLog{sink: s, minStatus: int(logs[i].MinStatus), filter: logs[i].Filter, line: line}
	}
	return Multi(out...), nil
}

func (l *Logs) sink(path string) (*sink, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.sinks[path]; s != nil {
		return s, nil
	}
	s := &sink{path: path, kick: l.kick, live: l.running}
	s.room.L = &s.mu
	switch path {
	case "":
		return nil, errors.New(`telemetry: an access log has no path: give a file, "/dev/stdout" or "/dev/stderr"`)
	case "/dev/stdout":
		s.w = l.c.Stdout
	case "/dev/stderr":
		s.w = l.c.Stderr
	default:
		f, err := l.c.Open(path)
		if err != nil {
			return nil, fmt.Errorf("telemetry: access log %q cannot be opened: create its folder and let the sidecar's user write there: %w", path, err)
		}
		s.w, s.file = f, f
	}
	l.sinks[path] = s
	return s, nil
}

// Reopen opens every file anew, after a rotation. Lines written before go to
// the old file. A file that cannot be opened keeps the old one.
func (l *Logs) Reopen() error {
	var errs []error
	for _, s := range l.all() {
		if !s.ours() {
			continue
		}
		f, err := l.c.Open(s.path)
		if err != nil {
			errs = append(errs, fmt.Errorf("telemetry: access log %q cannot be reopened, the old file is written on: %w", s.path, err))
			continue
		}
		s.replace(f)
	}
	return errors.Join(errs...)
}

func (l *Logs) all() []*sink {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]*sink, 0, len(l.sinks))
	for _, s := range l.sinks {
		out = append(out, s)
	}
	return out
}

// Run writes what was recorded until ctx ends, then writes the rest and closes
// the files. While it does not run, every record is written at once by whoever
// records it.
func (l *Logs) Run(ctx context.Context) error {
	l.live(true)
	t := time.NewTicker(l.c.Flush)
	defer t.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-l.kick:
		}
		for _, s := range l.all() {
			s.flush()
		}
	}
	l.live(false)
	for _, s := range l.all() {
		s.flush()
		s.close()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.sinks)
	return nil
}

func (l *Logs) live(on bool) {
	l.mu.Lock()
	l.running = on
	l.mu.Unlock()
	for _, s := range l.all() {
		s.setLive(on)
	}
}

// Sizes of a sink's buffer: from soft on the owner is woken, at hard recording
// waits for it, so that nothing is lost and memory stays bounded.
const (
	softBuffer = 32 << 10
	hardBuffer = 1 << 20
)

// sink is one file and its buffer.
type sink struct {
	path string
	kick chan struct{}

	mu   sync.Mutex
	room sync.Cond // the buffer was taken
	buf  []byte    // guarded by mu
	live bool      // guarded by mu: an owner flushes

	out   sync.Mutex // held while writing; taken before mu
	w     io.Writer  // guarded by out
	file  io.Closer  // guarded by out; nil: not ours to close
	spare []byte     // guarded by out
}

// write appends a record's line.
func (s *sink) write(line func([]byte, *Record) []byte, r *Record) {
	s.mu.Lock()
	for s.live && len(s.buf) >= hardBuffer {
		s.room.Wait()
	}
	s.buf = line(s.buf, r)
	full, live := len(s.buf) >= softBuffer, s.live
	s.mu.Unlock()
	switch {
	case !live:
		s.flush()
	case full:
		select {
		case s.kick <- struct{}{}:
		default:
		}
	}
}

// flush writes the buffer. An error of the file is not the request's: the lines
// are given up, as they would be by a full disk under any log.
func (s *sink) flush() {
	s.out.Lock()
	defer s.out.Unlock()
	s.mu.Lock()
	b := s.buf
	s.buf = s.spare[:0]
	s.room.Broadcast()
	s.mu.Unlock()
	if len(b) > 0 {
		_, _ = s.w.Write(b)
	}
	s.spare = b
}

// ours says whether the sink is a file that we opened.
func (s *sink) ours() bool {
	s.out.Lock()
	defer s.out.Unlock()
	return s.file != nil
}

func (s *sink) replace(f io.WriteCloser) {
	s.flush()
	s.out.Lock()
	old := s.file
	s.w, s.file = f, f
	s.out.Unlock()
	_ = old.Close()
}

func (s *sink) setLive(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live = on
	s.room.Broadcast()
}

func (s *sink) close() {
	s.out.Lock()
	defer s.out.Unlock()
	if s.file != nil {
		_ = s.file.Close()
		s.w = io.Discard
		s.file = nil
	}
}

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
