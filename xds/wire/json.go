package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// redacted stands where a private key was.
const redacted = "[redacted]"

// JSON is the resource as Envoy's documents write it: the proto3 JSON form of
// its v3 message with the protos' own field names. A private key is redacted.
func JSON(r resource.Resource) (json.RawMessage, error) {
	if s, ok := r.(*resource.Secret); ok && len(s.KeyPEM) > 0 {
		shown := *s
		shown.KeyPEM = []byte(redacted)
		r = &shown
	}
	a, err := Encode(r)
	if err != nil {
		return nil, err
	}
	m, err := a.UnmarshalNew()
	if err != nil {
		return nil, fmt.Errorf("wire: %w", err)
	}
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("wire: %w", err)
	}
	var out bytes.Buffer // protojson's spacing changes from build to build on purpose
	if err := json.Compact(&out, raw); err != nil {
		return nil, fmt.Errorf("wire: %w", err)
	}
	return out.Bytes(), nil
}

// FromJSON reads what JSON wrote, or what a user writes by Envoy's documents.
func FromJSON(t resource.Type, raw []byte) (resource.Resource, []Warning, error) {
	m, err := fromJSON(t, raw)
	if err != nil {
		if j, ok := errors.AsType[*JSONError](err); ok {
			err = &Error{Type: t, Reason: j.Error()}
		}
		return nil, nil, err
	}
	a, err := anypb.New(m)
	if err != nil {
		return nil, nil, &Error{Type: t, Reason: err.Error()}
	}
	return Decode(a)
}
