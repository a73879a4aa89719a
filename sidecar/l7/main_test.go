package l7

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

func TestMain(m *testing.M) {
	stream.Poison = true
	goleak.VerifyTestMain(m)
}
