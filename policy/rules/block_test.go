package rules

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/policy/model"
)

// TestBlockRanges compares ranges with the blocks that they were made of, for all values of the
// last byte, both at the end of the address space and within it.
func TestBlockRanges(t *testing.T) {
	r := seed.Rand(t)
	for range 2000 {
		base := []byte{255, 255, 255, 0}
		if r.IntN(2) == 0 {
			base = []byte{10, 1, 2, 0}
		}
		at := func(b int) netip.Addr { return netip.AddrFrom4([4]byte{base[0], base[1], base[2], byte(b)}) }
		prefix := func(bits int) netip.Prefix { return netip.PrefixFrom(at(r.IntN(256)), bits).Masked() }
		var peers []model.Peer
		for range 1 + r.IntN(3) {
			p := model.Peer{Block: prefix(24 + r.IntN(9))}
			for range r.IntN(4) {
				p.Except = append(p.Except, prefix(25+r.IntN(8)))
			}
			peers = append(peers, p)
		}
		ranges := blockRanges(peers, IPv4)
		for b := range 256 {
			in := slices.ContainsFunc(ranges, func(x Range) bool { return x.From.Compare(at(b)) <= 0 && at(b).Compare(x.To) <= 0 })
			want := slices.ContainsFunc(peers, func(p model.Peer) bool { return p.Contains(at(b)) })
			if in != want {
				t.Fatalf("%v: %s is in %v: %v", peers, at(b), ranges, in)
			}
		}
		for i := 1; i < len(ranges); i++ {
			if ranges[i].From.Compare(ranges[i-1].To.Next()) <= 0 {
				t.Fatalf("%v: ranges %v touch", peers, ranges)
			}
		}
	}
}
