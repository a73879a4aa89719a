// Command compare measures parrel side by side with HAProxy and nginx: each
// series is one kind of load that all of its contenders carry in turns, round
// after round, and what counts is the ratio to HAProxy within the same run.
//
// Clients and servers run on core 0, the proxy under test on core 1, with one
// thread of work each. All contenders of a series are started first; idle ones
// cost nothing. CPU is taken from /proc, around each turn.
//
// It runs from the root of the module (`make bench`), installs Debian's packages
// where they are missing and the user is root, and writes test/bench/results.json
// and results.md. docs/benchmarks.md says what each series means.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/parrel-mesh/parrel/test/bench/internal/run"
)

// options are the command line.
type options struct {
	series     []string
	only       []string // contenders; empty: all of a series
	rounds     int
	secs       int
	conns      int // idle connections of the series mem
	patience   time.Duration
	contenders string
	results    string // path without extension
	profile    bool
	learn      bool
}

func main() {
	var o options
	names := make([]string, 0, len(table)+1)
	for i := range table {
		names = append(names, table[i].name)
	}
	names = append(names, memSeries)
	series := flag.String("series", strings.Join(names, ","), "series to run, separated by commas")
	only := flag.String("only", "", "contenders to run, separated by commas; the anchor of ratios is always one of them")
	flag.IntVar(&o.rounds, "rounds", 5, "turns of each contender")
	flag.IntVar(&o.secs, "secs", 5, "seconds of each turn")
	flag.IntVar(&o.conns, "conns", 5000, "idle connections of the series mem")
	flag.DurationVar(&o.patience, "patience", 0, "how long each turn may wait, and be repeated, while other work disturbs the machine")
	flag.StringVar(&o.contenders, "contenders", filepath.Join(bench, "contenders.json"), "parrel's own contenders")
	flag.StringVar(&o.results, "results", filepath.Join(bench, "results"), "where results go, without extension; empty: standard output only")
	flag.BoolVar(&o.profile, "profile", false, "profile parrel under the load of the series instead of comparing")
	flag.BoolVar(&o.learn, "pgo", false, "write the profile that parrel is built by (cmd/parrel/parrel.pgo) instead of comparing")
	priority := flag.Bool("priority", false, "go before all other work of the machine (as root)")
	list := flag.Bool("list", false, "list the series")
	flag.Parse()
	if *list {
		for i := range table {
			fmt.Printf("%-12s %s\n", table[i].name, table[i].title)
		}
		fmt.Printf("%-12s %s\n", memSeries, memTitle)
		return
	}
	o.series = strings.Split(*series, ",")
	if *only != "" {
		o.only = strings.Split(*only, ",")
	}
	for _, s := range o.series {
		if !slices.Contains(names, s) {
			fmt.Fprintf(os.Stderr, "compare: no series %q; there are %s\n", s, strings.Join(names, " "))
			os.Exit(2)
		}
	}
	if o.rounds < 1 || o.secs < 1 {
		fmt.Fprintln(os.Stderr, "compare: -rounds and -secs must be at least 1")
		os.Exit(2)
	}
	if os.Getenv(inside) == "" && os.Geteuid() == 0 {
		os.Exit(apart(*priority))
	}
	if *priority && os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "compare: -priority needs root")
		os.Exit(2)
	}
	run.Main("compare", func(b *run.Bench) error { return all(b, &o) })
}

// all runs the series one after the other. What a series found is written before
// the next one begins; one that fails does not keep the others from running.
func all(b *run.Bench, o *options) error {
	if err := allowFiles(); err != nil {
		return err
	}
	if err := prepare(b); err != nil {
		return err
	}
	contenders, err := loadContenders(o.contenders)
	if err != nil {
		return err
	}
	if o.learn {
		return learn(b, o, contenders)
	}
	m := machine(b)
	var failed []error
	for _, name := range o.series {
		res, err := one(b, o, contenders, name)
		if err != nil {
			failed = append(failed, fmt.Errorf("series %s: %w", name, err))
			fmt.Fprintln(os.Stderr, "compare:", failed[len(failed)-1])
		}
		if res == nil {
			continue
		}
		res.Machine = m
		fmt.Println(res.markdown())
		if o.results == "" {
			continue
		}
		if err := save(o.results, res); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}

func one(b *run.Bench, o *options, contenders map[string]Contender, name string) (*Result, error) {
	if name == memSeries {
		if o.profile {
			return nil, errors.New("memory has no CPU profile")
		}
		return memory(b, o, contenders)
	}
	for i := range table {
		if table[i].name != name {
			continue
		}
		if o.profile {
			return nil, profile(b, o, contenders, &table[i])
		}
		return measure(b, o, contenders, &table[i])
	}
	return nil, errors.New("not in the table")
}

// allowFiles raises the limit of open files to what the system allows, for this
// process and those it starts.
func allowFiles() error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	l.Cur = l.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l)
}
