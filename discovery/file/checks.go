package file

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"sync"

	"github.com/parrel-mesh/parrel/discovery"
)

// checker runs the checks of what is in force and knows the state of each. Its
// owner calls it from one goroutine and reads results.
type checker struct {
	prober  *prober
	enabled bool
	results chan result
	wg      sync.WaitGroup
	running map[checkKey]*running
}

type running struct {
	def     discovery.CheckDefinition
	stop    context.CancelFunc
	health  discovery.Health
	output  string
	waiting bool // for its first result
}

func newChecker(dial dialFunc, enabled bool) *checker {
	return &checker{prober: &prober{dial}, enabled: enabled, results: make(chan result), running: map[checkKey]*running{}}
}

// update starts what is new, stops what is gone or different, and leaves the
// rest as it is.
func (c *checker) update(ctx context.Context, regs []*discovery.Registration) {
	want := map[checkKey]discovery.CheckDefinition{}
	for _, r := range regs {
		for _, d := range r.Checks {
			want[checkKey{r.Instance.ID, d.ID}] = d
		}
	}
	for key, run := range c.running {
		if d, ok := want[key]; !ok || !reflect.DeepEqual(d, run.def) {
			run.stop()
			delete(c.running, key)
		}
	}
	for key, d := range want {
		if c.running[key] == nil {
			c.start(ctx, key, d)
		}
	}
}

func (c *checker) start(ctx context.Context, key checkKey, d discovery.CheckDefinition) {
	run := &running{def: d, health: d.Health, stop: func() {}}
	c.running[key] = run
	switch {
	case d.Type == discovery.CheckAlias:
	case !c.enabled:
		run.health, run.output = discovery.Passing, "checks are not run"
	case !runs(d.Type):
		run.health, run.output = discovery.Critical, "parrel's file catalogue does not run "+string(d.Type)+" checks"
	default:
		var sub context.Context
		sub, run.stop = context.WithCancel(ctx)
		run.waiting = true
		c.wg.Go(func() { c.prober.repeat(sub, key, d, c.results) })
	}
}

// pending says whether a check has not given its first result yet.
func (c *checker) pending() bool {
	for _, run := range c.running {
		if run.waiting {
			return true
		}
	}
	return false
}

// took takes a result and says whether a state changed.
func (c *checker) took(r result) bool {
	run := c.running[r.key]
	if run == nil {
		return false // stopped meanwhile
	}
	changed := run.health != r.health
	run.health, run.output, run.waiting = r.health, r.output, false
	return changed
}

// close stops all and waits. The context of update must have ended.
func (c *checker) close() {
	for _, run := range c.running {
		run.stop()
	}
	c.wg.Wait()
}

// states gives the checks of every instance, with aliases resolved.
func (c *checker) states(regs []*discovery.Registration) map[string][]discovery.Check {
	a := &aliases{checker: c, regs: map[string]*discovery.Registration{}, busy: map[string]bool{}}
	for _, r := range regs {
		a.regs[r.Instance.ID] = r
	}
	out := make(map[string][]discovery.Check, len(regs))
	for id := range a.regs {
		out[id] = a.of(id)
	}
	return out
}

type aliases struct {
	checker *checker
	regs    map[string]*discovery.Registration
	busy    map[string]bool
}

func (a *aliases) of(id string) []discovery.Check {
	r := a.regs[id]
	out := make([]discovery.Check, 0, len(r.Checks))
	for _, d := range r.Checks {
		ch := discovery.Check{ID: d.ID, Name: d.Name, Service: id, Health: d.Health}
		switch run := a.checker.running[checkKey{id, d.ID}]; {
		case d.Type == discovery.CheckAlias:
			ch.Health, ch.Output = a.resolve(d)
		case run != nil:
			ch.Health, ch.Output = run.health, run.output
		}
		out = append(out, ch)
	}
	return out
}

// resolve gives what an alias check finds: the worst of the service that it
// names; critical where there is no such service, as with Consul's agent.
func (a *aliases) resolve(d discovery.CheckDefinition) (discovery.Health, string) {
	switch {
	case a.regs[d.Target] == nil:
		return discovery.Critical, fmt.Sprintf("Service %s could not be found", d.Target)
	case a.busy[d.Target]:
		return discovery.Critical, "the alias leads back to itself"
	}
	a.busy[d.Target] = true
	defer delete(a.busy, d.Target)
	checks := a.of(d.Target)
	for _, ch := range checks {
		if ch.Health == discovery.CombineHealth(checks) && ch.Health != discovery.Passing {
			return ch.Health, fmt.Sprintf("Aliased check %q failing: %s", ch.Name, ch.Output)
		}
	}
	if len(checks) == 0 {
		return discovery.Passing, "No checks found."
	}
	return discovery.Passing, "All checks passing."
}

// unrun names the checks that are defined and not run.
func (c *checker) unrun(regs []*discovery.Registration) []discovery.Problem {
	var out []discovery.Problem
	for _, r := range regs {
		for _, d := range r.Checks {
			if c.enabled && d.Type != discovery.CheckAlias && !runs(d.Type) {
				out = append(out, discovery.Problem{
					Origin: r.Instance.Origin,
					Reason: fmt.Sprintf("the check %q of %q is of type %s, which the file catalogue does not run: the instance counts as critical", cmp.Or(d.ID, d.Path), r.Instance.ID, d.Type),
					Remedy: "write a tcp, http or grpc check, or register the service with a Consul agent",
				})
			}
		}
	}
	return out
}
