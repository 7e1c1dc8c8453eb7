// Package space keeps the addresses of one peer: the ranges that it owns, and the
// addresses in use.
//
//	owned   |----------------|      |--------|
//	used      |--|  ||                |-----|
//	free    ||    ||  |-------|     ||       |
//
// All three are lists of intervals, so the cost depends on how scattered the
// addresses in use are, and not on the size of the address range. The zero Space
// owns nothing. It is not safe for concurrent use.
//
// An address in use stays in use if its range is lost: a container does not stop
// using it because another peer owns it now.
package space

import (
	"net/netip"
	"slices"

	"github.com/weft-net/weft/ipam/addr"
)

// Space is the part of one address range that one peer owns and uses.
type Space struct {
	owned []addr.Range // normalized by addr.Normal
	used  []addr.Range // normalized by addr.Normal; may have addresses outside owned
}

// SetOwned replaces the owned ranges, which must be normalized by addr.Normal. The
// Space keeps the slice.
func (s *Space) SetOwned(ranges []addr.Range) { s.owned = ranges }

// Owned returns the owned ranges. The slice is read-only.
func (s *Space) Owned() []addr.Range { return s.owned }

// Owns reports whether a is in an owned range.
func (s *Space) Owns(a netip.Addr) bool { return contains(s.owned, a) }

// Uses reports whether a is in use, owned or not.
func (s *Space) Uses(a netip.Addr) bool { return contains(s.used, a) }

// Take marks a as in use and reports whether it was free before.
func (s *Space) Take(a netip.Addr) bool {
	i := find(s.used, a)
	if i < len(s.used) && s.used[i].Contains(a) {
		return false
	}
	joinsLeft := i > 0 && s.used[i-1].Last.Next() == a
	joinsRight := i < len(s.used) && a.Next() == s.used[i].First
	switch {
	case joinsLeft && joinsRight:
		s.used[i-1].Last = s.used[i].Last
		s.used = slices.Delete(s.used, i, i+1)
	case joinsLeft:
		s.used[i-1].Last = a
	case joinsRight:
		s.used[i].First = a
	default:
		s.used = slices.Insert(s.used, i, addr.Single(a))
	}
	return true
}

// Release marks a as free and reports whether it was in use.
func (s *Space) Release(a netip.Addr) bool {
	i := find(s.used, a)
	if i == len(s.used) || !s.used[i].Contains(a) {
		return false
	}
	u := s.used[i]
	switch {
	case u.First == u.Last:
		s.used = slices.Delete(s.used, i, i+1)
	case a == u.First:
		s.used[i].First = a.Next()
	case a == u.Last:
		s.used[i].Last = a.Prev()
	default:
		s.used[i].Last = a.Prev()
		s.used = slices.Insert(s.used, i+1, addr.Range{First: a.Next(), Last: u.Last})
	}
	return true
}

// Allocate marks the lowest free address of hosts as in use and returns it.
func (s *Space) Allocate(hosts addr.Range) (netip.Addr, bool) {
	for _, o := range addr.Within(s.owned, hosts) {
		a := o.First
		i := find(s.used, a)
		// Intervals in use do not touch each other: one step is enough.
		if i < len(s.used) && s.used[i].Contains(a) {
			a = s.used[i].Last.Next()
		}
		if a.IsValid() && o.Contains(a) {
			s.Take(a)
			return a, true
		}
	}
	return netip.Addr{}, false
}

// Free returns the ranges in r that are owned and not in use.
func (s *Space) Free(r addr.Range) []addr.Range {
	return addr.Subtract(addr.Within(s.owned, r), addr.Within(s.used, r))
}

// Unused returns the parts of ranges that are not in use, whoever owns them. ranges must be
// normalized by addr.Normal.
func (s *Space) Unused(ranges []addr.Range) []addr.Range { return addr.Subtract(ranges, s.used) }

// Donation returns the range to give to a peer that has run out of addresses of
// subnet: the biggest free CIDR-aligned block that is at most half of the free
// addresses there. Half is rounded up, so that even the last address is given. Of
// equal blocks it returns the highest, because addresses are allocated from below.
// It returns false if no host address is free. It changes nothing: the caller
// removes the range with SetOwned after the ring has granted it.
func (s *Space) Donation(subnet netip.Prefix) (addr.Range, bool) {
	hosts, err := addr.Hosts(subnet)
	if err != nil {
		return addr.Range{}, false
	}
	limit := addr.Total(s.Free(hosts)).Half()
	if limit.IsZero() {
		return addr.Range{}, false
	}
	best, ok := biggest(s.Free(addr.Of(subnet)), limit)
	if ok && best.First == best.Last && !hosts.Contains(best.First) {
		best, ok = biggest(s.Free(hosts), limit)
	}
	return best, ok
}

func biggest(free []addr.Range, limit addr.Count) (best addr.Range, ok bool) {
	for _, f := range free {
		block := addr.Of(f.Block(limit))
		if !ok || block.Size().Cmp(best.Size()) >= 0 {
			best, ok = block, true
		}
	}
	return best, ok
}

// find returns the index of the first range that does not end before a.
func find(ranges []addr.Range, a netip.Addr) int {
	i, _ := slices.BinarySearchFunc(ranges, a, func(r addr.Range, a netip.Addr) int { return r.Last.Compare(a) })
	return i
}

func contains(ranges []addr.Range, a netip.Addr) bool {
	i := find(ranges, a)
	return i < len(ranges) && ranges[i].Contains(a)
}
