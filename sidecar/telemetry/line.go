package telemetry

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// AccessLog writes records as lines of one log. Safe for concurrent use.
type AccessLog struct {
	sink      *sink
	minStatus int
	filter    *resource.LogFilter
	line      func(b []byte, r *Record) []byte
}

var _ Recorder = (*AccessLog)(nil)

// Request implements Recorder.
func (a *AccessLog) Request(r *Record) {
	if r.Status >= a.minStatus && logged(a.filter, r) {
		a.sink.write(a.line, r)
	}
}

// ConnOpened implements Recorder: a connection has one line, at its end.
func (a *AccessLog) ConnOpened(*Record) {}

// ConnClosed implements Recorder.
func (a *AccessLog) ConnClosed(r *Record) {
	if logged(a.filter, r) {
		a.sink.write(a.line, r)
	}
}

// compileLine makes what writes one record, with its line end.
func compileLine(c *resource.AccessLog) (func([]byte, *Record) []byte, error) {
	switch {
	case c.Text != "" && len(c.JSON) > 0:
		return nil, fmt.Errorf("telemetry: access log %q has both a text and a JSON format: keep one", c.Path)
	case c.Text != "":
		f, err := parseFormat(c.Text)
		if err != nil {
			return nil, fmt.Errorf("telemetry: access log %q: %w", c.Path, err)
		}
		return func(b []byte, r *Record) []byte {
			b = f.appendTo(b, r)
			if len(b) == 0 || b[len(b)-1] != '\n' {
				b = append(b, '\n')
			}
			return b
		}, nil
	case len(c.JSON) > 0:
		return jsonFormat(c)
	}
	return defaultLine, nil
}

// jsonFormat compiles a map of keys to formats. Keys are sorted; a format that
// is one operator keeps the operator's type, and null stands for what is not
// known.
func jsonFormat(c *resource.AccessLog) (func([]byte, *Record) []byte, error) {
	keys := slices.Sorted(maps.Keys(c.JSON))
	fs := make([]format, len(keys))
	for i, k := range keys {
		f, err := parseFormat(c.JSON[k])
		if err != nil {
			return nil, fmt.Errorf("telemetry: access log %q, key %q: %w", c.Path, k, err)
		}
		fs[i] = f
	}
	return func(b []byte, r *Record) []byte {
		b = append(b, '{')
		for i, k := range keys {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendJSON(b, k), ':')
			if f := fs[i]; len(f) == 1 && f[0].op != nil {
				switch v := f[0].op(r); {
				case !v.ok:
					b = append(b, "null"...)
				case v.num:
					b = strconv.AppendInt(b, v.n, 10)
				default:
					b = appendJSON(b, f[0].cut(v.s))
				}
				continue
			}
			b = appendJSON(b, fs[i].plain(r))
		}
		return append(b, "}\n"...)
	}, nil
}

// plain is the record in the format without escapes, for a JSON string.
func (f format) plain(r *Record) string {
	var b []byte
	for i := range f {
		p := &f[i]
		if p.op == nil {
			b = append(b, p.literal...)
			continue
		}
		switch v := p.op(r); {
		case !v.ok:
			b = append(b, '-')
		case v.num:
			b = strconv.AppendInt(b, v.n, 10)
		default:
			b = append(b, p.cut(v.s)...)
		}
	}
	return string(b)
}

// defaultLine is one JSON object with everything that a record knows. Keys of
// what is not known are left out, but for those that every reader looks for:
// time, duration, direction, flags, code and version are always there.
func defaultLine(b []byte, r *Record) []byte {
	field := func(k, v string) {
		if v != "" {
			b = append(append(append(b, ',', '"'), k...), '"', ':')
			b = appendJSON(b, v)
		}
	}
	number := func(k string, v int64) {
		b = append(append(append(b, ',', '"'), k...), '"', ':')
		b = strconv.AppendInt(b, v, 10)
	}
	b = append(b, `{"time":"`...)
	b = r.Start.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z")
	b = append(b, '"')
	direction := "outbound"
	if r.Inbound {
		direction = "inbound"
	}
	field("direction", direction)
	field("protocol", r.Protocol)
	field("http", r.HTTP)
	field(KeyMethod, r.Method)
	field(KeyAuthority, r.Authority)
	field(KeyPath, r.Path)
	if r.Received != r.Path {
		field("path_received", r.Received)
	}
	if r.Protocol != "tcp" {
		number(KeyStatus, int64(r.Status))
	}
	if r.GRPCStatus >= 0 && r.Protocol == "grpc" {
		number("grpc_status", int64(r.GRPCStatus))
	}
	fl := flags(r)
	if fl == "" {
		fl = "-"
	}
	field("flags", fl)
	field(KeyCode, r.Code.String())
	field(KeyDetail, r.Detail)
	b = append(b, `,"duration_ms":`...)
	b = strconv.AppendFloat(b, float64(r.Duration/time.Microsecond)/1000, 'f', -1, 64)
	number("bytes_in", r.BytesIn)
	number("bytes_out", r.BytesOut)
	field(KeySource, r.SourceService)
	field("source_principal", r.SourcePrincipal)
	field(KeyDestination, r.DestinationService)
	field("destination_principal", r.DestinationPrincipal)
	b = append(b, `,"mtls":`...)
	b = strconv.AppendBool(b, r.TLS)
	field(KeyRoute, r.Route)
	field(KeyCluster, r.Cluster)
	field("upstream", r.UpstreamHost)
	field("instance", r.UpstreamInstance)
	if r.Attempts > 1 {
		number("attempts", int64(r.Attempts))
	}
	if r.DownstreamRemote.IsValid() {
		field("downstream", r.DownstreamRemote.String())
	}
	field(KeyListener, r.Listener)
	field(KeyChain, r.Chain)
	field(KeyRequestID, r.RequestID)
	field("user_agent", r.UserAgent)
	if r.ShadowPolicy != "" || r.ShadowDenied {
		verdict := "allow"
		if r.ShadowDenied {
			verdict = "deny"
		}
		field("shadow", verdict)
		field("shadow_policy", r.ShadowPolicy)
	}
	b = append(b, `,"version":`...)
	b = appendJSON(b, r.Version)
	return append(b, "}\n"...)
}
