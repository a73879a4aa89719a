package resource

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"sort"

	"github.com/cespare/xxhash/v2"
)

// Normalise brings a resource that was just built to its one form: empty slices
// and maps become nil, words that say the default become zero (a redirect's code
// 301, TLS versions "1.3", least request without a choice count), sets (RBAC
// policies, retry words) are sorted. It changes r and returns it, so it must be
// called before the resource is handed on.
func Normalise[R Resource](r R) R {
	normalise(reflect.ValueOf(r))
	return r
}

func normalise(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			normalise(v.Elem())
		}
	case reflect.Slice:
		if v.Len() == 0 {
			v.SetZero()
			return
		}
		for i := range v.Len() {
			normalise(v.Index(i))
		}
	case reflect.Map: // only map[string]string is modelled
		if v.Len() == 0 {
			v.SetZero()
		}
	case reflect.Struct:
		if opaque(v.Type()) {
			return
		}
		for i := range v.NumField() {
			normalise(v.Field(i))
		}
		canonical(v.Addr().Interface())
	}
}

// canonical applies what a single type has beyond empty and nil.
func canonical(p any) {
	switch x := p.(type) {
	case *RBACRules:
		slices.SortStableFunc(x.Policies, func(a, b RBACPolicy) int { return cmp.Compare(a.Name, b.Name) })
	case *Retry:
		slices.Sort(x.On)
		x.On = slices.Compact(x.On)
	case *Redirect:
		if x.Code == 301 {
			x.Code = 0
		}
	case *TLSParams:
		if x.MinVersion == "1.3" {
			x.MinVersion = ""
		}
		if x.MaxVersion == "1.3" {
			x.MaxVersion = ""
		}
	case *LBPolicy:
		if x.LeastRequest != nil && *x.LeastRequest == (LeastRequest{}) {
			x.LeastRequest = nil
		}
	case *DNSFilter:
		sortDNS(x)
	case *Cluster:
		if x.EDSName == x.Name {
			x.EDSName = ""
		}
	}
}

var prefixType, addrType = reflect.TypeFor[netip.Prefix](), reflect.TypeFor[netip.Addr]()

// opaque types are compared and hashed as values, not field by field.
func opaque(t reflect.Type) bool { return t == prefixType || t == addrType }

// Equal says whether two resources are the same configuration. Empty and nil
// slices and maps are the same.
func Equal(a, b Resource) bool {
	va, vb := reflect.ValueOf(a), reflect.ValueOf(b)
	if !va.IsValid() || !vb.IsValid() {
		return va.IsValid() == vb.IsValid()
	}
	return va.Type() == vb.Type() && equal(va, vb)
}

func equal(a, b reflect.Value) bool {
	switch a.Kind() {
	case reflect.Pointer:
		if a.IsNil() || b.IsNil() {
			return a.IsNil() == b.IsNil()
		}
		return a.Pointer() == b.Pointer() || equal(a.Elem(), b.Elem())
	case reflect.Slice:
		if a.Len() != b.Len() {
			return false
		}
		if a.Len() == 0 || a.Pointer() == b.Pointer() {
			return true
		}
		for i := range a.Len() {
			if !equal(a.Index(i), b.Index(i)) {
				return false
			}
		}
		return true
	case reflect.Map:
		if a.Len() != b.Len() {
			return false
		}
		for it := a.MapRange(); it.Next(); {
			o := b.MapIndex(it.Key())
			if !o.IsValid() || !equal(it.Value(), o) {
				return false
			}
		}
		return true
	case reflect.Struct:
		if opaque(a.Type()) {
			return a.Interface() == b.Interface()
		}
		for i := range a.NumField() {
			if !equal(a.Field(i), b.Field(i)) {
				return false
			}
		}
		return true
	}
	return a.Equal(b)
}

// Hash is a 64-bit digest of the resource's content, stable between processes
// of one version of parrel. Equal resources have equal hashes. It is for
// versions and change detection, not for security.
func Hash(r Resource) uint64 {
	h := hasher{Digest: xxhash.New()}
	_, _ = h.WriteString(string(r.ResourceType()))
	h.value(reflect.ValueOf(r))
	return h.Sum64()
}

type hasher struct {
	*xxhash.Digest
	buf [8]byte
}

func (h *hasher) num(n uint64) {
	binary.LittleEndian.PutUint64(h.buf[:], n)
	_, _ = h.Write(h.buf[:])
}

func (h *hasher) str(s string) {
	h.num(uint64(len(s)))
	_, _ = h.WriteString(s)
}

// value writes v so that no two different values write the same: every variable
// part is preceded by its length, every pointer by whether it is nil.
func (h *hasher) value(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			h.num(0)
			return
		}
		h.num(1)
		h.value(v.Elem())
	case reflect.Slice:
		h.num(uint64(v.Len()))
		if v.Type().Elem().Kind() == reflect.Uint8 {
			_, _ = h.Write(v.Bytes())
			return
		}
		for i := range v.Len() {
			h.value(v.Index(i))
		}
	case reflect.Map:
		keys := v.MapKeys()
		sort.Slice(keys, func(i, j int) bool { return keys[i].String() < keys[j].String() })
		h.num(uint64(len(keys)))
		for _, k := range keys {
			h.str(k.String())
			h.value(v.MapIndex(k))
		}
	case reflect.Struct:
		if opaque(v.Type()) {
			h.str(v.Interface().(fmt.Stringer).String())
			return
		}
		for i := range v.NumField() {
			h.value(v.Field(i))
		}
	case reflect.String:
		h.str(v.String())
	case reflect.Bool:
		if v.Bool() {
			h.num(1)
		} else {
			h.num(0)
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		h.num(uint64(v.Int()))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		h.num(v.Uint())
	case reflect.Float64:
		h.num(math.Float64bits(v.Float()))
	default: // only plain data is modelled: a defect of this package
		panic(fmt.Sprintf("resource: hash of a %s", v.Type()))
	}
}
