package sim

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// Log holds what everybody in the mesh logged.
type Log struct {
	level slog.Level

	mu      sync.Mutex
	entries []Entry // guarded by mu
}

// Entry is one line of a log.
type Entry struct {
	At    time.Time
	Who   string // "control-plane", an instance's id, "ca"
	Level slog.Level
	Text  string // message and attributes
}

func (e Entry) String() string {
	return fmt.Sprintf("%s %-5s %s: %s", e.At.UTC().Format("01-02T15:04:05.000"), e.Level, e.Who, e.Text)
}

func newLog(level slog.Level) *Log { return &Log{level: level} }

// For is a logger of one of the mesh's parts.
func (l *Log) For(who string) *slog.Logger { return slog.New(&handler{log: l, who: who}) }

// Find lists the entries of who ("" is anybody) that contain every one of the
// given texts.
func (l *Log) Find(who string, texts ...string) (out []Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
next:
	for _, e := range l.entries {
		if who != "" && e.Who != who {
			continue
		}
		for _, t := range texts {
			if !strings.Contains(e.Text, t) {
				continue next
			}
		}
		out = append(out, e)
	}
	return out
}

// Tail is the last n entries as text.
func (l *Log) Tail(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, e := range l.entries[max(0, len(l.entries)-n):] {
		fmt.Fprintln(&b, e)
	}
	return b.String()
}

// handler writes records into a Log.
type handler struct {
	log    *Log
	who    string
	attrs  []slog.Attr
	groups []string
}

func (h *handler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.log.level }

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	var b bytes.Buffer
	b.WriteString(r.Message)
	write := func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%v", strings.Join(append(h.groups, a.Key), "."), a.Value)
		return true
	}
	for _, a := range h.attrs {
		write(a)
	}
	r.Attrs(write)
	h.log.mu.Lock()
	defer h.log.mu.Unlock()
	h.log.entries = append(h.log.entries, Entry{At: r.Time, Who: h.who, Level: r.Level, Text: b.String()})
	return nil
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	n := *h
	n.attrs = append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)
	return &n
}

func (h *handler) WithGroup(name string) slog.Handler {
	n := *h
	n.groups = append(h.groups[:len(h.groups):len(h.groups)], name)
	return &n
}
