package wire

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// onlyStatic refuses what a control plane may not say.
const onlyStatic = "is read in static configuration only"

// JSONError is JSON that is not the message that it should be.
type JSONError struct {
	Line, Column int // of the JSON, from 1; 0: unknown
	Reason       string
}

func (e *JSONError) Error() string {
	return fmt.Sprintf("wire: JSON, line %d, column %d: %s", e.Line, e.Column, e.Reason)
}

// Static is one resource of a bootstrap with what it brings along.
type Static struct {
	Resource resource.Resource
	// Secrets hold the certificates that stood in the resource itself, which
	// refers to them by name, and those that it names by files.
	Secrets  []*resource.Secret
	Warnings []Warning
}

// DecodeStatic reads a resource of a file: JSON by Envoy's documents. It differs
// from [FromJSON] in what only whoever owns the machine may say: certificates by
// file or inline, names of servers other than SPIFFE ids, TLS 1.2 by default,
// TLS to whoever answers. Nothing can come by xDS. The error is a [*JSONError],
// an [*Error], or a join of several of the latter.
func DecodeStatic(t resource.Type, raw []byte) (Static, error) {
	m, err := fromJSON(t, raw)
	if err != nil {
		return Static{}, err
	}
	a, err := anypb.New(m)
	if err != nil {
		return Static{}, &Error{Type: t, Reason: err.Error()}
	}
	d := &decoder{typ: t, static: true}
	r := d.resource(a)
	if r != nil && len(d.errs) == 0 {
		r = resource.Normalise(r)
		d.invalid(r.Validate())
	}
	d.sort()
	out := Static{Secrets: d.secrets, Warnings: d.warns}
	if len(d.errs) > 0 {
		return out, d.err()
	}
	out.Resource = r
	return out, nil
}

// StaticAddress reads an address: JSON of envoy.config.core.v3.Address. Errors
// are as of [DecodeStatic].
func StaticAddress(raw []byte) (resource.Address, error) {
	m := &corev3.Address{}
	if err := protojson.Unmarshal(raw, m); err != nil {
		return resource.Address{}, jsonError(err)
	}
	d := &decoder{static: true}
	d.walk("", m.ProtoReflect(), true, 0)
	a := d.address("", m)
	if len(d.errs) > 0 {
		return a, d.err()
	}
	return a, nil
}

// fromJSON makes the message of a type.
func fromJSON(t resource.Type, raw []byte) (proto.Message, error) {
	name := strings.TrimPrefix(string(t), "type.googleapis.com/")
	mt, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(name))
	if err != nil {
		return nil, &Error{Type: t, Reason: "no such type of resource"}
	}
	m := mt.New().Interface()
	if err := protojson.Unmarshal(raw, m); err != nil {
		return nil, jsonError(err)
	}
	return m, nil
}

// protojson says where it stopped in the text of its error alone.
var jsonPlace = regexp.MustCompile(`\(line (\d+):(\d+)\):?\s*`)

func jsonError(err error) *JSONError {
	text := strings.ReplaceAll(err.Error(), "\u00a0", " ") // protojson's spaces change from build to build on purpose
	text = strings.TrimSpace(strings.TrimPrefix(text, "proto:"))
	out := &JSONError{Reason: text}
	if at := jsonPlace.FindStringSubmatchIndex(text); at != nil {
		out.Line, _ = strconv.Atoi(text[at[2]:at[3]])
		out.Column, _ = strconv.Atoi(text[at[4]:at[5]])
		out.Reason = text[:at[0]] + text[at[1]:]
	}
	out.Reason = strings.TrimPrefix(out.Reason, "syntax error ")
	return out
}

// staticCertificate is a certificate with its key: both by file, or both inline.
func (d *decoder) staticCertificate(at string, t *tlsv3.TlsCertificate) resource.CertSource {
	chain, key := t.GetCertificateChain(), t.GetPrivateKey()
	byFile := chain.GetFilename() != ""
	if byFile != (key.GetFilename() != "") {
		d.fail(at, "one of certificate_chain and private_key is a file and the other is not; give both in the same way")
		return resource.CertSource{}
	}
	if byFile {
		f := resource.CertFiles{Cert: chain.GetFilename(), Key: key.GetFilename()}
		d.bring(&resource.Secret{Name: resource.FileSecret(f), Files: &f})
		return resource.CertSource{Files: &f}
	}
	s := &resource.Secret{Name: d.inlineName(at),
		ChainPEM: d.inline(at+".certificate_chain", chain), KeyPEM: d.inline(at+".private_key", key)}
	d.bring(s)
	return resource.CertSource{SDS: s.Name}
}

// staticTrust is the roots of a validation context.
func (d *decoder) staticTrust(field string, c *tlsv3.CertificateValidationContext) resource.CertSource {
	if name := c.GetTrustedCa().GetFilename(); name != "" {
		f := resource.CertFiles{CA: name}
		d.bring(&resource.Secret{Name: resource.FileSecret(f), Files: &f})
		return resource.CertSource{Files: &f}
	}
	s := &resource.Secret{Name: d.inlineName(field), TrustPEM: []resource.TrustBundle{{RootsPEM: d.inline(field+".trusted_ca", c.GetTrustedCa())}}}
	d.bring(s)
	return resource.CertSource{SDS: s.Name}
}

// inlineName names a secret by where it stands.
func (d *decoder) inlineName(at string) string {
	return fmt.Sprintf("inline:%s/%s/%s", d.typ.Short(), d.name, at)
}

func (d *decoder) bring(s *resource.Secret) { d.secrets = append(d.secrets, s) }

// secretFrom fills a secret of the bootstrap with what its fields said.
func (d *decoder) secretFrom(out *resource.Secret, from resource.CertSource) {
	for _, s := range d.secrets {
		if s.Name == from.Secret() {
			out.TrustPEM, out.ChainPEM, out.KeyPEM, out.Files = s.TrustPEM, s.ChainPEM, s.KeyPEM, s.Files
		}
	}
	d.secrets = nil
}

// staticSecret names a secret of static_resources.
func (d *decoder) staticSecret(field string, s *tlsv3.SdsSecretConfig) string {
	if s.GetSdsConfig() != nil {
		d.fail(field+".sds_config", "there is nobody to ask; leave it out to name a secret of static_resources.secrets, or give the certificate's files in place")
	}
	if s.GetName() == "" {
		d.fail(field+".name", "must not be empty; name a secret of static_resources.secrets")
	}
	return s.GetName()
}

// Errors lists what an error of [Decode] or [DecodeStatic] is made of.
func Errors(err error) []*Error {
	var out []*Error
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range j.Unwrap() {
			out = append(out, Errors(e)...)
		}
		return out
	}
	if e, ok := errors.AsType[*Error](err); ok {
		out = append(out, e)
	}
	return out
}
