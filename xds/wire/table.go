package wire

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// table names, for every message that parrel reads, the fields that it honours.
// A populated field of such a message that does not stand here is reported by
// the walk; messages that do not stand here are leaves (wrappers, durations,
// structs) or unknown extensions, which the decoder of their field judges.
// testdata/honoured.txt shows it beside the fields that are not honoured.
var table = parseTable(honoured)

// honoured has a line for each message: its name, then its fields. Fields that
// only label something (name of an extension, whose type says what it is;
// runtime_key, stat_prefix) count as honoured: nothing is lost by them.
const honoured = `
envoy.config.listener.v3.Listener name address filter_chains use_original_dst default_filter_chain metadata listener_filters traffic_direction api_listener additional_addresses udp_listener_config
envoy.config.listener.v3.ListenerFilter name typed_config
envoy.extensions.filters.listener.original_dst.v3.OriginalDst
envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector
envoy.extensions.filters.listener.http_inspector.v3.HttpInspector
envoy.config.listener.v3.AdditionalAddress address
envoy.config.listener.v3.UdpListenerConfig
envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig stat_prefix server_config client_config case_insensitive
envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig.ServerContextConfig inline_dns_table
envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig.ClientContextConfig resolver_timeout typed_dns_resolver_config dns_resolution_config max_pending_lookups
envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig resolvers
envoy.config.core.v3.DnsResolutionConfig resolvers
envoy.data.dns.v3.DnsTable virtual_domains known_suffixes
envoy.data.dns.v3.DnsTable.DnsVirtualDomain name endpoint answer_ttl
envoy.data.dns.v3.DnsTable.DnsEndpoint address_list
envoy.data.dns.v3.DnsTable.AddressList address
envoy.config.listener.v3.ApiListener api_listener
envoy.config.listener.v3.FilterChain filter_chain_match filters transport_socket transport_socket_connect_timeout name
envoy.config.listener.v3.FilterChainMatch destination_port prefix_ranges server_names transport_protocol application_protocols source_prefix_ranges
envoy.config.listener.v3.Filter name typed_config

envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy stat_prefix cluster weighted_clusters idle_timeout max_connect_attempts access_log
envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster clusters
envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight name weight

envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager codec_type stat_prefix rds route_config http_filters common_http_protocol_options http2_protocol_options server_name max_request_headers_kb stream_idle_timeout request_timeout request_headers_timeout access_log use_remote_address forward_client_cert_details set_current_client_cert_details upgrade_configs normalize_path merge_slashes path_with_escaped_slashes_action
envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.SetCurrentClientCertDetails uri
envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig upgrade_type enabled
envoy.extensions.filters.network.http_connection_manager.v3.Rds config_source route_config_name
envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter name typed_config is_optional
envoy.extensions.filters.http.router.v3.Router
envoy.config.accesslog.v3.AccessLog name filter typed_config
envoy.config.accesslog.v3.AccessLogFilter status_code_filter duration_filter and_filter or_filter response_flag_filter
envoy.config.accesslog.v3.DurationFilter comparison
envoy.config.accesslog.v3.AndFilter filters
envoy.config.accesslog.v3.OrFilter filters
envoy.config.accesslog.v3.ResponseFlagFilter flags
envoy.config.accesslog.v3.StatusCodeFilter comparison
envoy.config.accesslog.v3.ComparisonFilter op value
envoy.config.core.v3.RuntimeUInt32 default_value runtime_key
envoy.extensions.access_loggers.file.v3.FileAccessLog path format log_format
envoy.extensions.access_loggers.stream.v3.StdoutAccessLog log_format
envoy.extensions.access_loggers.stream.v3.StderrAccessLog log_format
envoy.config.core.v3.SubstitutionFormatString text_format json_format text_format_source

envoy.config.route.v3.RouteConfiguration name virtual_hosts ignore_port_in_host_matching metadata
envoy.config.route.v3.VirtualHost name domains routes request_headers_to_add request_headers_to_remove response_headers_to_add response_headers_to_remove
envoy.config.route.v3.Route name match route redirect direct_response non_forwarding_action metadata request_headers_to_add request_headers_to_remove response_headers_to_add response_headers_to_remove
envoy.config.route.v3.RouteMatch prefix path safe_regex path_separated_prefix case_sensitive runtime_fraction headers query_parameters grpc
envoy.config.route.v3.RouteMatch.GrpcRouteMatchOptions
envoy.config.route.v3.HeaderMatcher name exact_match safe_regex_match range_match present_match prefix_match suffix_match contains_match string_match invert_match treat_missing_header_as_empty
envoy.config.route.v3.QueryParameterMatcher name string_match present_match
envoy.config.route.v3.RouteAction cluster weighted_clusters prefix_rewrite regex_rewrite host_rewrite_literal auto_host_rewrite timeout idle_timeout retry_policy hash_policy
envoy.config.route.v3.WeightedCluster clusters
envoy.config.route.v3.WeightedCluster.ClusterWeight name weight request_headers_to_add request_headers_to_remove response_headers_to_add response_headers_to_remove
envoy.config.route.v3.RetryPolicy retry_on num_retries per_try_timeout retriable_status_codes retry_back_off
envoy.config.route.v3.RetryPolicy.RetryBackOff base_interval max_interval
envoy.config.route.v3.RouteAction.HashPolicy header cookie connection_properties query_parameter terminal
envoy.config.route.v3.RouteAction.HashPolicy.Header header_name
envoy.config.route.v3.RouteAction.HashPolicy.Cookie name ttl path
envoy.config.route.v3.RouteAction.HashPolicy.ConnectionProperties source_ip
envoy.config.route.v3.RouteAction.HashPolicy.QueryParameter name
envoy.config.route.v3.RedirectAction https_redirect scheme_redirect host_redirect port_redirect path_redirect prefix_rewrite response_code strip_query
envoy.config.route.v3.DirectResponseAction status body
envoy.config.route.v3.NonForwardingAction

envoy.config.cluster.v3.Cluster name type eds_cluster_config connect_timeout lb_policy load_balancing_policy least_request_lb_config load_assignment typed_extension_protocol_options common_http_protocol_options http2_protocol_options transport_socket circuit_breakers common_lb_config upstream_connection_options metadata
envoy.config.cluster.v3.Cluster.EdsClusterConfig eds_config service_name
envoy.config.cluster.v3.Cluster.LeastRequestLbConfig choice_count
envoy.config.cluster.v3.Cluster.CommonLbConfig healthy_panic_threshold
envoy.config.cluster.v3.LoadBalancingPolicy policies
envoy.config.cluster.v3.LoadBalancingPolicy.Policy typed_extension_config
envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin
envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest choice_count
envoy.extensions.load_balancing_policies.random.v3.Random
envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality endpoint_picking_policy
envoy.config.cluster.v3.CircuitBreakers thresholds
envoy.config.cluster.v3.CircuitBreakers.Thresholds priority max_connections max_pending_requests max_requests max_retries
envoy.config.cluster.v3.UpstreamConnectionOptions tcp_keepalive
envoy.config.core.v3.TcpKeepalive keepalive_probes keepalive_time keepalive_interval
envoy.extensions.upstreams.http.v3.HttpProtocolOptions common_http_protocol_options explicit_http_config use_downstream_protocol_config auto_config
envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig http_protocol_options http2_protocol_options
envoy.extensions.upstreams.http.v3.HttpProtocolOptions.UseDownstreamHttpConfig http_protocol_options http2_protocol_options
envoy.extensions.upstreams.http.v3.HttpProtocolOptions.AutoHttpConfig http_protocol_options http2_protocol_options
envoy.config.core.v3.HttpProtocolOptions idle_timeout max_headers_count max_connection_duration headers_with_underscores_action
envoy.config.core.v3.Http1ProtocolOptions
envoy.config.core.v3.Http2ProtocolOptions allow_connect max_concurrent_streams

envoy.config.endpoint.v3.ClusterLoadAssignment cluster_name endpoints
envoy.config.endpoint.v3.LocalityLbEndpoints locality lb_endpoints load_balancing_weight priority
envoy.config.endpoint.v3.LbEndpoint endpoint health_status metadata load_balancing_weight
envoy.config.endpoint.v3.Endpoint address
envoy.config.core.v3.Locality region zone sub_zone

envoy.extensions.transport_sockets.tls.v3.Secret name tls_certificate validation_context
envoy.extensions.transport_sockets.tls.v3.TlsCertificate certificate_chain private_key
envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext trusted_ca trust_chain_verification match_typed_subject_alt_names match_subject_alt_names custom_validator_config ca_certificate_provider_instance
envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher san_type matcher
envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig trust_domains
envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig.TrustDomain name trust_bundle
envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext common_tls_context require_client_certificate
envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext common_tls_context sni
envoy.extensions.transport_sockets.tls.v3.CommonTlsContext tls_params tls_certificates tls_certificate_sds_secret_configs tls_certificate_provider_instance validation_context validation_context_sds_secret_config combined_validation_context alpn_protocols
envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CombinedCertificateValidationContext default_validation_context validation_context_sds_secret_config
envoy.extensions.transport_sockets.tls.v3.TlsParameters tls_minimum_protocol_version tls_maximum_protocol_version ecdh_curves
envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig name sds_config
envoy.extensions.transport_sockets.tls.v3.CertificateProviderPluginInstance instance_name

envoy.extensions.filters.network.rbac.v3.RBAC stat_prefix rules shadow_rules
envoy.extensions.filters.http.rbac.v3.RBAC rules_stat_prefix rules shadow_rules
envoy.config.rbac.v3.RBAC action policies
envoy.config.rbac.v3.Policy permissions principals
envoy.config.rbac.v3.Permission and_rules or_rules any header url_path destination_ip destination_port destination_port_range not_rule requested_server_name
envoy.config.rbac.v3.Permission.Set rules
envoy.config.rbac.v3.Principal and_ids or_ids any authenticated direct_remote_ip header url_path not_id
envoy.config.rbac.v3.Principal.Set ids
envoy.config.rbac.v3.Principal.Authenticated principal_name

envoy.type.matcher.v3.StringMatcher exact prefix suffix safe_regex contains ignore_case
envoy.type.matcher.v3.RegexMatcher regex google_re2
envoy.type.matcher.v3.RegexMatcher.GoogleRE2
envoy.type.matcher.v3.RegexMatchAndSubstitute pattern substitution
envoy.type.matcher.v3.PathMatcher path
envoy.type.v3.Int64Range start end
envoy.type.v3.Int32Range start end
envoy.type.v3.Percent value
envoy.type.v3.FractionalPercent numerator denominator

envoy.config.core.v3.Address socket_address pipe
envoy.config.core.v3.SocketAddress protocol address port_value
envoy.config.core.v3.Pipe path
envoy.config.core.v3.CidrRange address_prefix prefix_len
envoy.config.core.v3.ConfigSource ads self resource_api_version initial_fetch_timeout
envoy.config.core.v3.AggregatedConfigSource
envoy.config.core.v3.SelfConfigSource transport_api_version
envoy.config.core.v3.DataSource filename inline_bytes inline_string
envoy.config.core.v3.TransportSocket name typed_config
envoy.config.core.v3.TypedExtensionConfig name typed_config
envoy.config.core.v3.Metadata filter_metadata
envoy.config.core.v3.HeaderValueOption header append append_action keep_empty_value
envoy.config.core.v3.HeaderValue key value raw_value
envoy.config.core.v3.RuntimeFractionalPercent default_value runtime_key
`

func parseTable(text string) map[protoreflect.FullName]map[protoreflect.Name]bool {
	out := map[protoreflect.FullName]map[protoreflect.Name]bool{}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		fields := map[protoreflect.Name]bool{}
		for _, w := range words[1:] {
			fields[protoreflect.Name(w)] = true
		}
		out[protoreflect.FullName(words[0])] = fields
	}
	return out
}
