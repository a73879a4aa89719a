package run

import (
	"context"
	"log/slog"
	"syscall"
	"time"
)

// Companion is the sidecar, as far as it is minded. *sidecar.Sidecar is one.
type Companion interface {
	// Run serves until ctx ends, then leaves softly. It returns an error where it
	// cannot go on.
	Run(ctx context.Context) error
	// AwaitOutbound returns nil when the application's calls can be served; its
	// error names what is missing.
	AwaitOutbound(ctx context.Context) error
	// Applications are the addresses, HOST:PORT or a Unix socket's path, at which
	// the application is called; none where nobody calls it.
	Applications() []string
	// OpenInbound lets callers in.
	OpenInbound()
	// ApplicationGone says that the application has ended.
	ApplicationGone()
	// Hasten cuts short what a soft end waits for.
	Hasten()
}

// Config of one application and its companion.
type Config struct {
	// New makes the companion, again after it was lost where OnLoss says so. When
	// its inbound traffic has ended it calls beforeOutbound, which returns when
	// the application has exited, or when ctx ends.
	New func(beforeOutbound func(ctx context.Context)) (Companion, error)

	Argv []string // the application; its name is looked up in PATH
	Env  []string // of the application
	User *User    // nil: the same user

	// Start bounds how long the companion may take before the application
	// starts; negative: the application starts at once.
	Start time.Duration
	// Before runs between the two, with the companion ready: interception. What
	// it returns undoes it when the application has exited; it may be nil.
	Before func(ctx context.Context) (undo func(), err error)
	// StopSignals end both, softly; all others that can be caught are the
	// application's. None: SIGTERM, SIGINT, and SIGHUP on a terminal.
	StopSignals []syscall.Signal
	// AppSignal ends the application; 0: the signal that came, or SIGTERM.
	AppSignal syscall.Signal
	// Together: the application gets its signal at once, not after inbound
	// traffic has ended.
	Together bool
	// KillAfter is how long the application may take to exit once it has its
	// signal; 0: any time.
	KillAfter time.Duration
	OnLoss    Loss

	Log *slog.Logger // nil: none
	// Note is told what happens, at most once each in this order: Ready, when
	// callers were let in, and Stopping. It must not block. nil: nobody is told.
	Note func(Event)

	retry time.Duration // first pause before a lost companion starts again; 0: 1 s
}

// Loss is what happens to the application when its companion is lost.
type Loss uint8

const (
	// Stop ends the application: whoever started both starts both again.
	Stop Loss = iota
	// Restart makes a new companion, until it works; the application goes on.
	Restart
	// Keep lets the application go on alone.
	Keep
)

// Losses are their names.
var Losses = map[string]Loss{"stop": Stop, "restart": Restart, "keep": Keep}

// Event is told to Config.Note.
type Event uint8

const (
	Ready    Event = iota // callers were let in
	Stopping              // the soft end began
)

// Exit codes of a supervisor that has none of the application to pass on, those
// of env(1), timeout(1) and docker-run(1).
const (
	CodeFailed    = 125 // the companion could not be started, or was lost
	CodeNotRun    = 126 // the application was found and could not be run
	CodeNotFound  = 127 // there is no such application
	codeSignalled = 128 // and the signal's number
)
