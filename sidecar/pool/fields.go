package pool

import (
	"slices"
	"strings"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// sortFields gives fields a fixed order, since net/http keeps none between
// names; values of one name keep theirs.
func sortFields(h stream.Header) {
	slices.SortStableFunc(h, func(a, b stream.Field) int { return strings.Compare(a.Name, b.Name) })
}
