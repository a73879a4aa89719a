package generate

import (
	"encoding/json"
	"math"
	"strconv"
	"time"

	"github.com/parrel-mesh/parrel/controlplane/mesh"
)

// Values of proxy.config and upstream config are opaque to Consul and come in
// whatever type HCL or JSON gave them. They are read weakly, as Consul's own
// integration reads them.

// integer returns v as a whole number from 0 up; 0 where it is none, which
// Analyze names.
func integer(v any) int {
	n, _ := number(v)
	return n
}

// number is integer, and whether v is a whole number from 0 up.
func number(v any) (int, bool) {
	switch n := v.(type) {
	case int:
		return max(n, 0), n >= 0
	case int64:
		return number(float64(n))
	case float64:
		if n < 0 || n > math.MaxInt32 || n != math.Trunc(n) {
			return 0, false
		}
		return int(n), true
	case json.Number:
		return number(n.String())
	case string:
		i, err := strconv.Atoi(n)
		return max(i, 0), err == nil && i >= 0
	}
	return 0, false
}

// port is n where it is a port, else 0, which Analyze names.
func port(n int) uint16 {
	if n < 0 || n > math.MaxUint16 {
		return 0
	}
	return uint16(n)
}

func millis(v any) time.Duration { return time.Duration(integer(v)) * time.Millisecond }

// limit reads one number of the "limits" object, which HCL gives as a list of
// one object.
func limit(config map[string]any, key string) int { return integer(limits(config)[key]) }

func limits(config map[string]any) map[string]any {
	switch l := config["limits"].(type) {
	case map[string]any:
		return l
	case []map[string]any:
		if len(l) > 0 {
			return l[0]
		}
	case []any:
		if len(l) > 0 {
			o, _ := l[0].(map[string]any)
			return o
		}
	}
	return nil
}

// proxyConfig looks a key up in the registration's proxy.config, then in the
// proxy-defaults entry.
func proxyConfig(m *mesh.Snapshot, w *mesh.Workload, key string) any {
	if p := w.Instance.Proxy; p != nil {
		if v, ok := p.Config[key]; ok {
			return v
		}
	}
	return defaultsConfig(m, w, key)
}

func defaultsConfig(m *mesh.Snapshot, w *mesh.Workload, key string) any {
	if d, _ := m.ProxyDefaults(w.Service.Partition); d != nil {
		return d.Config[key]
	}
	return nil
}

// ownConfig is what the registration itself says.
func ownConfig(w *mesh.Workload, key string) any {
	if p := w.Instance.Proxy; p != nil {
		return p.Config[key]
	}
	return nil
}
