package consul

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

// usedPrefix is where in Consul's KV the used join tokens are recorded.
const usedPrefix = "parrel/tokens/"

// usedPrune is how often records of expired tokens are looked for, at the use
// of a token; usedGrace keeps them beyond the expiry, for control planes whose
// clocks differ.
const (
	usedPrune = 10 * time.Minute
	usedGrace = time.Hour
)

// UsedTokens remembers in Consul's KV which join tokens were used, for all
// control planes of the datacenter. A record is a key made of the token's
// digest and its expiry, whose value says who used it. Safe for concurrent use.
type UsedTokens struct {
	kv        *api.KV
	transport *http.Transport
	now       func() time.Time

	mu     sync.Mutex
	pruned time.Time // guarded by mu
}

// NewUsedTokens connects to nothing yet.
func NewUsedTokens(cfg Config) (*UsedTokens, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	client, transport, err := cfg.client()
	if err != nil {
		return nil, err
	}
	short(transport)
	return &UsedTokens{kv: client.KV(), transport: transport, now: time.Now}, nil
}

// Close closes idle connections.
func (u *UsedTokens) Close() { u.transport.CloseIdleConnections() }

// Use records that by has used the token with this id, and says whether it may:
// it is the first, or the one that was recorded before. The record is made by a
// compare-and-set that demands that there is none, which Consul's leader
// decides: of several control planes at once, one wins
// (https://developer.hashicorp.com/consul/api-docs/kv#cas). An error says that
// nothing is known, so that the token must not be accepted.
func (u *UsedTokens) Use(ctx context.Context, id, by string, expiry time.Time) (first bool, err error) {
	u.prune(ctx)
	sum := sha256.Sum256([]byte(id))
	key := usedPrefix + hex.EncodeToString(sum[:]) + "-" + strconv.FormatInt(expiry.Unix(), 10)
	made, _, err := u.kv.CAS(&api.KVPair{Key: key, Value: []byte(by)}, (&api.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return false, usedError(err)
	}
	if made {
		return true, nil
	}
	was, _, err := u.kv.Get(key, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	if err != nil {
		return false, usedError(err)
	}
	// A record that has gone in between was pruned, so the token has expired.
	return was != nil && string(was.Value) == by, nil
}

func usedError(err error) error {
	if denied(err) {
		return fmt.Errorf("consul: used tokens: the control plane's token may not write below %s of the KV: %w; give it the rule key_prefix \"parrel/\" { policy = \"write\" }", usedPrefix, err)
	}
	return fmt.Errorf("consul: used tokens: %w", err)
}

// prune deletes the records of tokens that have long expired. What fails is
// tried again later: a record too many harms nobody.
func (u *UsedTokens) prune(ctx context.Context) {
	now := u.now()
	u.mu.Lock()
	due := now.Sub(u.pruned) >= usedPrune
	if due {
		u.pruned = now
	}
	u.mu.Unlock()
	if !due {
		return
	}
	keys, _, err := u.kv.Keys(usedPrefix, "", (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return // the use itself says what is wrong
	}
	for _, k := range keys {
		_, exp, ok := strings.Cut(strings.TrimPrefix(k, usedPrefix), "-")
		sec, err := strconv.ParseInt(exp, 10, 64)
		if !ok || err != nil || !now.After(time.Unix(sec, 0).Add(usedGrace)) {
			continue
		}
		if _, err := u.kv.Delete(k, (&api.WriteOptions{}).WithContext(ctx)); err != nil {
			return
		}
	}
}
