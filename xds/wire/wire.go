package wire

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// Warning names a populated field that parrel does not honour, or honours in
// another way than its author may expect. The resource is used all the same.
type Warning struct {
	Type   resource.Type
	Name   string
	Field  string // path in Envoy's field names: filter_chains[0].filters[1]
	Reason string
}

func (w Warning) String() string {
	return fmt.Sprintf("%s %q: %s: %s", w.Type.Short(), w.Name, w.Field, w.Reason)
}

// Error says why a resource was refused.
type Error struct {
	Type   resource.Type
	Name   string // "" where the resource could not be read far enough
	Field  string
	Reason string
}

func (e *Error) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("wire: %s %q: %s", e.Type.Short(), e.Name, e.Reason)
	}
	return fmt.Sprintf("wire: %s %q: %s: %s", e.Type.Short(), e.Name, e.Field, e.Reason)
}

// Encode makes the Envoy proto of a resource. The bytes are deterministic:
// equal resources give equal bytes.
func Encode(r resource.Resource) (*anypb.Any, error) {
	return nil, fmt.Errorf("wire: encode %s: %w", r.ResourceType().Short(), errors.ErrUnsupported)
}

// Decode makes the resource of an Envoy proto. A non-nil error is an [*Error]
// or a join of several (errors.As finds the first); warnings are given with
// either outcome.
func Decode(a *anypb.Any) (resource.Resource, []Warning, error) {
	return nil, nil, &Error{Type: resource.Type(a.GetTypeUrl()), Reason: errors.ErrUnsupported.Error()}
}
