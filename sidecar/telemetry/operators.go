package telemetry

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// value is what an operator gives: a number or a string; neither is "-".
type value struct {
	s   string
	n   int64
	num bool
	ok  bool
}

func str(s string) value { return value{s: s, ok: s != ""} }
func num(n int64) value  { return value{n: n, num: true, ok: true} }

// operators are Envoy's command operators that parrel's logs know
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage),
// and its own two. Those with arguments are in parseOperator.
var operators = map[string]func(*Record) value{
	"PROTOCOL": func(r *Record) value { return str(r.HTTP) },
	"RESPONSE_CODE": func(r *Record) value {
		return num(int64(r.Status))
	},
	"RESPONSE_CODE_DETAILS":             func(r *Record) value { return details(r) },
	"CONNECTION_TERMINATION_DETAILS":    func(r *Record) value { return str(r.Detail) },
	"RESPONSE_FLAGS":                    func(r *Record) value { return str(flags(r)) },
	"BYTES_RECEIVED":                    func(r *Record) value { return num(r.BytesIn) },
	"BYTES_SENT":                        func(r *Record) value { return num(r.BytesOut) },
	"DURATION":                          func(r *Record) value { return num(r.Duration.Milliseconds()) },
	"REQUEST_DURATION":                  func(r *Record) value { return after(r.RequestEnd) },
	"RESPONSE_DURATION":                 func(r *Record) value { return after(r.FirstByte) },
	"UPSTREAM_HOST":                     func(r *Record) value { return str(r.UpstreamHost) },
	"UPSTREAM_CLUSTER":                  func(r *Record) value { return str(r.Cluster) },
	"UPSTREAM_REQUEST_ATTEMPT_COUNT":    func(r *Record) value { return num(int64(r.Attempts)) },
	"UPSTREAM_TRANSPORT_FAILURE_REASON": func(r *Record) value { return failure(r) },
	"UPSTREAM_PEER_URI_SAN":             func(r *Record) value { return san(r, !r.Inbound, r.DestinationPrincipal) },
	"DOWNSTREAM_PEER_URI_SAN":           func(r *Record) value { return san(r, r.Inbound, r.SourcePrincipal) },
	"DOWNSTREAM_REMOTE_ADDRESS":         func(r *Record) value { return addr(r.DownstreamRemote) },
	"DOWNSTREAM_DIRECT_REMOTE_ADDRESS":  func(r *Record) value { return addr(r.DownstreamRemote) },
	"DOWNSTREAM_LOCAL_ADDRESS":          func(r *Record) value { return addr(r.DownstreamLocal) },
	"DOWNSTREAM_LOCAL_PORT":             func(r *Record) value { return port(r.DownstreamLocal) },
	"DOWNSTREAM_REMOTE_PORT":            func(r *Record) value { return port(r.DownstreamRemote) },

	"DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": func(r *Record) value { return host(r.DownstreamRemote) },
	"DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":  func(r *Record) value { return host(r.DownstreamLocal) },

	"ROUTE_NAME":         func(r *Record) value { return str(r.Route) },
	"FILTER_CHAIN_NAME":  func(r *Record) value { return str(r.Chain) },
	"GRPC_STATUS_NUMBER": func(r *Record) value { return value{n: int64(r.GRPCStatus), num: true, ok: r.GRPCStatus >= 0} },
	"GRPC_STATUS":        func(r *Record) value { return grpcName(r.GRPCStatus) },
	"PARREL_CODE":        func(r *Record) value { return str(r.Code.String()) },
	"PARREL_VERSION":     func(r *Record) value { return str(r.Version) },
}

func flags(r *Record) string { return r.Code.Info().Flag }

func details(r *Record) value {
	switch {
	case r.Code != OK:
		return str(r.Code.String())
	case r.Status != 0:
		return str("via_upstream")
	}
	return value{}
}

func failure(r *Record) value {
	if r.Code == UpstreamTLSFailure || r.Code == UpstreamConnectFailure || r.Code == UpstreamConnectTimeout {
		return str(r.Detail)
	}
	return value{}
}

func after(d time.Duration) value { return value{n: d.Milliseconds(), num: true, ok: d > 0} }

func san(r *Record, side bool, principal string) value {
	if side && r.TLS {
		return str(principal)
	}
	return value{}
}

func addr(a netip.AddrPort) value {
	if !a.IsValid() {
		return value{}
	}
	return str(a.String())
}

func host(a netip.AddrPort) value {
	if !a.IsValid() {
		return value{}
	}
	return str(a.Addr().String())
}

func port(a netip.AddrPort) value { return value{n: int64(a.Port()), num: true, ok: a.IsValid()} }

func grpcName(n int) value {
	names := [...]string{"OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists",
		"PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal",
		"Unavailable", "DataLoss", "Unauthenticated"}
	switch {
	case n < 0:
		return value{}
	case n < len(names):
		return str(names[n])
	}
	return str("InvalidCode")
}

// format is a compiled text with operators.
type format []piece

type piece struct {
	literal string
	op      func(*Record) value // nil: literal
	max     int                 // length of the operator's value; 0: any
}

// parseFormat compiles a text with %OPERATORS%; `%%` is a percent sign.
func parseFormat(s string) (format, error) {
	var f format
	text := ""
	for s != "" {
		i := strings.IndexByte(s, '%')
		if i < 0 {
			text += s
			break
		}
		text += s[:i]
		s = s[i+1:]
		if strings.HasPrefix(s, "%") {
			text += "%"
			s = s[1:]
			continue
		}
		j := closing(s)
		if j < 0 {
			return nil, fmt.Errorf("the operator %%%s has no closing %%", s)
		}
		p, err := parseOperator(s[:j])
		if err != nil {
			return nil, err
		}
		if text != "" {
			f = append(f, piece{literal: text})
			text = ""
		}
		f = append(f, p)
		s = s[j+1:]
	}
	if text != "" {
		f = append(f, piece{literal: text})
	}
	return f, nil
}

// closing finds the operator's end; an argument in parentheses may hold `%`.
func closing(s string) int {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '(':
			depth++
		case ')':
			depth--
		case '%':
			if depth <= 0 {
				return i
			}
		}
	}
	return -1
}

// parseOperator compiles NAME, NAME(argument) or NAME(argument):length.
func parseOperator(s string) (piece, error) {
	name, rest, hasArg := strings.Cut(s, "(")
	var arg, tail string
	if hasArg {
		i := strings.LastIndexByte(rest, ')')
		if i < 0 {
			return piece{}, fmt.Errorf("%%%s%%: the parenthesis is not closed", s)
		}
		arg, tail = rest[:i], rest[i+1:]
	} else if i := strings.IndexByte(name, ':'); i >= 0 {
		name, tail = name[:i], name[i:]
	}
	var p piece
	if tail != "" {
		n, err := strconv.Atoi(strings.TrimPrefix(tail, ":"))
		if err != nil || n <= 0 || tail[0] != ':' {
			return piece{}, fmt.Errorf("%%%s%%: %q is not a length: write a colon and a positive number", s, tail)
		}
		p.max = n
	}
	switch name {
	case "REQ", "RESP", "TRAILER":
		op, err := headerOperator(name, arg)
		if err != nil {
			return piece{}, err
		}
		p.op = op
		return p, nil
	case "START_TIME":
		op, err := startTime(arg)
		if err != nil {
			return piece{}, err
		}
		p.op = op
		return p, nil
	}
	op, ok := operators[name]
	if !ok {
		return piece{}, fmt.Errorf("unknown operator %%%s%%: known are REQ(), RESP(), TRAILER(), START_TIME, %s",
			s, strings.Join(slices.Sorted(maps.Keys(operators)), ", "))
	}
	if hasArg {
		return piece{}, fmt.Errorf("%%%s%%: %s takes no argument", s, name)
	}
	p.op = op
	return p, nil
}

// headerOperator is REQ(X?Y) and its kin: X, or Y where there is no X.
func headerOperator(kind, arg string) (func(*Record) value, error) {
	first, second, _ := strings.Cut(strings.ToLower(arg), "?")
	if first == "" {
		return nil, fmt.Errorf("%%%s(%s)%% names no header", kind, arg)
	}
	get := func(r *Record, name string) (string, bool) {
		var h stream.Header
		switch kind {
		case "REQ":
			switch name {
			case ":method":
				return r.Method, r.Method != ""
			case ":path":
				return r.Path, r.Path != ""
			case "x-envoy-original-path": // before the route rewrote it
				return r.Path, r.Path != ""
			case "x-parrel-received-path":
				return r.Received, r.Received != ""
			case ":authority":
				return r.Authority, r.Authority != ""
			}
			h = r.Request
		case "RESP":
			if name == ":status" {
				return strconv.Itoa(r.Status), r.Status != 0
			}
			h = r.Response
		default:
			h = r.Trailer
		}
		return h.Values(name)
	}
	return func(r *Record) value {
		v, ok := get(r, first)
		if !ok && second != "" {
			v, ok = get(r, second)
		}
		return value{s: v, ok: ok}
	}, nil
}

// startTime is START_TIME, also with the most usual of strftime's words.
func startTime(arg string) (func(*Record) value, error) {
	layout := "2006-01-02T15:04:05.000Z07:00"
	if arg != "" {
		layout = ""
		for s := arg; s != ""; {
			if s[0] != '%' {
				layout += s[:1]
				s = s[1:]
				continue
			}
			word := strings.TrimLeft(s[1:], "0123456789")
			digits := len(s) - 1 - len(word)
			known := map[byte]string{'Y': "2006", 'm': "01", 'd': "02", 'H': "15", 'M': "04", 'S': "05", 'F': "2006-01-02",
				'T': "15:04:05", 'z': "-0700", 'Z': "MST", 'b': "Jan", 'a': "Mon", 'y': "06", 'e': "_2", 'f': "000000000"}
			if word == "" || known[word[0]] == "" {
				return nil, fmt.Errorf("%%START_TIME(%s)%%: %.2q is not a known part of a time", arg, s)
			}
			part := known[word[0]]
			if word[0] == 'f' && digits > 0 {
				part = part[:min(int(s[1]-'0'), 9)]
			}
			layout += part
			s = word[1:]
		}
	}
	return func(r *Record) value { return str(r.Start.UTC().Format(layout)) }, nil
}

// appendTo writes a record in the format; "-" stands for what is not known.
func (f format) appendTo(b []byte, r *Record) []byte {
	for i := range f {
		p := &f[i]
		if p.op == nil {
			b = append(b, p.literal...)
			continue
		}
		v := p.op(r)
		switch {
		case !v.ok:
			b = append(b, '-')
		case v.num:
			b = strconv.AppendInt(b, v.n, 10)
		default:
			b = appendText(b, p.cut(v.s))
		}
	}
	return b
}

func (p *piece) cut(s string) string {
	if p.max > 0 && len(s) > p.max {
		return s[:p.max]
	}
	return s
}
