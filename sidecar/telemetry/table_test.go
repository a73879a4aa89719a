package telemetry

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/parrel-mesh/parrel/test/golden"
)

// docs is docs/codes.md.
func docs() string {
	var b strings.Builder
	b.WriteString(`# Codes

Every error that the mesh itself makes carries one code of this closed list: in
the access log (` + "`code`" + `, and Envoy's response flag in ` + "`flags`" + `), in the metric
` + "`parrel_errors_total`" + `, and in the ` + "`proxy-status`" + ` header of the response (RFC 9209),
as ` + "`parrel; error=<token>; details=\"<code>\"`" + `. A gRPC request is answered with the gRPC
status instead of the HTTP status. "–" means that no response can be sent any more.
This page is made from the table in sidecar/telemetry; a test compares them.

`)
	for _, i := range Table() {
		status := "–"
		if i.Status != 0 && i.Code != OK {
			status = fmt.Sprint(i.Status)
		}
		flag, token := i.Flag, i.Token
		if flag == "" {
			flag = "-"
		}
		if token == "" {
			token = "–"
		}
		fmt.Fprintf(&b, "## %s\n\nflag `%s` · proxy-status `%s` · HTTP %s · gRPC %d\n\n%s\n\n", i.ID, flag, token, status, i.GRPC, i.Sentence)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func TestDocs(t *testing.T) { golden.Check(t, "../../docs/codes.md", docs()) }

// TestTable: the list is closed and every code has all of its words.
func TestTable(t *testing.T) {
	id := regexp.MustCompile(`^[a-z0-9]+(_[a-z0-9]+)*$`)
	// RFC 9209, section 2.3.
	tokens := map[string]bool{"": true}
	for _, s := range strings.Fields(`dns_timeout dns_error destination_not_found destination_unavailable destination_ip_prohibited
		destination_ip_unroutable connection_refused connection_terminated connection_timeout connection_read_timeout
		connection_write_timeout connection_limit_reached tls_protocol_error tls_certificate_error tls_alert_received
		http_request_error http_request_denied http_response_incomplete http_response_header_section_size
		http_response_timeout http_upgrade_failed http_protocol_error proxy_internal_response proxy_internal_error
		proxy_configuration_error proxy_loop_detected`) {
		tokens[s] = true
	}
	seen := map[string]bool{}
	for n, i := range Table() {
		if int(i.Code) != n {
			t.Errorf("code %d has the entry of %d", n, i.Code)
		}
		if !id.MatchString(i.ID) || seen[i.ID] {
			t.Errorf("code %d: id %q is malformed or not unique", n, i.ID)
		}
		seen[i.ID] = true
		if !tokens[i.Token] {
			t.Errorf("%s: %q is no proxy error type of RFC 9209", i.ID, i.Token)
		}
		if !strings.HasSuffix(i.Sentence, ".") || len(i.Sentence) < 40 {
			t.Errorf("%s: the sentence says too little: %q", i.ID, i.Sentence)
		}
		if i.Status != 0 && i.Code != OK && i.Token == "" {
			t.Errorf("%s can be answered and has no proxy-status token", i.ID)
		}
	}
	if got := Code(200).Info().Code; got != LocalPanic {
		t.Errorf("an unknown code is %v", got)
	}
}
