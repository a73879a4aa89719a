package pool

import (
	"context"
	"errors"
	"testing"
)

// TestGoingAway: a request that crossed with the endpoint's graceful GOAWAY was
// not taken by it, whatever was sent of it.
func TestGoingAway(t *testing.T) {
	for text, want := range map[string]Kind{
		"http2: Transport: cannot retry err [http2: Transport received Server's graceful shutdown GOAWAY] after Request.Body was written; define Request.GetBody to avoid this error": Leaving,
		"http2: server sent GOAWAY and closed the connection; LastStreamID=7, ErrCode=NO_ERROR":                                                                                       Reset,
	} {
		if got := asError(context.Background(), errors.New(text)); got.Kind != want {
			t.Errorf("%s: kind %v, want %v", text, got.Kind, want)
		}
	}
}
