// Package refusal is how a client tells a server which resources of a response
// it refused: google.rpc.Status with one google.rpc.ErrorInfo per resource
// (https://google.aip.dev/193), domain "parrel", metadata type, name, version,
// field and reason. Servers that do not know it read the message, which says
// the same.
//
// Owns: that encoding. Does not know: streams.
package refusal

import (
	"fmt"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/parrel-mesh/parrel/xds/resource"
)

const (
	domain     = "parrel"
	reasonCode = "RESOURCE_REFUSED"
)

// maxText bounds the message: gRPC and logs carry it.
const maxText = 4096

// Refused is one refused resource.
type Refused struct {
	Type                         resource.Type
	Name, Version, Field, Reason string
}

func (r Refused) String() string {
	name := r.Name
	if name == "" {
		name = "(unnamed)"
	}
	if r.Field == "" {
		return fmt.Sprintf("%s %q: %s", r.Type.Short(), name, r.Reason)
	}
	return fmt.Sprintf("%s %q: %s: %s", r.Type.Short(), name, r.Field, r.Reason)
}

// Status makes the error_detail of a NACK.
func Status(rs []Refused) *status.Status {
	st := &status.Status{Code: int32(codes.InvalidArgument)}
	lines := make([]string, 0, len(rs))
	for _, r := range rs {
		lines = append(lines, r.String())
		a, err := anypb.New(&errdetails.ErrorInfo{Reason: reasonCode, Domain: domain, Metadata: map[string]string{
			"type": valid(string(r.Type)), "name": valid(r.Name), "version": valid(r.Version), "field": valid(r.Field), "reason": valid(r.Reason),
		}})
		if err == nil { // fails on invalid UTF-8 only, which valid took out
			st.Details = append(st.Details, a)
		}
	}
	st.Message = valid(strings.Join(lines, "; "))
	if len(st.Message) > maxText {
		st.Message = valid(st.Message[:maxText]) + " …"
	}
	return st
}

// Parse finds what a NACK says of single resources; nil where it does not.
func Parse(st *status.Status) []Refused {
	var rs []Refused
	for _, d := range st.GetDetails() {
		var e errdetails.ErrorInfo
		if !d.MessageIs(&e) || d.UnmarshalTo(&e) != nil || e.Domain != domain || e.Reason != reasonCode {
			continue
		}
		m := e.Metadata
		rs = append(rs, Refused{Type: resource.Type(m["type"]), Name: m["name"], Version: m["version"], Field: m["field"], Reason: m["reason"]})
	}
	return rs
}

func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
