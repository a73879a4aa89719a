package intercept

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Show implements Manager.
func (m *manager) Show(ctx context.Context) (State, error) {
	st := State{Mode: ModeNFT.String(), Capture: CaptureNone}
	if err := ctx.Err(); err != nil {
		return st, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.open()
	if err != nil {
		return st, err
	}
	defer s.close()
	err = s.read(&st)
	return st, explain(err)
}

func (s sockets) read(st *State) error {
	lo, err := s.route.loopback()
	if err != nil && lo == 0 {
		return err
	}
	routes, policies, err := s.route.ours(lo)
	if err != nil {
		return err
	}
	for _, r := range routes {
		st.Routes = append(st.Routes, strings.Replace(r.String(), " add ", " ", 1))
	}
	for _, p := range policies {
		st.Routes = append(st.Routes, strings.Replace(p.String(), " add ", " ", 1))
	}
	there, open, err := s.nft.table()
	if err != nil || !there {
		return err
	}
	st.Installed, st.FailOpen = true, open
	if err := s.readCapture(st); err != nil {
		return err
	}
	if err := s.readRules(st); err != nil {
		return err
	}
	return s.readExclusions(st)
}

// readCapture: on, for how long, or off.
func (s sockets) readCapture(st *State) error {
	elems, ok, err := s.nft.elementsOf(setCapture)
	if err != nil {
		return err
	}
	st.Capture = CaptureLapsed
	if !ok || len(elems) == 0 {
		return nil
	}
	st.Capture = CaptureStands
	for _, e := range elems {
		if e.expires > 0 {
			st.Capture = CaptureHeld
			if st.Lapses == 0 || e.expires < st.Lapses {
				st.Lapses = e.expires
			}
		}
	}
	st.LapsesSeconds = st.Lapses.Seconds()
	return nil
}

// readRules: the workloads, their ports and what was captured.
func (s sockets) readRules(st *State) error {
	rules, err := s.nft.rules()
	if err != nil {
		return err
	}
	outs := map[uint16]*WorkloadState{}
	var order []uint16
	out := func(port uint16) *WorkloadState {
		if outs[port] == nil {
			outs[port] = &WorkloadState{OutboundPort: port}
			order = append(order, port)
		}
		return outs[port]
	}
	for _, r := range rules {
		if port, ok := strings.CutPrefix(r.chain, outPrefix); ok {
			n, _ := strconv.ParseUint(port, 10, 16)
			w := out(uint16(n))
			if dns, ok := strings.CutPrefix(r.comment, commentQueries); ok {
				d, _ := strconv.ParseUint(dns, 10, 16)
				st.DNSPort = uint16(d)
				w.Queries += r.packets
			} else if r.comment == commentConnections {
				w.Connections += r.packets
			}
			continue
		}
		if to, ok := strings.CutPrefix(r.chain, inPrefix); ok {
			mode, port, _ := strings.Cut(to, "_")
			n, _ := strconv.ParseUint(port, 10, 16)
			st.InboundMode, st.InboundPort = mode, uint16(n)
			if r.comment == commentConnections {
				st.InboundConnections += r.packets
			}
			continue
		}
		if g, ok := strings.CutPrefix(r.comment, commentCgroup); ok {
			st.ExcludeCgroups = append(st.ExcludeCgroups, g)
		} else if i, ok := strings.CutPrefix(r.comment, commentInterface); ok && !slices.Contains(st.ExcludeInterfaces, i) {
			st.ExcludeInterfaces = append(st.ExcludeInterfaces, i)
		} else if w, ok := strings.CutPrefix(r.comment, commentWorkload); ok {
			readWorkload(out(r.jump), w)
		}
	}
	for _, port := range order {
		st.Workloads = append(st.Workloads, *outs[port])
	}
	return nil
}

// readWorkload reads "web", "web, uid 1001" or "web, cgroup a/b".
func readWorkload(w *WorkloadState, s string) {
	w.Name = s
	if i := strings.LastIndex(s, ", uid "); i >= 0 {
		if uid, err := strconv.ParseUint(s[i+len(", uid "):], 10, 32); err == nil {
			u := uint32(uid)
			w.Name, w.UID = s[:i], &u
		}
	} else if i := strings.Index(s, ", cgroup "); i >= 0 {
		w.Name, w.Cgroup = s[:i], s[i+len(", cgroup "):]
	}
}

func (s sockets) readExclusions(st *State) error {
	for _, e := range []struct {
		set string
		to  *[]string
	}{
		{setServices, &st.InboundPorts}, {setInPorts, &st.ExcludeInboundPorts}, {setOutPorts, &st.ExcludeOutboundPorts},
		{setIn4, &st.ExcludeInboundCIDRs}, {setIn6, &st.ExcludeInboundCIDRs},
		{setOut4, &st.ExcludeOutboundCIDRs}, {setOut6, &st.ExcludeOutboundCIDRs},
	} {
		elems, _, err := s.nft.elementsOf(e.set)
		if err != nil {
			return err
		}
		*e.to = append(*e.to, intervals(elems)...)
	}
	for _, e := range []struct {
		set string
		to  *[]uint32
	}{{setExemptUIDs, &st.ExcludeUIDs}, {setExemptGIDs, &st.ExcludeGIDs}, {setExemptDNS, &st.ExcludeDNSUIDs}} {
		elems, _, err := s.nft.elementsOf(e.set)
		if err != nil {
			return err
		}
		for _, el := range elems {
			*e.to = append(*e.to, u32(el.key))
		}
		slices.Sort(*e.to)
	}
	return nil
}

// intervals puts beginnings and ends together: ports by their size of two bytes,
// else prefixes.
func intervals(elems []kernelElement) (out []string) {
	slices.SortFunc(elems, func(a, b kernelElement) int {
		if c := bytes.Compare(a.key, b.key); c != 0 {
			return c
		}
		if a.end == b.end {
			return 0
		}
		if a.end {
			return -1
		}
		return 1
	})
	for i, e := range elems {
		if e.end {
			continue
		}
		var end []byte
		if i+1 < len(elems) && elems[i+1].end {
			end = elems[i+1].key
		}
		out = append(out, interval(e.key, end))
	}
	return out
}

// interval is from, up to but without end; nil stands for all that follow.
func interval(from, end []byte) string {
	if len(from) == 2 {
		last := uint16(65535)
		if end != nil {
			last = binary.BigEndian.Uint16(end) - 1
		}
		return PortRange{binary.BigEndian.Uint16(from), last}.String()
	}
	addr, ok := netip.AddrFromSlice(from)
	if !ok {
		return fmt.Sprintf("%x", from)
	}
	// The prefix that begins there and ends where the interval does.
	for n := addr.BitLen() - trailingZeros(from); n <= addr.BitLen(); n++ {
		p := netip.PrefixFrom(addr, n)
		next := lastOf(p).Next()
		if !next.IsValid() && end == nil || next.IsValid() && bytes.Equal(next.AsSlice(), end) {
			return p.String()
		}
	}
	return addr.String() + "-"
}

func trailingZeros(b []byte) (n int) {
	for _, x := range slices.Backward(b) {
		if x != 0 {
			return n + bits.TrailingZeros8(x)
		}
		n += 8
	}
	return n
}
