package telemetry

import "net/http"

// Info is what the world is told of one Code. Docs/codes.md is this table as
// text; a test keeps the two equal.
type Info struct {
	Code Code
	// ID is the stable name for machines: metric label, log field, the details
	// parameter of proxy-status. Never changed once released.
	ID string
	// Flag is Envoy's response flag (%RESPONSE_FLAGS%), "" where Envoy has none.
	Flag string
	// Token is the proxy error type of RFC 9209, section 2.3.
	Token string
	// Status is the HTTP status of a response that the mesh makes for it; 0
	// where no response can be sent any more.
	Status int
	// GRPC is the status code of a mesh-made answer to a gRPC request, after
	// https://grpc.github.io/grpc/core/md_doc_http-grpc-status-mapping.html.
	GRPC int
	// Sentence says the cause and the likely remedy, for people.
	Sentence string
}

// gRPC status codes that the table uses.
const (
	grpcOK                = 0
	grpcCancelled         = 1
	grpcDeadlineExceeded  = 4
	grpcPermissionDenied  = 7
	grpcResourceExhausted = 8
	grpcUnimplemented     = 12
	grpcInternal          = 13
	grpcUnavailable       = 14
	grpcUnauthenticated   = 16
)

// table is indexed by Code.
var table = [codeEnd]Info{
	OK: {OK, "ok", "-", "", http.StatusOK, grpcOK,
		"The mesh itself did nothing wrong: the status is the application's."},
	NoRoute: {NoRoute, "no_route", "NR", "destination_not_found", http.StatusNotFound, grpcUnimplemented,
		"No route matches the request's authority, path and headers: check the service-router and the host name that the client uses (`parrel explain` shows each comparison)."},
	NoCluster: {NoCluster, "no_cluster", "NC", "destination_not_found", http.StatusServiceUnavailable, grpcUnavailable,
		"The route names a service that this sidecar has no configuration for: check that the service exists in the catalogue and is an upstream of the caller."},
	NoHealthyUpstream: {NoHealthyUpstream, "no_healthy_upstream", "UH", "destination_unavailable", http.StatusServiceUnavailable, grpcUnavailable,
		"The service has no instance that may be used: all are unhealthy, in maintenance or gone; check the instances' health checks."},
	UpstreamConnectFailure: {UpstreamConnectFailure, "upstream_connect_failure", "UF", "connection_refused", http.StatusServiceUnavailable, grpcUnavailable,
		"No connection to an instance could be opened: its sidecar or application is not listening on the registered address, or a firewall refuses it."},
	UpstreamConnectTimeout: {UpstreamConnectTimeout, "upstream_connect_timeout", "UF", "connection_timeout", http.StatusServiceUnavailable, grpcUnavailable,
		"Opening a connection to an instance took longer than the connect time-out: the host is down or a firewall drops packets silently."},
	UpstreamTLSFailure: {UpstreamTLSFailure, "upstream_tls_failure", "UF", "tls_protocol_error", http.StatusServiceUnavailable, grpcUnavailable,
		"The TLS handshake with an instance failed, or the peer is not the service it is registered as: compare the SPIFFE id in the detail with the expected one, and both sides' trust bundles."},
	UpstreamReset: {UpstreamReset, "upstream_reset", "UR", "connection_terminated", http.StatusServiceUnavailable, grpcUnavailable,
		"The instance reset the request before it answered: the application crashed, restarted or refused the stream; see its log."},
	UpstreamConnectionTermination: {UpstreamConnectionTermination, "upstream_connection_termination", "UC", "connection_terminated", http.StatusServiceUnavailable, grpcUnavailable,
		"The connection to the instance ended while a request was in hand: the application closed it early; compare its keep-alive time-out with the mesh's idle time-out."},
	UpstreamProtocolError: {UpstreamProtocolError, "upstream_protocol_error", "UPE", "http_protocol_error", http.StatusBadGateway, grpcUnavailable,
		"The instance answered something that is not the protocol it is registered with: check the protocol in its service-defaults."},
	UpstreamRequestTimeout: {UpstreamRequestTimeout, "upstream_request_timeout", "UT", "http_response_timeout", http.StatusGatewayTimeout, grpcDeadlineExceeded,
		"The response did not complete within the route's time-out: raise RequestTimeout in the service-router or make the application faster."},
	UpstreamOverflow: {UpstreamOverflow, "upstream_overflow", "UO", "destination_unavailable", http.StatusServiceUnavailable, grpcUnavailable,
		"A circuit breaker is open: the limit of connections, pending requests or requests to the service is reached; raise Limits in service-defaults or add instances."},
	RetryLimit: {RetryLimit, "retry_limit_exceeded", "URX", "destination_unavailable", http.StatusServiceUnavailable, grpcUnavailable,
		"Every permitted attempt failed: the last attempt's failure is in the detail; look at the instances themselves."},
	DownstreamReset: {DownstreamReset, "downstream_reset", "DC", "", 0, grpcCancelled,
		"The client went away before the response was complete: usually its own time-out or cancellation, which no server can mend."},
	DownstreamProtocolError: {DownstreamProtocolError, "downstream_protocol_error", "DPE", "http_request_error", http.StatusBadRequest, grpcInternal,
		"The request is malformed or ambiguous and was not forwarded: the detail in the sidecar's log names the field; correct the client."},
	DownstreamTLSFailure: {DownstreamTLSFailure, "downstream_tls_failure", "-", "", 0, grpcUnauthenticated,
		"The client did not complete a TLS handshake with an identity that this mesh vouches for: it spoke plaintext, had no certificate or one of another trust domain."},
	RBACDenied: {RBACDenied, "rbac_denied", "RBAC", "http_request_denied", http.StatusForbidden, grpcPermissionDenied,
		"No intention allows this caller: write one from the caller's service to this one (a service-intentions entry by `consul config write`, or `consul intention create`); without a control plane, change the policies of the RBAC filter."},
	ReauthorisedDenied: {ReauthorisedDenied, "reauthorised_denied", "RBAC", "connection_terminated", http.StatusForbidden, grpcPermissionDenied,
		"The permission that this open connection lived by was withdrawn, so it was ended: restore the intention if that was not meant."},
	StreamIdleTimeout: {StreamIdleTimeout, "stream_idle_timeout", "SI", "connection_read_timeout", http.StatusGatewayTimeout, grpcDeadlineExceeded,
		"Neither side sent anything for the stream's idle time-out: raise IdleTimeout of the route, or let the application send keep-alives."},
	RequestTimeout: {RequestTimeout, "request_timeout", "DT", "http_request_error", http.StatusRequestTimeout, grpcDeadlineExceeded,
		"The client did not send its whole request within the request time-out: it is slow or stuck, or the limit is too low for uploads of this size."},
	DrainTimeout: {DrainTimeout, "drain_timeout", "DT", "connection_terminated", http.StatusServiceUnavailable, grpcUnavailable,
		"The sidecar was stopped and the connection did not end within the drain time: raise the drain time or make clients end long streams."},
	NoFilterChain: {NoFilterChain, "no_filter_chain", "NR", "", 0, grpcUnavailable,
		"The listener has no filter chain for this connection: plaintext to a port that demands mTLS, or a server name or address that is not configured."},
	NoIdentity: {NoIdentity, "no_identity", "UF", "proxy_configuration_error", http.StatusServiceUnavailable, grpcUnavailable,
		"The sidecar has no valid certificate of its own: it is missing or has expired; check `parrel status`, the clock and the connection to the control plane or identity source."},
	LocalPanic: {LocalPanic, "local_panic", "", "proxy_internal_error", http.StatusInternalServerError, grpcInternal,
		"A defect of the mesh ended this request and no other: the stack is in the sidecar's log; please report it."},
	Overload: {Overload, "overload", "OM", "proxy_internal_response", http.StatusServiceUnavailable, grpcResourceExhausted,
		"The sidecar sheds load to protect itself: give it more memory or CPU, or send less."},
	RequestHeaderTooLarge: {RequestHeaderTooLarge, "request_header_too_large", "DPE", "http_request_error", http.StatusRequestHeaderFieldsTooLarge, grpcResourceExhausted,
		"The request's head is larger or has more fields than the listener takes: make it smaller (cookies are the usual cause), or raise max_request_headers_kb."},
	RequestHeaderTimeout: {RequestHeaderTimeout, "request_header_timeout", "DT", "http_request_error", http.StatusRequestTimeout, grpcDeadlineExceeded,
		"The client did not send its request's head within the time for heads: it is stuck, or it holds connections open on purpose; request_headers_timeout is the limit."},
	DownstreamFlood: {DownstreamFlood, "downstream_flood", "DPE", "http_request_error", 0, grpcResourceExhausted,
		"The client used up its connection's budget for frames that do no work (resets, pings, settings, empty frames), so the connection was ended: mend the client, or look who sends this."},
	Misdirected: {Misdirected, "misdirected_request", "DPE", "http_request_error", http.StatusMisdirectedRequest, grpcUnimplemented,
		"The request names another host than the TLS connection that it came on was opened for: the client must open a connection of its own for that host."},
	DirectResponse: {DirectResponse, "direct_response", "-", "proxy_internal_response", http.StatusServiceUnavailable, grpcUnavailable,
		"The route itself says this answer (direct_response): nothing was asked upstream; change the route if that was not meant."},
	ConnectionLimit: {ConnectionLimit, "connection_limit", "", "connection_limit_reached", 0, grpcUnavailable,
		"The connection was closed at once because the listener, or the process, has as many as it may have: raise the limit (--max-connections), or find out who keeps so many open."},
	SourceLimit: {SourceLimit, "source_limit", "", "connection_limit_reached", 0, grpcUnavailable,
		"The connection was closed at once because its source address has as many as one address may have: raise --max-connections-per-source where that address stands for many clients."},
	DNSTimeout: {DNSTimeout, "dns_timeout", "DF", "dns_timeout", 0, grpcUnavailable,
		"No resolver answered a forwarded query in time, so the application got SERVFAIL: check that the resolvers of the host's resolv.conf answer, and that the sidecar's own queries are not captured."},
	DNSError: {DNSError, "dns_error", "DF", "dns_error", 0, grpcUnavailable,
		"No resolver could be asked, so the application got SERVFAIL: nothing listens at the addresses of the host's resolv.conf, or they are the sidecar's own."},
	NotRedirected: {NotRedirected, "not_redirected", "NR", "destination_not_found", http.StatusServiceUnavailable, grpcUnavailable,
		"The connection came to a capture port by itself, and not by redirection: where it means to go is unknown, and so is whose it is; connect to the service's own name or address, and look at the rules with parrel redirect show."},
	CaptureLoop: {CaptureLoop, "capture_loop", "NR", "proxy_loop_detected", http.StatusServiceUnavailable, grpcUnavailable,
		"The connection's destination is a capture port of the sidecar itself, where it would go round in circles: connect to the service's own name or address."},
	OutsideMesh: {OutsideMesh, "outside_mesh", "NR", "destination_ip_prohibited", 0, grpcUnavailable,
		"The destination is no service of the mesh that this caller may call, and the mesh allows no others (MeshDestinationsOnly in the mesh config entry): write an intention that allows the caller, or exclude the destination from redirection (--exclude-outbound-cidr, --exclude-outbound-port)."},
}

// Info returns what the table says of the code; unknown codes are LocalPanic's.
func (c Code) Info() *Info {
	if c >= codeEnd {
		c = LocalPanic
	}
	return &table[c]
}

// flagged is the first code that has the same response flag: several codes are
// one series where only the flag tells them.
func (c Code) flagged() Code {
	if c >= codeEnd {
		c = LocalPanic
	}
	return firstFlagged[c]
}

var firstFlagged = func() (first [codeEnd]Code) {
	flag := func(c Code) string {
		if f := table[c].Flag; f != "" {
			return f
		}
		return "-"
	}
	for c := range first {
		for flag(first[c]) != flag(Code(c)) {
			first[c]++
		}
	}
	return first
}()

// String is the code's stable id.
func (c Code) String() string { return c.Info().ID }

// Table returns every code in order. The slice is the caller's.
func Table() []Info { return append([]Info(nil), table[:]...) }
