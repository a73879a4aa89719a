package vip

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/parrel-mesh/parrel/discovery"
)

// Range holds all virtual addresses: class E, which no host on the internet
// has. Consul gives addresses of it from its lower end.
func Range() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{240}), 4) }

// Own is the part of Range in which services get an address where the catalogue
// names none.
func Own() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4(own), 6) }

// Range6 holds the IPv6 twins of Range: the address in the low 32 bits.
func Range6() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom16(twin), 96) }

var (
	own  = [4]byte{244}
	twin = [16]byte{0xfd, 0x70, 0x61, 0x72, 0x72, 0x65, 0x00, 0x6c} // fd70:6172:7265:6c::, "parrel"
)

// ownBits is how many bits of an address in Own differ from one to the other.
const ownBits = 26

// Twin is the IPv6 form of a virtual IPv4 address; an IPv6 address is its own.
func Twin(a netip.Addr) netip.Addr {
	if !a.Is4() {
		return a
	}
	out, v4 := twin, a.As4()
	copy(out[12:], v4[:])
	return netip.AddrFrom16(out)
}

// FromTwin is the IPv4 address whose twin a is; any other address is itself.
func FromTwin(a netip.Addr) netip.Addr {
	if !Range6().Contains(a) {
		return a
	}
	b := a.As16()
	return netip.AddrFrom4([4]byte(b[12:]))
}

// Candidate is the k-th address, from 0, that a service may get in Own.
func Candidate(name discovery.ServiceName, k int) netip.Addr {
	key := strings.Join([]string{name.Peer, name.Partition, name.Namespace, name.Datacenter, name.Name}, "/")
	sum := sha256.Sum256([]byte(key + "\x00" + strconv.Itoa(k)))
	n := binary.BigEndian.Uint32(sum[:]) & (1<<ownBits - 1)
	if n == 0 || n == 1<<ownBits-1 {
		return Candidate(name, k+1<<16) // a network's own address, and its broadcast
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(own[:])|n)
	return netip.AddrFrom4(b)
}

// Assigner knows the services of a mesh and their addresses. The zero value is
// empty. It belongs to one goroutine.
type Assigner struct {
	declared map[discovery.ServiceName]netip.Addr // what the catalogue names; the zero Addr: nothing
	addr     map[discovery.ServiceName]netip.Addr
	holder   map[netip.Addr]discovery.ServiceName
	// disputed are the addresses that somebody had to leave to another: when one
	// of their holders goes, or a declared one comes, all is assigned anew.
	disputed map[netip.Addr]bool
}

// Addr returns the address of a service.
func (a *Assigner) Addr(name discovery.ServiceName) (netip.Addr, bool) {
	v, ok := a.addr[name]
	return v, ok
}

// Set adds a service, or tells what the catalogue now names as its address; the
// zero Addr where it names none. It returns the services whose address is
// another one than before, this one included.
func (a *Assigner) Set(name discovery.ServiceName, declared netip.Addr) []discovery.ServiceName {
	declared = declared.Unmap()
	if old, had := a.declared[name]; had && old == declared {
		return nil
	}
	if a.declared == nil {
		a.declared, a.addr = map[discovery.ServiceName]netip.Addr{}, map[discovery.ServiceName]netip.Addr{}
		a.holder, a.disputed = map[netip.Addr]discovery.ServiceName{}, map[netip.Addr]bool{}
	}
	changed := a.Remove(name)
	a.declared[name] = declared
	want := declared
	if !want.IsValid() {
		want = Candidate(name, 0)
	}
	if _, taken := a.holder[want]; taken {
		changed = append(changed, a.anew(name)...)
		slices.SortFunc(changed, discovery.ServiceName.Compare)
		return slices.Compact(changed)
	}
	a.addr[name], a.holder[want] = want, name
	if !slices.Contains(changed, name) {
		changed = append(changed, name)
	}
	return changed
}

// Remove takes a service away. It returns the services whose address is another
// one than before, this one included where it was there.
func (a *Assigner) Remove(name discovery.ServiceName) []discovery.ServiceName {
	at, had := a.addr[name]
	if !had {
		return nil
	}
	delete(a.declared, name)
	if a.disputed[at] {
		return a.anew(name)
	}
	delete(a.addr, name)
	delete(a.holder, at)
	return []discovery.ServiceName{name}
}

// anew assigns every address again and returns what changed, and cause.
func (a *Assigner) anew(cause discovery.ServiceName) []discovery.ServiceName {
	before := a.addr
	a.addr = make(map[discovery.ServiceName]netip.Addr, len(a.declared))
	a.holder = make(map[netip.Addr]discovery.ServiceName, len(a.declared))
	a.disputed = map[netip.Addr]bool{}
	names := slices.SortedFunc(maps.Keys(a.declared), discovery.ServiceName.Compare)
	take := func(name discovery.ServiceName, at netip.Addr) bool {
		if _, taken := a.holder[at]; taken {
			a.disputed[at] = true
			return false
		}
		a.addr[name], a.holder[at] = at, name
		return true
	}
	var rest []discovery.ServiceName
	for _, name := range names {
		if d := a.declared[name]; !d.IsValid() || !take(name, d) {
			rest = append(rest, name)
		}
	}
	for _, name := range rest {
		for k := 0; !take(name, Candidate(name, k)); k++ {
		}
	}
	var changed []discovery.ServiceName
	for name, at := range a.addr {
		if before[name] != at {
			changed = append(changed, name)
		}
	}
	for name := range before {
		if _, still := a.addr[name]; !still {
			changed = append(changed, name)
		}
	}
	if !slices.Contains(changed, cause) {
		changed = append(changed, cause)
	}
	slices.SortFunc(changed, discovery.ServiceName.Compare)
	return changed
}
