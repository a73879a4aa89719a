package file

import (
	"context"
	"fmt"

	"github.com/fsnotify/fsnotify"
)

// Notify watches a directory by the kernel's events. The channel gets a value
// after changes; it is closed when ctx has ended, or when the watch broke,
// after which the rescan alone finds changes.
func Notify(ctx context.Context, dir string) (<-chan struct{}, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("file: %w", err)
	}
	if err := w.Add(dir); err != nil {
		w.Close()
		return nil, fmt.Errorf("file: %w", err)
	}
	out := make(chan struct{}, 1)
	go func() { // ends with ctx; its owner, Run, drains out until it is closed
		defer close(out)
		defer w.Close()
		for {
			select {
			case <-ctx.Done():
				return
			case _, ok := <-w.Errors:
				if !ok {
					return
				}
			case _, ok := <-w.Events:
				if !ok {
					return
				}
			}
			select {
			case out <- struct{}{}:
			default: // one is waiting already
			}
		}
	}()
	return out, nil
}
