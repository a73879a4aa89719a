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
		run, x := new(Run), &Exchange{}
		c.Start(run)
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

func through(c *Chain, run *Run, ctx context.Context, x *Exchange, req *stream.Request, resp *stream.Response) {
	c.Start(run)
	_, _ = run.Request(ctx, x, req)
	_ = run.Response(ctx, x, resp)
	run.Done(x)
}

// A chain without filters costs nothing.
func TestEmptyChainAllocatesNothing(t *testing.T) {
	c, run, x, req, resp := chain(t), &Run{}, &Exchange{}, &stream.Request{}, &stream.Response{}
	if n := testing.AllocsPerRun(100, func() { through(c, run, context.Background(), x, req, resp) }); n != 0 {
		t.Errorf("an empty chain allocates %v times", n)
	}
}

// The target is below 20 ns.
func BenchmarkEmptyChain(b *testing.B) {
	c := &Chain{}
	run, x, req, resp := &Run{}, &Exchange{}, &stream.Request{}, &stream.Response{}
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		through(c, run, ctx, x, req, resp)
	}
}

func TestSameAuthority(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		same bool
	}{
		{"a", "A", true}, {"a.b", "A.b.", true}, {"a.:80", "A:80", true}, {"[::1]:80", "[::1]:80", true},
		{"a", "a:80", false}, {"a", "b", false}, {"a..", "a", false},
	} {
		if got := SameAuthority(tt.a, tt.b); got != tt.same {
			t.Errorf("%q and %q: %v", tt.a, tt.b, got)
		}
	}
	if n := testing.AllocsPerRun(100, func() { SameAuthority("Example.com.:80", "example.com:80") }); n != 0 {
		t.Errorf("a comparison allocates %v times", n)
	}
}

// A view follows the head: what a filter writes there is what is decided on.
func TestViewFollowsTheHead(t *testing.T) {
	req := &stream.Request{Head: stream.RequestHead{Authority: "API.Example.:80", Path: "/a"}}
	x := &Exchange{}
	v := x.Head(req)
	if v.Authority() != "api.example:80" || v.Path() != "/a" {
		t.Fatal(v.Authority(), v.Path())
	}
	req.Head.Authority, req.Head.Path = "Other", "/b"
	if v := x.Head(req); v.Authority() != "other" || v.Path() != "/b" {
		t.Fatal(v.Authority(), v.Path())
	}
	if n := testing.AllocsPerRun(100, func() {
		x.Reset()
		x.Head(req).Authority()
	}); n != 0 {
		t.Errorf("a view allocates %v times", n)
	}
}
