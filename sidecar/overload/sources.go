package overload

import (
	"net/netip"
	"sync"
)

const sourceShards = 16

// sources counts open connections by address. It holds an entry per address
// that has one, and no more.
type sources struct {
	shards [sourceShards]struct {
		mu sync.Mutex
		n  map[netip.Addr]int32 // guarded by mu
		_  [40]byte             // one cache line each
	}
}

func (s *sources) init() {
	for i := range s.shards {
		s.shards[i].n = make(map[netip.Addr]int32)
	}
}

func shardOf(a netip.Addr) int {
	b := a.As16()
	return int(b[5]^b[6]^b[7]^b[13]^b[14]^b[15]) % sourceShards
}

// enter counts one more, unless there are limit already. The zero address is
// not counted.
func (s *sources) enter(a netip.Addr, limit int) bool {
	if !a.IsValid() {
		return true
	}
	sh := &s.shards[shardOf(a)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	n := sh.n[a]
	if int(n) >= limit {
		return false
	}
	sh.n[a] = n + 1
	return true
}

func (s *sources) leave(a netip.Addr) {
	if !a.IsValid() {
		return
	}
	sh := &s.shards[shardOf(a)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if n := sh.n[a]; n > 1 {
		sh.n[a] = n - 1
	} else {
		delete(sh.n, a)
	}
}
