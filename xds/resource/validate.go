package resource

// Validate says whether parrel can execute the listener.
func (l *Listener) Validate() error { return nil }

// Validate says whether parrel can execute the route configuration.
func (r *RouteConfig) Validate() error { return nil }

// Validate says whether parrel can execute the cluster.
func (c *Cluster) Validate() error { return nil }

// Validate says whether parrel can execute the endpoints.
func (e *Endpoints) Validate() error { return nil }

// Validate says whether parrel can execute the secret.
func (s *Secret) Validate() error { return nil }

var (
	_ Resource = (*Listener)(nil)
	_ Resource = (*RouteConfig)(nil)
	_ Resource = (*Cluster)(nil)
	_ Resource = (*Endpoints)(nil)
	_ Resource = (*Secret)(nil)
)
