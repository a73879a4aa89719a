package filter

import (
	"context"
	"errors"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tracer writes down when it is called.
type tracer struct {
	name   string
	log    *[]string
	answer *stream.Response
	err    error
}

func (f *tracer) Request(context.Context, *Exchange, *stream.Request) (*stream.Response, any, error) {
	*f.log = append(*f.log, "request "+f.name)
	return f.answer, f.name, f.err
}

func (f *tracer) Response(_ context.Context, _ *Exchange, state any, _ *stream.Response) error {
	*f.log = append(*f.log, "response "+state.(string))
	return nil
}

func (f *tracer) Done(_ *Exchange, state any) { *f.log = append(*f.log, "done "+state.(string)) }

func chain(t *testing.T, fs ...Filter) *Chain {
	t.Helper()
	var registry []Entry
	var configs []resource.HTTPFilter
	for i, f := range fs {
		name := string(rune('a' + i))
		registry = append(registry, Entry{Kind: name, Configured: func(c *resource.HTTPFilter) bool { return c.Name == name },
			New: func(*resource.HTTPFilter, Deps) (Filter, error) { return f, nil }})
		configs = append(configs, resource.HTTPFilter{Name: name})
	}
	c, err := Build(registry, append(configs, resource.HTTPFilter{Name: "router", Router: &resource.Router{}}), Deps{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The way out is the way in reversed, and only those that saw the request go it.
func TestOrder(t *testing.T) {
	for name, tt := range map[string]struct {
		answer *stream.Response
		err    error
		want   string
	}{
		"through": {want: "request a,request b,request c,response c,response b,response a,done c,done b,done a"},
		"answer":  {answer: &stream.Response{}, want: "request a,request b,response b,response a,done b,done a"},
		"abort":   {err: errors.New("no"), want: "request a,request b,response b,response a,done b,done a"},
	} {
		var log []string
		c := chain(t, &tracer{name: "a", log: &log}, &tracer{name: "b", log: &log, answer: tt.answer, err: tt.err}, nil, &tracer{name: "c", log: &log})
		if c.Len() != 3 {
			t.Fatalf("a filter that takes no part is in the chain of %d", c.Len())
		}
		run, x := c.Start(), &Exchange{}
		resp, err := run.Request(t.Context(), x, &stream.Request{})
		if resp != tt.answer || err != tt.err {
			t.Errorf("%s: %v %v", name, resp, err)
		}
		if err := run.Response(t.Context(), x, &stream.Response{}); err != nil {
			t.Error(err)
		}
		run.Done(x)
		run.Done(x) // once only
		if got := strings.Join(log, ","); got != tt.want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestClearRoute(t *testing.T) {
	x := &Exchange{Route: &decide.RouteVerdict{}}
	if x.ClearRoute(); x.Route != nil {
		t.Error("the route stays")
	}
}

func TestNormaliseAuthority(t *testing.T) {
	for in, want := range map[string]string{"API.": "api", "Api.:80": "api:80", "[::1]:80": "[::1]:80", "a": "a", "": "", ".": "."} {
		if got := NormaliseAuthority(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func through(c *Chain, ctx context.Context, x *Exchange, req *stream.Request, resp *stream.Response) {
	run := c.Start()
	_, _ = run.Request(ctx, x, req)
	_ = run.Response(ctx, x, resp)
	run.Done(x)
}

// A chain without filters costs nothing.
func TestEmptyChainAllocatesNothing(t *testing.T) {
	c, x, req, resp := chain(t), &Exchange{}, &stream.Request{}, &stream.Response{}
	if n := testing.AllocsPerRun(100, func() { through(c, context.Background(), x, req, resp) }); n != 0 {
		t.Errorf("an empty chain allocates %v times", n)
	}
}

// The target is below 20 ns.
func BenchmarkEmptyChain(b *testing.B) {
	c := &Chain{}
	x, req, resp := &Exchange{}, &stream.Request{}, &stream.Response{}
	b.ReportAllocs()
	for b.Loop() {
		through(c, context.Background(), x, req, resp)
	}
}
