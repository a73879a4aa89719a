package resource

// RoundRobin is smooth weighted round robin (envoy.load_balancing_policies.round_robin).
type RoundRobin struct{}

// LeastRequest picks the less loaded of ChoiceCount random endpoints
// (power of two choices, Mitzenmacher 2001).
type LeastRequest struct {
	ChoiceCount uint32 // 0 = 2
}

// Random picks at random by weight.
type Random struct{}
