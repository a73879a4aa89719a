package wire

import (
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	streamlogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"github.com/parrel-mesh/parrel/xds/resource"
)

var codecs = [...]hcmv3.HttpConnectionManager_CodecType{
	resource.CodecAuto: hcmv3.HttpConnectionManager_AUTO, resource.CodecHTTP1: hcmv3.HttpConnectionManager_HTTP1,
	resource.CodecHTTP2: hcmv3.HttpConnectionManager_HTTP2,
}

var forwards = [...]hcmv3.HttpConnectionManager_ForwardClientCertDetails{
	resource.SanitizeXFCC: hcmv3.HttpConnectionManager_SANITIZE, resource.SanitizeSetXFCC: hcmv3.HttpConnectionManager_SANITIZE_SET,
	resource.AppendForwardXFCC: hcmv3.HttpConnectionManager_APPEND_FORWARD,
}

// escapes are the actions on encoded slashes; Envoy's unset means what an
// implementation does by itself: resource.DefaultEscapedSlashes.
var escapes = [...]hcmv3.HttpConnectionManager_PathWithEscapedSlashesAction{
	resource.DefaultEscapedSlashes:  hcmv3.HttpConnectionManager_IMPLEMENTATION_SPECIFIC_DEFAULT,
	resource.KeepEscapedSlashes:     hcmv3.HttpConnectionManager_KEEP_UNCHANGED,
	resource.RedirectEscapedSlashes: hcmv3.HttpConnectionManager_UNESCAPE_AND_REDIRECT,
	resource.ForwardEscapedSlashes:  hcmv3.HttpConnectionManager_UNESCAPE_AND_FORWARD,
	resource.RejectEscapedSlashes:   hcmv3.HttpConnectionManager_REJECT_REQUEST,
}

func (e *encoder) manager(m *resource.HTTPManager) *hcmv3.HttpConnectionManager {
	out := &hcmv3.HttpConnectionManager{
		StatPrefix: encodePrefix(m.StatPrefix), CodecType: codecs[m.Codec],
		ForwardClientCertDetails: forwards[m.XFCC], UseRemoteAddress: boolean(m.UseRemoteAddress),
		ServerName: m.ServerName, RequestTimeout: duration(m.RequestTimeout), RequestHeadersTimeout: duration(m.RequestHeadersTimeout),
		StreamIdleTimeout: duration(m.StreamIdleTimeout), MaxRequestHeadersKb: u32(m.MaxRequestHeadersKB),
		NormalizePath: wrapperspb.Bool(!m.RawPaths), PathWithEscapedSlashesAction: escapes[m.EscapedSlashes], MergeSlashes: m.MergeSlashes,
		HttpFilters: each(m.Filters, e.httpFilter), AccessLog: each(m.AccessLog, e.accessLog),
	}
	if m.RouteName != "" {
		out.RouteSpecifier = &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: m.RouteName, ConfigSource: ads()}}
	} else if m.Route != nil {
		out.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: e.routeConfig(m.Route)}
	}
	if m.XFCC != resource.SanitizeXFCC {
		out.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{Uri: true}
	}
	for _, u := range m.Upgrades {
		out.UpgradeConfigs = append(out.UpgradeConfigs, &hcmv3.HttpConnectionManager_UpgradeConfig{UpgradeType: u})
	}
	if len(m.Upgrades) > 0 || m.MaxStreams > 0 { // upgrades come by extended CONNECT too (RFC 8441)
		out.Http2ProtocolOptions = &corev3.Http2ProtocolOptions{AllowConnect: len(m.Upgrades) > 0, MaxConcurrentStreams: u32(m.MaxStreams)}
	}
	if m.IdleTimeout != 0 || m.MaxConnection != 0 || m.MaxHeaders != 0 || m.Underscores != 0 {
		out.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{IdleTimeout: duration(m.IdleTimeout), MaxConnectionDuration: duration(m.MaxConnection),
			MaxHeadersCount: u32(m.MaxHeaders), HeadersWithUnderscoresAction: underscores[m.Underscores]}
	}
	return out
}

var underscores = [...]corev3.HttpProtocolOptions_HeadersWithUnderscoresAction{
	resource.AllowUnderscores: corev3.HttpProtocolOptions_ALLOW, resource.RejectUnderscores: corev3.HttpProtocolOptions_REJECT_REQUEST,
	resource.DropUnderscores: corev3.HttpProtocolOptions_DROP_HEADER,
}

func (d *decoder) manager(at string, m *hcmv3.HttpConnectionManager) *resource.HTTPManager {
	out := &resource.HTTPManager{
		StatPrefix: decodePrefix(m.GetStatPrefix()), UseRemoteAddress: m.GetUseRemoteAddress().GetValue(), ServerName: m.GetServerName(),
		RequestTimeout:        d.duration(at+".request_timeout", m.GetRequestTimeout()),
		RequestHeadersTimeout: d.someDuration(at+".request_headers_timeout", m.GetRequestHeadersTimeout()),
		StreamIdleTimeout:     d.someDuration(at+".stream_idle_timeout", m.GetStreamIdleTimeout()),
		IdleTimeout:           d.someDuration(at+".common_http_protocol_options.idle_timeout", m.GetCommonHttpProtocolOptions().GetIdleTimeout()),
		MaxRequestHeadersKB:   m.GetMaxRequestHeadersKb().GetValue(),
		MaxHeaders:            m.GetCommonHttpProtocolOptions().GetMaxHeadersCount().GetValue(),
		MaxStreams:            m.GetHttp2ProtocolOptions().GetMaxConcurrentStreams().GetValue(),
		MaxConnection:         d.duration(at+".common_http_protocol_options.max_connection_duration", m.GetCommonHttpProtocolOptions().GetMaxConnectionDuration()),
	}
	d.managerEnums(at, m, out)
	switch x := m.GetRouteSpecifier().(type) {
	case *hcmv3.HttpConnectionManager_Rds:
		out.RouteName = x.Rds.GetRouteConfigName()
		d.fromADS(at+".rds.config_source", x.Rds.GetConfigSource())
	case *hcmv3.HttpConnectionManager_RouteConfig:
		out.Route = d.routeConfig(at+".route_config.", x.RouteConfig)
	}
	for i, u := range m.GetUpgradeConfigs() {
		if u.GetEnabled() != nil && !u.GetEnabled().GetValue() {
			continue
		}
		if !d.honours(u) {
			d.warn(index(at+".upgrade_configs", i), "is left out: its own filters are not honoured")
			continue
		}
		out.Upgrades = append(out.Upgrades, lowerASCII(u.GetUpgradeType()))
	}
	for i, f := range m.GetHttpFilters() {
		d.httpFilter(index(at+".http_filters", i), f, out)
	}
	for i, l := range m.GetAccessLog() {
		d.accessLog(index(at+".access_log", i), l, &out.AccessLog)
	}
	return out
}

func (d *decoder) managerEnums(at string, m *hcmv3.HttpConnectionManager, out *resource.HTTPManager) {
	known := false
	for k, v := range codecs {
		if v == m.GetCodecType() {
			out.Codec, known = resource.Codec(k), true
		}
	}
	if !known {
		d.failf(at+".codec_type", "%s is not spoken", m.GetCodecType())
	}
	known = false
	for k, v := range underscores {
		if v == m.GetCommonHttpProtocolOptions().GetHeadersWithUnderscoresAction() {
			out.Underscores, known = resource.Underscores(k), true
		}
	}
	if !known {
		d.failf(at+".common_http_protocol_options.headers_with_underscores_action", "unknown value %d", m.GetCommonHttpProtocolOptions().GetHeadersWithUnderscoresAction())
	}
	known = false
	for k, v := range forwards {
		if v == m.GetForwardClientCertDetails() {
			out.XFCC, known = resource.ForwardClientCert(k), true
		}
	}
	if !known {
		d.warnf(at+".forward_client_cert_details", "%s is not done; the header is removed", m.GetForwardClientCertDetails())
	}
	if s := m.GetSetCurrentClientCertDetails(); s != nil && !s.GetUri() && out.XFCC != resource.SanitizeXFCC {
		d.warn(at+".set_current_client_cert_details", "the URI is always written, and nothing else")
	}
	if n := m.GetNormalizePath(); n != nil {
		out.RawPaths = !n.GetValue()
	}
	out.MergeSlashes = m.GetMergeSlashes()
	out.EscapedSlashes = resource.RejectEscapedSlashes // an action of a later version
	for k, v := range escapes {
		if v == m.GetPathWithEscapedSlashesAction() {
			out.EscapedSlashes = resource.EscapedSlashes(k)
		}
	}
}

func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

func (e *encoder) httpFilter(f *resource.HTTPFilter) *hcmv3.HttpFilter {
	out := &hcmv3.HttpFilter{Name: f.Name}
	switch {
	case f.RBAC != nil:
		out.ConfigType = &hcmv3.HttpFilter_TypedConfig{TypedConfig: e.pack(e.httpRBAC(f.RBAC))}
	case f.Router != nil:
		out.ConfigType = &hcmv3.HttpFilter_TypedConfig{TypedConfig: e.pack(&routerv3.Router{})}
	}
	return out
}

// httpFilter decodes one filter. One that parrel does not have is left out where
// it says that it is optional, and refuses the listener otherwise.
func (d *decoder) httpFilter(field string, f *hcmv3.HttpFilter, out *resource.HTTPManager) {
	a := f.GetTypedConfig()
	at := field + ".typed_config"
	switch {
	case a.MessageIs((*httprbacv3.RBAC)(nil)):
		m := &httprbacv3.RBAC{}
		if d.unpack(at, a, m) {
			out.Filters = append(out.Filters, resource.HTTPFilter{Name: f.GetName(), RBAC: d.httpRBAC(at, m)})
		}
	case a.MessageIs((*routerv3.Router)(nil)):
		out.Filters = append(out.Filters, resource.HTTPFilter{Name: f.GetName(), Router: &resource.Router{}})
	case f.GetIsOptional():
		d.warnf(field, "the HTTP filter %q (%s) is not known, and left out since it is optional", f.GetName(), a.GetTypeUrl())
	default:
		d.failf(field, "the HTTP filter %q (%s) is not known", f.GetName(), a.GetTypeUrl())
	}
}

func (e *encoder) accessLog(l *resource.AccessLog) *accesslogv3.AccessLog {
	f := &filelogv3.FileAccessLog{Path: l.Path}
	format := func(s *corev3.SubstitutionFormatString) {
		f.AccessLogFormat = &filelogv3.FileAccessLog_LogFormat{LogFormat: s}
	}
	switch {
	case len(l.JSON) > 0:
		s := &structpb.Struct{Fields: map[string]*structpb.Value{}}
		for k, v := range l.JSON {
			s.Fields[k] = structpb.NewStringValue(v)
		}
		format(&corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: s}})
	case l.Text != "":
		format(&corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
			Specifier: &corev3.DataSource_InlineString{InlineString: l.Text}}}})
	}
	out := &accesslogv3.AccessLog{Name: "envoy.access_loggers.file", ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: e.pack(f)}}
	switch {
	case l.Filter != nil:
		out.Filter = e.logFilter(l.Filter)
	case l.MinStatus > 0:
		out.Filter = e.logFilter(&resource.LogFilter{Status: &resource.Comparison{Op: resource.CompareGE, Value: l.MinStatus}})
	}
	return out
}

func (d *decoder) accessLog(at string, m *accesslogv3.AccessLog, out *[]resource.AccessLog) {
	l := resource.AccessLog{}
	a := m.GetTypedConfig()
	var format *corev3.SubstitutionFormatString
	switch {
	case a.MessageIs((*filelogv3.FileAccessLog)(nil)):
		f := &filelogv3.FileAccessLog{}
		if !d.unpack(at+".typed_config", a, f) {
			return
		}
		l.Path, l.Text, format = f.GetPath(), f.GetFormat(), f.GetLogFormat() //nolint:staticcheck // deprecated, still sent
	case a.MessageIs((*streamlogv3.StdoutAccessLog)(nil)):
		f := &streamlogv3.StdoutAccessLog{}
		if !d.unpack(at+".typed_config", a, f) {
			return
		}
		l.Path, format = "/dev/stdout", f.GetLogFormat()
	case a.MessageIs((*streamlogv3.StderrAccessLog)(nil)):
		f := &streamlogv3.StderrAccessLog{}
		if !d.unpack(at+".typed_config", a, f) {
			return
		}
		l.Path, format = "/dev/stderr", f.GetLogFormat()
	default:
		d.warnf(at, "the access log %q (%s) is not known, and left out", m.GetName(), a.GetTypeUrl())
		return
	}
	d.logFormat(at+".typed_config.log_format", format, &l)
	if m.GetFilter() != nil {
		switch f := d.logFilter(at+".filter", m.GetFilter(), 0); {
		case f == nil:
			d.warn(at+".filter", "is of a kind that parrel does not have; everything is logged")
		case f.Status != nil && f.Status.Op == resource.CompareGE:
			l.MinStatus = f.Status.Value
		default:
			l.Filter = f
		}
	}
	*out = append(*out, l)
}

func (d *decoder) logFormat(at string, f *corev3.SubstitutionFormatString, l *resource.AccessLog) {
	switch x := f.GetFormat().(type) {
	case *corev3.SubstitutionFormatString_TextFormat:
		l.Text = x.TextFormat
	case *corev3.SubstitutionFormatString_TextFormatSource:
		l.Text = string(d.inline(at+".text_format_source", x.TextFormatSource))
	case *corev3.SubstitutionFormatString_JsonFormat:
		l.JSON = map[string]string{}
		for k, v := range x.JsonFormat.GetFields() {
			s, ok := v.GetKind().(*structpb.Value_StringValue)
			if !ok {
				d.warnf(at+".json_format", "the field %q is not text, and left out", k)
				continue
			}
			l.JSON[k] = s.StringValue
		}
	}
}
