package cluster

import (
	"context"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/pool"
	"github.com/parrel-mesh/parrel/sidecar/stream"
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

// policy is a resource.Retry ready to be asked.
type policy struct {
	on       map[string]bool // nil: the default
	codes    []uint32
	retries  uint32
	base     time.Duration
	ceiling  time.Duration
	perTry   time.Duration
	standard bool
}

func policyOf(o Options) policy {
	p := policy{retries: defaultRetries, base: backoffBase, perTry: o.PerTryTimeout, standard: true}
	if r := o.Retry; r != nil {
		p.standard = false
		p.on = make(map[string]bool, len(r.On))
		for _, w := range r.On {
			p.on[w] = true
		}
		p.codes, p.retries = r.StatusCodes, r.NumRetries
		if r.BackoffBase > 0 {
			p.base = r.BackoffBase
		}
		p.ceiling = r.BackoffMax
		if p.perTry == 0 {
			p.perTry = r.PerTryTimeout
		}
	}
	if p.ceiling <= 0 {
		p.ceiling = 10 * p.base
	}
	p.retries = min(p.retries, maxAttempts)
	return p
}

// idempotent methods, RFC 9110, 9.2.2.
var idempotent = []string{"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"}

// afterError says whether a failed attempt may be followed by another.
// unprocessed: the endpoint cannot have seen the request.
func (p *policy) afterError(method string, e *pool.Error) (again, unprocessed bool) {
	switch e.Kind {
	case pool.Gone:
		return true, true // our own change of configuration
	case pool.Overflow, pool.Cancelled, pool.NoIdentity, pool.Protocol:
		return false, false
	case pool.Connect, pool.ConnectTimeout, pool.TLS:
		return p.standard || p.any("connect-failure", "5xx", "gateway-error", "reset", "reset-before-request"), true
	case pool.Refused, pool.Leaving:
		return p.standard || p.any("refused-stream", "5xx", "gateway-error", "reset"), true
	}
	if !e.Sent {
		return p.standard || p.any("connect-failure", "reset", "reset-before-request", "5xx", "gateway-error"), true
	}
	if p.standard {
		return slices.Contains(idempotent, method), false
	}
	return p.any("reset", "5xx", "gateway-error"), false
}

func (p *policy) any(words ...string) bool {
	for _, w := range words {
		if p.on[w] {
			return true
		}
	}
	return false
}

// grpcWords are the statuses that retry_on names, by their number.
var grpcWords = map[string]string{
	"1": "cancelled", "4": "deadline-exceeded", "8": "resource-exhausted", "13": "internal", "14": "unavailable",
}

// afterResponse says whether a response should be tried for again.
func (p *policy) afterResponse(h *stream.ResponseHead) bool {
	if p.standard {
		return false
	}
	switch {
	case p.on["5xx"] && h.Status >= 500 && h.Status < 600:
		return true
	case p.on["gateway-error"] && h.Status >= 502 && h.Status <= 504:
		return true
	case p.on["retriable-4xx"] && h.Status == 409:
		return true
	case p.on["retriable-status-codes"] && slices.Contains(p.codes, uint32(h.Status)):
		return true
	}
	if s, ok := h.Header.Lookup("grpc-status"); ok { // a response of trailers only
		return p.on[grpcWords[s]]
	}
	return false
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
	d := min(p.base<<min(n-1, 10), p.ceiling)
	d = time.Duration(float64(d) * (float64(c.m.d.Rand()>>11) / (1 << 53)))
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
