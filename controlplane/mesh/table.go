package mesh

import (
	"hash/maphash"
	"iter"
)

// shardCount bounds what an edit of one key copies: the array of shard
// pointers and one shard, a few kilobytes at 10,000 keys.
const shardCount = 256

// seed is the same for all tables of a process: which shard a key is in is
// never seen outside.
var seed = maphash.MakeSeed()

// table is an immutable map that shares its unchanged shards with the tables
// that it was edited from. Its zero value is empty.
type table[K comparable, V any] struct {
	shards [shardCount]map[K]V
	n      int
}

func shardOf[K comparable](k K) int { return int(maphash.Comparable(seed, k) % shardCount) }

// get returns the value of k; safe on nil.
func (t *table[K, V]) get(k K) (V, bool) {
	if t == nil {
		var zero V
		return zero, false
	}
	v, ok := t.shards[shardOf(k)][k]
	return v, ok
}

// len is the number of keys; safe on nil.
func (t *table[K, V]) len() int {
	if t == nil {
		return 0
	}
	return t.n
}

// all iterates in no particular order; safe on nil.
func (t *table[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		if t == nil {
			return
		}
		for _, shard := range t.shards {
			for k, v := range shard {
				if !yield(k, v) {
					return
				}
			}
		}
	}
}

// edit makes the next table of a base. It is used by one goroutine and dropped
// after done.
type edit[K comparable, V any] struct {
	base  *table[K, V]
	next  *table[K, V] // nil until the first write
	owned [shardCount]bool
}

func newEdit[K comparable, V any](base *table[K, V]) *edit[K, V] {
	return &edit[K, V]{base: base}
}

func (e *edit[K, V]) get(k K) (V, bool) {
	if e.next != nil {
		return e.next.get(k)
	}
	return e.base.get(k)
}

// shard returns the shard of k, copied if it still belongs to the base.
func (e *edit[K, V]) shard(k K) map[K]V {
	if e.next == nil {
		e.next = &table[K, V]{}
		if e.base != nil {
			*e.next = *e.base
		}
	}
	i := shardOf(k)
	if !e.owned[i] {
		old := e.next.shards[i]
		m := make(map[K]V, len(old)+1)
		for k, v := range old {
			m[k] = v
		}
		e.next.shards[i] = m
		e.owned[i] = true
	}
	return e.next.shards[i]
}

func (e *edit[K, V]) set(k K, v V) {
	m := e.shard(k)
	if _, ok := m[k]; !ok {
		e.next.n++
	}
	m[k] = v
}

func (e *edit[K, V]) delete(k K) {
	if _, ok := e.get(k); !ok {
		return
	}
	delete(e.shard(k), k)
	e.next.n--
}

// done returns the edited table, the base itself where nothing was written.
func (e *edit[K, V]) done() *table[K, V] {
	if e.next != nil {
		return e.next
	}
	return e.base
}
