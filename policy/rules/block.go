package rules

import (
	"net/netip"
	"slices"

	"github.com/weft-net/weft/policy/model"
)

// blockRanges returns the addresses of one family that are in the peers' blocks, as disjoint,
// sorted ranges.
func blockRanges(peers []model.Peer, f Family) []Range {
	var all []Range
	for _, p := range peers {
		if p.Block.IsValid() && familyOf(p.Block.Addr()) == f {
			all = append(all, subtract(rangeOf(p.Block), p.Except)...)
		}
	}
	return merge(all)
}

// merge sorts ranges and merges those that overlap or touch.
func merge(ranges []Range) []Range {
	slices.SortFunc(ranges, func(a, b Range) int { return a.From.Compare(b.From) })
	var joined []Range
	for _, r := range ranges {
		if n := len(joined); n > 0 {
			last := &joined[n-1]
			if next := last.To.Next(); !next.IsValid() || r.From.Compare(next) <= 0 {
				if r.To.Compare(last.To) > 0 {
					last.To = r.To
				}
				continue
			}
		}
		joined = append(joined, r)
	}
	return joined
}

// subtract returns the parts of a range that are in none of the prefixes.
func subtract(whole Range, except []netip.Prefix) []Range {
	holes := make([]Range, len(except))
	for i, e := range except {
		holes[i] = rangeOf(e)
	}
	var left []Range
	from := whole.From
	for _, h := range merge(holes) {
		if h.To.Compare(from) < 0 || h.From.Compare(whole.To) > 0 {
			continue
		}
		if h.From.Compare(from) > 0 {
			left = append(left, Range{from, h.From.Prev()})
		}
		from = h.To.Next()
		if !from.IsValid() {
			return left
		}
	}
	if from.Compare(whole.To) <= 0 {
		left = append(left, Range{from, whole.To})
	}
	return left
}

func rangeOf(p netip.Prefix) Range {
	last := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(last)*8; bit++ {
		last[bit/8] |= 1 << (7 - bit%8)
	}
	to, _ := netip.AddrFromSlice(last)
	return Range{p.Masked().Addr(), to}
}
