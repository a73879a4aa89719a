package pool

import (
	"errors"
	"testing"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// Every kind of a codec's failure has its meaning for those who choose
// endpoints, and the codec's words stay.
func TestErrorOf(t *testing.T) {
	for kind, want := range map[stream.FailureKind]Kind{
		stream.FailedStale: Reset, stream.FailedRefused: Refused, stream.FailedReset: Reset, stream.FailedProtocol: Protocol,
		stream.FailedCancelled: Cancelled, stream.FailedGone: Reset, stream.FailedRequest: Cancelled,
	} {
		f := &stream.Failure{Kind: kind, Sent: kind == stream.FailedReset, Detail: "why"}
		e := errorOf(f)
		var below *stream.Failure
		if e.Kind != want || e.Sent != f.Sent || e.Detail != "why" || !errors.As(e, &below) || below != f {
			t.Errorf("%v: %+v", kind, e)
		}
	}
}
