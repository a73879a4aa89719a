package main

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"
)

// logFlags are the log flags of the commands that run for long, named as
// Consul's.
type logFlags struct {
	level string
	json  bool
}

func (l *logFlags) bind(cmd *cobra.Command) {
	cmd.Flags().StringVar(&l.level, "log-level", "info", "debug, info, warn or error")
	cmd.Flags().BoolVar(&l.json, "log-json", false, "log lines as JSON")
}

func (l *logFlags) logger(w io.Writer) (*slog.Logger, error) {
	log, _, err := l.leveled(w)
	return log, err
}

// leveled also returns what changes the level while the process runs.
func (l *logFlags) leveled(w io.Writer) (*slog.Logger, *slog.LevelVar, error) {
	var level slog.LevelVar
	if err := level.UnmarshalText([]byte(l.level)); err != nil {
		return nil, nil, fmt.Errorf("--log-level %q: use debug, info, warn or error", l.level)
	}
	o := &slog.HandlerOptions{Level: &level}
	if l.json {
		return slog.New(slog.NewJSONHandler(w, o)), &level, nil
	}
	return slog.New(slog.NewTextHandler(w, o)), &level, nil
}
