package policy

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/weft-net/weft/policy/rules"
)

// perMessage is the number of elements in one netlink message. The kernel limits the list of a
// message to 64 KB.
const perMessage = 400

func (t transaction) elements(s *rules.Set, do func(*nftables.Set, []nftables.SetElement) error, all []nftables.SetElement) error {
	for part := range slices.Chunk(all, perMessage) {
		if err := do(kernelSet(s), part); err != nil {
			return fmt.Errorf("change elements of set %s: %w", s.Name, err)
		}
	}
	return nil
}

func kernelSet(s *rules.Set) *nftables.Set {
	set := &nftables.Set{Table: inetTable, Name: s.Name}
	addr := nftables.TypeIPAddr
	if s.Family == rules.IPv6 {
		addr = nftables.TypeIP6Addr
	}
	several := func(types ...nftables.SetDatatype) {
		set.KeyType, set.Concatenation = nftables.MustConcatSetType(types...), true
	}
	switch s.Kind {
	case rules.Addrs:
		set.KeyType = addr
	case rules.AddrPairs:
		several(addr, addr)
	case rules.AddrPorts:
		several(addr, nftables.TypeInetService)
	case rules.ProtoPorts:
		several(nftables.TypeInetProto, nftables.TypeInetService)
	case rules.AddrChains:
		set.KeyType, set.IsMap, set.DataType = addr, true, nftables.TypeVerdict
	case rules.IfindexChain:
		// The type is a mark, not an interface index: the rules look it up by the packet's mark.
		set.KeyType, set.IsMap, set.DataType = nftables.TypeMark, true, nftables.TypeVerdict
	case rules.Ranges:
		set.KeyType, set.Interval = addr, true
	}
	return set
}

func elementsOf(s *rules.Set, entries []rules.Entry) []nftables.SetElement {
	all := make([]nftables.SetElement, len(entries))
	for i, e := range entries {
		all[i].Key = key(s.Kind, e.Element)
		if e.Chain != "" {
			all[i].VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: e.Chain}
		}
	}
	return all
}

// key encodes an element in the layout that rules use for registers: each field starts at a
// register of 4 bytes.
func key(k rules.Kind, e rules.Element) []byte {
	port := append(be16(e.Port), 0, 0)
	switch k {
	case rules.AddrPairs:
		return append(e.Addr.AsSlice(), e.Addr.AsSlice()...)
	case rules.AddrPorts:
		return append(e.Addr.AsSlice(), port...)
	case rules.ProtoPorts:
		return append([]byte{byte(e.Protocol), 0, 0, 0}, port...)
	case rules.IfindexChain:
		return ne32(e.Ifindex)
	}
	return e.Addr.AsSlice()
}

// rangesOf encodes ranges as the kernel does: one element at the start, and one with the
// interval-end flag behind the last address.
func rangesOf(ranges []rules.Range) []nftables.SetElement {
	var all []nftables.SetElement
	for _, r := range ranges {
		all = append(all, nftables.SetElement{Key: r.From.AsSlice()})
		if end := r.To.Next(); end.IsValid() {
			all = append(all, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return all
}
