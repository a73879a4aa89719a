package consul

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/test/consultest"
)

// TestRealUsedTokens: of many who use a token at once, at two control planes,
// one is the first; it may come again, and nobody else ever.
func TestRealUsedTokens(t *testing.T) {
	agent := consultest.Dev(t, consultest.Options{})
	var planes [2]*UsedTokens
	for i := range planes {
		u, err := NewUsedTokens(Config{Address: agent.HTTP})
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		planes[i] = u
	}
	expiry := time.Now().Add(time.Minute)
	for round := range 10 {
		id := fmt.Sprintf("token-%d.web", round)
		var winner atomic.Value
		var wins atomic.Int32
		var wg sync.WaitGroup
		for i := range 8 {
			by := fmt.Sprintf("key-%d", i)
			wg.Go(func() {
				first, err := planes[i%2].Use(t.Context(), id, by, expiry)
				if err != nil {
					t.Error(err)
				}
				if first {
					wins.Add(1)
					winner.Store(by)
				}
			})
		}
		wg.Wait()
		if wins.Load() != 1 {
			t.Fatalf("round %d: %d were the first", round, wins.Load())
		}
		for i, u := range planes {
			if first, err := u.Use(t.Context(), id, winner.Load().(string), expiry); err != nil || !first {
				t.Errorf("plane %d: the first may not come again: %v, %v", i, first, err)
			}
			if first, err := u.Use(t.Context(), id, "thief", expiry); err != nil || first {
				t.Errorf("plane %d: a thief: %v, %v", i, first, err)
			}
		}
	}
	if first, err := planes[0].Use(t.Context(), "token-0.api", "thief", expiry); err != nil || !first {
		t.Errorf("another service of the token: %v, %v", first, err)
	}
}

// TestRealUsedTokensPruned: records are forgotten some time after the token's
// expiry, and no others.
func TestRealUsedTokensPruned(t *testing.T) {
	agent := consultest.Dev(t, consultest.Options{})
	u, err := NewUsedTokens(Config{Address: agent.HTTP})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	now := time.Now()
	for i, expiry := range []time.Time{now.Add(time.Minute), now.Add(3 * time.Hour)} {
		if _, err := u.Use(t.Context(), fmt.Sprint(i), "a", expiry); err != nil {
			t.Fatal(err)
		}
	}
	agent.Put("/v1/kv/parrel/tokens/somebody-elses", "x")
	u.now = func() time.Time { return now.Add(2 * time.Hour) }
	if _, err := u.Use(t.Context(), "2", "a", now.Add(4*time.Hour)); err != nil {
		t.Fatal(err)
	}
	var keys []string
	agent.Get("/v1/kv/parrel/tokens/?keys", &keys)
	if len(keys) != 3 {
		t.Errorf("kept %q, want the two that are not long expired, and what is not ours", keys)
	}
	for _, k := range keys {
		if strings.HasSuffix(k, fmt.Sprint(-now.Add(time.Minute).Unix())) {
			t.Errorf("%s is kept", k)
		}
	}
}

// TestRealUsedTokensRefuses: without a record there is no use, and the error
// says what to do.
func TestRealUsedTokensRefuses(t *testing.T) {
	agent := consultest.Dev(t, consultest.Options{HCL: `acl { enabled = true default_policy = "deny" tokens { initial_management = "` + rootToken + `" agent = "` + rootToken + `" default = "` + rootToken + `" } }`})
	u, err := NewUsedTokens(Config{Address: agent.HTTP, Token: "anonymous"})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	use := func(want string) {
		t.Helper()
		first, err := u.Use(t.Context(), "id", "by", time.Now().Add(time.Minute))
		if first || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, %v; want an error with %s", first, err, want)
		}
	}
	use(`key_prefix "parrel/" { policy = "write" }`)
	agent.Stop()
	use("consul: used tokens: Put") // refused, or cut where a connection was kept: nobody answers
}
