package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/parrel-mesh/parrel/test/bench/internal/run"
)

// profilePath is the profile that `make build` compiles by (-pgo).
var profilePath = filepath.Join("cmd", "parrel", "parrel.pgo")

// profiler is laid over cmd/parrel for this one build (go build -overlay): a
// binary that writes its CPU profile to the file that the environment names until
// it is sent SIGUSR1. The product has no such thing.
const profiler = `package main

import (
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"syscall"
)

var _ = profile()

func profile() bool {
	w, err := os.Create(os.Getenv("PARREL_CPU_PROFILE"))
	if err != nil {
		return false
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGUSR1)
	runtime.SetCPUProfileRate(500) // what StartCPUProfile then says of it does not matter: the first rate stays
	if err := pprof.StartCPUProfile(w); err != nil {
		panic(err)
	}
	go func() {
		<-end
		pprof.StopCPUProfile()
		w.Close()
	}()
	return true
}
`

// learn runs parrel alone through the series, and merges the CPU profiles of its
// processes into the one by which it is built.
func learn(b *run.Bench, o *options, all map[string]Contender) error {
	binary, err := profiledBinary(b)
	if err != nil {
		return err
	}
	var profiles []string
	for _, series := range o.series {
		for i := range table {
			t := &table[i]
			if t.name != series {
				continue
			}
			for _, name := range taking(all, t.name, nil, nil) {
				c := all[name]
				if len(c.Admin) == 0 {
					continue // not parrel's own
				}
				cmds, mine := profiled(c.Cmds, b, binary, t.name)
				c.Cmds = cmds
				if err := exercise(b, o, map[string]Contender{name: c}, t, name); err != nil {
					return fmt.Errorf("series %s: %w", t.name, err)
				}
				profiles = append(profiles, mine...)
			}
		}
	}
	if len(profiles) == 0 {
		return errors.New("none of the series has a contender of parrel's")
	}
	out, err := exec.Command("go", append([]string{"tool", "pprof", "-proto"}, profiles...)...).Output()
	if err != nil {
		return fmt.Errorf("go tool pprof: %w", err)
	}
	return os.WriteFile(profilePath, out, 0o644)
}

// profiledBinary builds parrel with the profiler in it.
func profiledBinary(b *run.Bench) (string, error) {
	if err := b.Write("profiler.go", profiler); err != nil {
		return "", err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {absolute(filepath.Join("cmd", "parrel", "zz_profiler.go")): filepath.Join(b.Dir, "profiler.go")}})
	if err != nil {
		return "", err
	}
	if err := b.Write("overlay.json", string(overlay)); err != nil {
		return "", err
	}
	binary := filepath.Join(tools(), "parrel-profiled")
	return binary, do("go", "build", "-overlay", filepath.Join(b.Dir, "overlay.json"), "-o", binary, "./cmd/parrel")
}

// profiled makes commands of contenders write their profiles, and returns where.
func profiled(cmds []string, b *run.Bench, binary, series string) (out, files []string) {
	for i, line := range cmds {
		file := filepath.Join(b.Dir, fmt.Sprintf("%s-%d.prof", series, i))
		files = append(files, file)
		out = append(out, "env PARREL_CPU_PROFILE="+file+" "+strings.Replace(line, b.Parrel, binary, 1))
	}
	return out, files
}

// exercise is one turn of one contender, of which nothing is reported.
func exercise(b *run.Bench, o *options, all map[string]Contender, t *Series, name string) error {
	s, err := raise(b, all, t, []string{name})
	defer s.stop(b)
	if err != nil {
		return err
	}
	x, err := turn(b, o, s, all[name], t, name)
	progress(os.Stderr, t, 0, name, &x)
	for _, pid := range s.contenders[name] {
		if err := syscall.Kill(pid, syscall.SIGUSR1); err != nil {
			return err
		}
	}
	time.Sleep(settle) // the profile is being written
	return err
}
