package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/parrel-mesh/parrel/test/bench/internal/run"
)

// settle is left between the start of the contenders and the first turn.
const settle = 500 * time.Millisecond

// place fills the placeholders of a command or a configuration.
func place(b *run.Bench, text string) string {
	return strings.NewReplacer("@BIN@", tools(), "@RUN@", b.Dir, "@CERTS@", certs()).Replace(text)
}

// stage is the server and the contenders of one series, running.
type stage struct {
	server     []int
	contenders map[string][]int // process ids
	cmds       []*exec.Cmd
}

func (s *stage) stop(b *run.Bench) {
	for _, c := range slices.Backward(s.cmds) {
		b.Stop(c)
	}
}

// raise starts the server of a series and everyone of names.
func raise(b *run.Bench, all map[string]Contender, t *Series, names []string) (*stage, error) {
	s := &stage{contenders: map[string][]int{}}
	start := func(name string, core, port int, lines ...string) ([]int, error) {
		if answers(port) {
			return nil, fmt.Errorf("%s: something listens on 127.0.0.1:%d already; end it first", name, port)
		}
		var cmds []*exec.Cmd
		for i, line := range lines {
			cmd, err := b.Pinned(fmt.Sprintf("%s-%s-%d", t.name, name, i), core, place(b, line))
			if err != nil {
				return nil, err
			}
			cmds = append(cmds, cmd)
			s.cmds = append(s.cmds, cmd)
		}
		for range 200 { // 10 s
			if answers(port) {
				var pids []int
				for _, c := range cmds {
					pids = append(pids, tree(c.Process.Pid)...)
				}
				return pids, nil
			}
			time.Sleep(50 * time.Millisecond)
		}
		return nil, fmt.Errorf("%s does not listen on 127.0.0.1:%d", name, port)
	}
	var err error
	if s.server, err = start("server", loadCore, others[direct].Ports[t.serves()], t.server); err != nil {
		return s, err
	}
	for _, n := range names {
		if n == direct {
			continue
		}
		if s.contenders[n], err = start(n, proxyCore, all[n].Ports[t.workload], all[n].Cmds...); err != nil {
			return s, err
		}
	}
	time.Sleep(settle)
	return s, nil
}

// serves is the workload of the series' server.
func (t *Series) serves() string {
	if t.workload == wHTTPS {
		return wH1
	}
	return t.workload
}

func answers(port int) bool {
	c, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// client runs a client on its core and returns what it printed.
func client(b *run.Bench, line string, port, secs int) (string, error) {
	line = strings.NewReplacer("{port}", strconv.Itoa(port), "{secs}", strconv.Itoa(secs)).Replace(place(b, line))
	cmd := exec.Command("taskset", "-c", strconv.Itoa(loadCore), "sh", "-c", "exec "+line)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", line, err, last(complaint.String()))
	}
	return string(out), nil
}

// measure runs a series.
func measure(b *run.Bench, o *options, all map[string]Contender, t *Series) (*Result, error) {
	names := taking(all, t.name, []string{direct, t.anchor}, o.only)
	if !slices.Contains(names, t.anchor) {
		return nil, fmt.Errorf("its anchor %s is not among the contenders", t.anchor)
	}
	s, err := raise(b, all, t, names)
	defer s.stop(b)
	if err != nil {
		return nil, err
	}
	samples := map[string][]Sample{}
	var bad error
	for round := range o.rounds {
		for _, n := range names {
			x, err := calmly(o, func() (Sample, error) { return turn(b, o, s, all[n], t, n) })
			if errors.Is(err, errCount) { // the figures stand, the count does not
				bad = fmt.Errorf("%s: %w", n, err)
			} else if err != nil {
				return nil, fmt.Errorf("round %d of %s: %w", round+1, n, err)
			}
			samples[n] = append(samples[n], x)
			progress(os.Stderr, t, round, n, &x)
		}
	}
	for _, n := range names {
		if err := exact(b, all[n], t, n); err != nil {
			bad = errors.Join(bad, fmt.Errorf("%s: %w", n, err))
		}
	}
	res := &Result{
		Series: t.name, Title: t.title, Client: t.client, Unit: t.unit, Anchor: t.anchor,
		Rounds: o.rounds, Secs: o.secs, Rows: rows(names, samples, t.anchor), Targets: t.targets,
	}
	return res, bad
}

// calmly takes a turn when the machine is calm, and again where others had more
// than their share of it, until o.patience is used up: then the least disturbed
// turn counts.
func calmly(o *options, take func() (Sample, error)) (Sample, error) {
	until := time.Now().Add(o.patience)
	var best Sample
	for first := true; ; first = false {
		for time.Now().Before(until) {
			busy, err := busyShare(300 * time.Millisecond)
			if err != nil {
				return best, err
			}
			if busy < disturbed {
				break
			}
		}
		x, err := take()
		if err != nil {
			return x, err
		}
		if first || x.Others < best.Others {
			best = x
		}
		if x.Others < disturbed || !time.Now().Before(until) {
			return best, nil
		}
	}
}

// busyShare is the share of the two cores that was busy for a while.
func busyShare(while time.Duration) (float64, error) {
	before, err := read(nil, nil)
	if err != nil {
		return 0, err
	}
	time.Sleep(while)
	after, err := read(nil, nil)
	if err != nil {
		return 0, err
	}
	return after.since(before).others / (2 * while.Seconds()), nil
}

func progress(w io.Writer, t *Series, round int, name string, x *Sample) {
	fmt.Fprintf(w, "%s round %d: %-16s rate %10.6g  CPU %.4f s/%s  others %2.0f %%\n", t.name, round+1, name, x.Rate, x.CPU, t.unit, 100*x.Others)
}

// turn is one turn of one contender.
func turn(b *run.Bench, o *options, s *stage, c Contender, t *Series, name string) (Sample, error) {
	var x Sample
	counted, err := counts(c.Admin, t)
	if err != nil {
		return x, err
	}
	before, err := read(s.contenders[name], s.server)
	if err != nil {
		return x, err
	}
	began := time.Now()
	out, err := client(b, t.client, c.Ports[t.workload], o.secs)
	if err != nil {
		return x, err
	}
	took := time.Since(began).Seconds()
	after, err := read(s.contenders[name], s.server)
	if err != nil {
		return x, fmt.Errorf("a process of the contender ended: %w", err)
	}
	if x.Load, err = t.parse(out); err != nil {
		return x, err
	}
	d := after.since(before)
	units := x.N / t.per
	x.CPU, x.Core, x.Both, x.Others, x.RSS = d.proxy/units, d.core/units, d.both/units, d.others/(2*took), rssOf(s.contenders[name])
	if name == direct { // nothing of it was on the other core
		x.Others = d.beside / took
	}
	return x, agree(c.Admin, t, counted, x.N, t.slack, recorded)
}
