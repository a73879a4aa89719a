package discovery

import "strings"

// The checks by which Consul puts a node or a service into maintenance.
const (
	nodeMaintenance    = "_node_maintenance"
	serviceMaintenance = "_service_maintenance:"
)

// CombineHealth gives the health of an instance from all checks of its node
// and of itself: maintenance if either is in maintenance, otherwise the worst.
// No check at all is passing, as for Consul.
// https://developer.hashicorp.com/consul/api-docs/health#list-checks-for-service
func CombineHealth(checks []Check) Health {
	worst := Passing
	for _, c := range checks {
		h := c.Health
		if c.ID == nodeMaintenance || strings.HasPrefix(c.ID, serviceMaintenance) {
			h = Maintenance
		}
		worst = max(worst, h)
	}
	return worst
}

// ParseHealth reads Consul's word for a state; a word that Consul does not have
// is critical.
func ParseHealth(status string) Health {
	switch status {
	case "passing":
		return Passing
	case "warning":
		return Warning
	case "maintenance":
		return Maintenance
	}
	return Critical
}

// Weigh gives weights that are at least 1, and the health with which they mean
// what Consul means: an instance whose weight in its present health is zero
// gets no traffic, so it is critical. Absent weights (both zero) are 1 and 1.
func Weigh(w Weights, h Health) (Weights, Health) {
	if w == (Weights{}) {
		w = Weights{Passing: 1, Warning: 1}
	}
	if h == Passing && w.Passing < 1 || h == Warning && w.Warning < 1 {
		h = Critical
	}
	return Weights{Passing: max(1, w.Passing), Warning: max(1, w.Warning)}, h
}
