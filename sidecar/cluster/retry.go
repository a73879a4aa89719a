package cluster

import (
	"context"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/pool"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Retries.
//
// Why: one dead or restarting instance must not show at the client.
//
// Conditions: without a policy, a request is tried again where the endpoint
// cannot have processed it (no connection, stream refused, nothing sent), or
// where nothing of a response came back and the method is idempotent (RFC 9110,
// 9.2.2). With a policy, on its words (Envoy's retry_on). Always: the body can
// be sent again (none, untouched, or at most maxReplay bytes read so far),
// another endpoint is preferred, and the budget has room: at most 20 % of the
// cluster's requests in hand are retries, 3 are always allowed. What no endpoint
// can have processed is no additional work for the service and needs no room,
// unless max_retries is configured. All requests in hand at an instance that
// dies fail at once: those without room wait for it, at most budgetWait.
//
// A request that crossed with an endpoint's GOAWAY was not taken and costs it
// nothing: it is sent once more outside of the budget, as gRPC does
// (https://github.com/grpc/proposal/blob/master/A6-client-retries.md#transparent-retries).
//
// First start: the budget is 3.
//
// Recovery: the back-off doubles from 25 ms (the first change of endpoint does
// not wait where nothing was sent), fully jittered; a Retry-After of at most
// maxRetryAfter is obeyed.
const (
	defaultRetries = 2
	budgetPercent  = 20
	budgetMin      = 3
	backoffBase    = 25 * time.Millisecond
	maxRetryAfter  = time.Second
	maxAttempts    = 16
	budgetWait     = time.Second
)

// policy is what is in force for one request. The words of a configured
// resource.Retry are few and are looked at where they are.
type policy struct {
	r       *resource.Retry // nil: the default
	retries uint32
	perTry  time.Duration
}

func policyOf(o *Options) policy {
	p := policy{r: o.Retry, retries: defaultRetries, perTry: o.PerTryTimeout}
	if r := o.Retry; r != nil {
		p.retries = min(r.NumRetries, maxAttempts)
		if p.perTry == 0 {
			p.perTry = r.PerTryTimeout
		}
	}
	return p
}

func (p *policy) standard() bool { return p.r == nil }

// backoff is the longest pause before retry n (from 1).
func (p *policy) backoff(n int) time.Duration {
	base, ceiling := time.Duration(backoffBase), time.Duration(0)
	if p.r != nil {
		if p.r.BackoffBase > 0 {
			base = p.r.BackoffBase
		}
		ceiling = p.r.BackoffMax
	}
	if ceiling <= 0 {
		ceiling = 10 * base
	}
	return min(base<<min(n-1, 10), ceiling)
}

// afterError says whether a failed attempt may be followed by another.
// unprocessed: the endpoint cannot have seen the request.
func (p *policy) afterError(method string, e *pool.Error) (again, unprocessed bool) {
	switch e.Kind {
	case pool.Gone:
		return true, true // our own change of configuration
	case pool.Overflow, pool.Cancelled, pool.NoIdentity, pool.Protocol:
		return false, false
	case pool.Connect, pool.ConnectTimeout, pool.TLS:
		return p.standard() || p.any("connect-failure", "5xx", "gateway-error", "reset", "reset-before-request"), true
	case pool.Refused, pool.Leaving:
		return p.standard() || p.any("refused-stream", "5xx", "gateway-error", "reset"), true
	}
	if !e.Sent {
		return p.standard() || p.any("connect-failure", "reset", "reset-before-request", "5xx", "gateway-error"), true
	}
	if p.standard() {
		return stream.Idempotent(method), false
	}
	return p.any("reset", "5xx", "gateway-error"), false
}

func (p *policy) any(words ...string) bool {
	if p.r == nil {
		return false
	}
	for _, w := range words {
		if slices.Contains(p.r.On, w) {
			return true
		}
	}
	return false
}

// afterResponse says whether a response should be tried for again.
func (p *policy) afterResponse(h *stream.ResponseHead) bool {
	if p.r == nil {
		return false
	}
	var grpc string // of a response of trailers only
	looked := false
	for _, w := range p.r.On {
		switch w {
		case "5xx":
			if h.Status >= 500 && h.Status < 600 {
				return true
			}
		case "gateway-error":
			if h.Status >= 502 && h.Status <= 504 {
				return true
			}
		case "retriable-4xx":
			if h.Status == 409 {
				return true
			}
		case "retriable-status-codes":
			if slices.Contains(p.r.StatusCodes, uint32(h.Status)) {
				return true
			}
		case "cancelled", "deadline-exceeded", "resource-exhausted", "internal", "unavailable":
			if !looked {
				grpc, looked = h.Header.Get("grpc-status"), true
			}
			if grpc != "" && grpcWord(grpc) == w {
				return true
			}
		}
	}
	return false
}

// grpcWord is the word of retry_on for a gRPC status number.
func grpcWord(status string) string {
	switch status {
	case "1":
		return "cancelled"
	case "4":
		return "deadline-exceeded"
	case "8":
		return "resource-exhausted"
	case "13":
		return "internal"
	case "14":
		return "unavailable"
	}
	return ""
}

// afterTimeout says whether an attempt that ran out of its own time is
// repeated.
func (p *policy) afterTimeout() bool {
	return p.any("5xx", "gateway-error", "reset", "deadline-exceeded")
}

// retryAfter reads Retry-After in seconds (RFC 9110, 10.2.3); 0 where there is
// none that we would wait for.
func retryAfter(h *stream.ResponseHead) time.Duration {
	n, err := strconv.ParseUint(h.Header.Get("retry-after"), 10, 32)
	if err != nil {
		return 0
	}
	if d := time.Duration(n) * time.Second; d <= maxRetryAfter {
		return d
	}
	return 0
}

// roomForRetry takes a place in the retry budget, waiting for one where the
// budget is our own; a configured max_retries is a limit that users expect to
// act at once, as in Envoy.
func (c *Cluster) roomForRetry(ctx context.Context) bool {
	var waited time.Duration
	for n := 1; !c.breakers.takeRetry(); n++ {
		if c.breakers.retries.limit.Load() >= 0 || waited >= budgetWait {
			return false
		}
		d := min(backoffBase<<min(n-1, 3)/8, budgetWait-waited) // 3 ms, 6 ms, … 25 ms
		waited += d
		t := time.NewTimer(d)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return false
		}
	}
	return true
}

// pause waits before retry n (from 1). It returns false where ctx ended.
func (c *Cluster) pause(ctx context.Context, p *policy, n int, atLeast time.Duration) bool {
	d := time.Duration(float64(p.backoff(n)) * (float64(c.m.d.Rand()>>11) / (1 << 53)))
	t := time.NewTimer(max(d, atLeast))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// takeRetry counts a retry in, if breaker and budget have room. The budget is
// exact: of two racing retries for the last place one gets it.
func (b *breakers) takeRetry() bool {
	budget := max(budgetMin, int64(math.Ceil(float64(b.requests.n.Load())*budgetPercent/100)))
	if l := b.retries.limit.Load(); l >= 0 {
		budget = l // a configured max_retries replaces the budget, as in Envoy
	}
	for {
		n := b.retries.n.Load()
		if n >= budget {
			return false
		}
		if b.retries.n.CompareAndSwap(n, n+1) {
			return true
		}
	}
}
