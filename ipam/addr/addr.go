// Package addr does arithmetic on ranges of IP addresses, of either family and of
// any size up to the whole family.
//
// All types are plain values. A Range has an inclusive end, so that the last
// address of a family needs no address after it. Counts saturate: the 2^128
// addresses of ::/0 count as 2^128-1.
package addr

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
)

// Count is a number of addresses, or an address taken as a number.
type Count struct{ Hi, Lo uint64 }

// One is the Count of a single address.
var One = Count{Lo: 1}

// N returns the Count of n addresses.
func N(n uint64) Count { return Count{Lo: n} }

// Cmp compares two counts: -1, 0 or 1.
func (c Count) Cmp(d Count) int {
	return cmp.Or(cmp.Compare(c.Hi, d.Hi), cmp.Compare(c.Lo, d.Lo))
}

// IsZero reports whether c is zero.
func (c Count) IsZero() bool { return c == Count{} }

// Add returns c+d, at most 2^128-1.
func (c Count) Add(d Count) Count {
	lo, carry := bits.Add64(c.Lo, d.Lo, 0)
	hi, carry := bits.Add64(c.Hi, d.Hi, carry)
	if carry != 0 {
		return Count{^uint64(0), ^uint64(0)}
	}
	return Count{hi, lo}
}

// Sub returns c-d, at least zero.
func (c Count) Sub(d Count) Count {
	lo, borrow := bits.Sub64(c.Lo, d.Lo, 0)
	hi, borrow := bits.Sub64(c.Hi, d.Hi, borrow)
	if borrow != 0 {
		return Count{}
	}
	return Count{hi, lo}
}

// Half returns c/2, rounded up.
func (c Count) Half() Count {
	return Count{c.Hi >> 1, c.Lo>>1 | c.Hi<<63}.Add(N(c.Lo & 1))
}

// Float returns c as a floating-point number, for weights and percentages.
func (c Count) Float() float64 { return float64(c.Hi)*(1<<64) + float64(c.Lo) }

// Uint64 returns c, at most 2^64-1.
func (c Count) Uint64() uint64 {
	if c.Hi != 0 {
		return ^uint64(0)
	}
	return c.Lo
}

// String returns c in decimal if it fits 64 bits, else rounded.
func (c Count) String() string {
	if c.Hi == 0 {
		return strconv.FormatUint(c.Lo, 10)
	}
	return strconv.FormatFloat(c.Float(), 'e', 3, 64)
}

// log2 returns the greatest k with 2^k <= c, which must not be zero.
func (c Count) log2() int {
	if c.Hi != 0 {
		return 127 - bits.LeadingZeros64(c.Hi)
	}
	return 63 - bits.LeadingZeros64(c.Lo)
}

func pow2(k int) Count {
	if k >= 64 {
		return Count{Hi: 1 << (k - 64)}
	}
	return Count{Lo: 1 << k}
}

// trailingZeros returns how many low bits of c are zero: 128 for zero.
func (c Count) trailingZeros() int {
	if c.Lo != 0 {
		return bits.TrailingZeros64(c.Lo)
	}
	return 64 + bits.TrailingZeros64(c.Hi)
}

func number(a netip.Addr) Count {
	if a.Is4() {
		b := a.As4()
		return Count{Lo: uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return Count{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func address(n Count, like netip.Addr) netip.Addr {
	if like.Is4() {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(n.Lo))
		return netip.AddrFrom4(b)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], n.Hi)
	binary.BigEndian.PutUint64(b[8:], n.Lo)
	return netip.AddrFrom16(b)
}

// Range is the addresses from First to Last, both included, of one family and
// without zones. The zero Range is not valid and has no address.
type Range struct{ First, Last netip.Addr }

// Single returns the Range of a alone.
func Single(a netip.Addr) Range { return Range{a, a} }

// Of returns the Range of all addresses of p.
func Of(p netip.Prefix) Range {
	first := p.Masked().Addr()
	host := first.BitLen() - p.Bits()
	n := number(first)
	if host == 128 {
		n = Count{^uint64(0), ^uint64(0)}
	} else {
		n = n.Add(pow2(host).Sub(One))
	}
	return Range{first, address(n, first)}
}

// Hosts returns the addresses of the subnet p that a host may have: without the
// network and broadcast addresses in IPv4, without the subnet-router anycast
// address (RFC 4291 section 2.6.1) in IPv6. It returns an error if p has fewer than
// two host addresses.
func Hosts(p netip.Prefix) (Range, error) {
	if host := p.Addr().BitLen() - p.Bits(); host < 2 {
		return Range{}, fmt.Errorf("subnet %s is too small: at least a /%d is needed", p, p.Addr().BitLen()-2)
	}
	r := Of(p)
	r.First = r.First.Next()
	if p.Addr().Is4() {
		r.Last = r.Last.Prev()
	}
	return r, nil
}

// IsValid reports whether r has an address, and both ends are of one family, without
// a zone, and not IPv4-mapped.
func (r Range) IsValid() bool {
	return r.First.IsValid() && r.First.BitLen() == r.Last.BitLen() && r.First.Zone() == "" &&
		r.Last.Zone() == "" && !r.First.Is4In6() && !r.Last.Is4In6() && !r.Last.Less(r.First)
}

// Size returns the number of addresses in r.
func (r Range) Size() Count {
	if !r.IsValid() {
		return Count{}
	}
	return number(r.Last).Sub(number(r.First)).Add(One)
}

// Contains reports whether a is in r.
func (r Range) Contains(a netip.Addr) bool {
	return a.BitLen() == r.First.BitLen() && !a.Less(r.First) && !r.Last.Less(a)
}

// Covers reports whether all of s is in r.
func (r Range) Covers(s Range) bool { return r.Contains(s.First) && r.Contains(s.Last) }

// Overlaps reports whether r and s share an address.
func (r Range) Overlaps(s Range) bool {
	return r.First.BitLen() == s.First.BitLen() && !s.Last.Less(r.First) && !r.Last.Less(s.First)
}

// Intersect returns the addresses in both r and s, and whether there are any.
func (r Range) Intersect(s Range) (Range, bool) {
	if !r.Overlaps(s) {
		return Range{}, false
	}
	if r.First.Less(s.First) {
		r.First = s.First
	}
	if s.Last.Less(r.Last) {
		r.Last = s.Last
	}
	return r, true
}

// String returns the range as a prefix if it is one, else as first-last.
func (r Range) String() string {
	if !r.IsValid() {
		return "none"
	}
	if p := r.lastBlock(r.Size()); Of(p) == r {
		return p.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

// Block returns the biggest CIDR-aligned block of at most limit addresses that
// lies in r, the highest of those of equal size. Limit must not be zero.
func (r Range) Block(limit Count) netip.Prefix { return r.lastBlock(limit) }

func (r Range) lastBlock(limit Count) netip.Prefix {
	first, size := number(r.First), r.Size()
	if limit.Cmp(size) < 0 {
		size = limit
	}
	width := r.First.BitLen()
	// The count of all of IPv6 saturates. No other block has 2^128 addresses.
	if width == 128 && size == (Count{^uint64(0), ^uint64(0)}) && first.IsZero() {
		return netip.PrefixFrom(r.First, 0)
	}
	for k := size.log2(); ; k-- {
		step := pow2(k)
		// The highest multiple of step with step addresses up to the last.
		last := number(r.Last)
		if last.Cmp(step.Sub(One)) < 0 {
			continue
		}
		base := last.Sub(step.Sub(One))
		base = align(base, k)
		if base.Cmp(first) >= 0 {
			return netip.PrefixFrom(address(base, r.First), width-k)
		}
	}
}

// align rounds n down to a multiple of 2^k.
func align(n Count, k int) Count {
	if k >= 64 {
		return Count{Hi: n.Hi &^ (1<<(k-64) - 1)}
	}
	return Count{n.Hi, n.Lo &^ (1<<k - 1)}
}

// Prefixes returns the fewest prefixes that together are r, in order.
func (r Range) Prefixes() []netip.Prefix {
	var out []netip.Prefix
	width := r.First.BitLen()
	for r.IsValid() {
		n, size := number(r.First), r.Size()
		k := min(n.trailingZeros(), size.log2())
		if size == (Count{^uint64(0), ^uint64(0)}) && n.IsZero() {
			k = 128
		}
		p := netip.PrefixFrom(r.First, width-min(k, width))
		out = append(out, p)
		last := Of(p).Last
		if last == r.Last {
			break
		}
		r.First = last.Next()
	}
	return out
}

// Normal sorts ranges and joins those that touch or overlap, in place. All
// must be valid and of one family.
func Normal(ranges []Range) []Range {
	slices.SortFunc(ranges, func(a, b Range) int { return a.First.Compare(b.First) })
	out := ranges[:0]
	for _, r := range ranges {
		if n := len(out); n > 0 && touches(out[n-1], r) {
			if out[n-1].Last.Less(r.Last) {
				out[n-1].Last = r.Last
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

// touches reports whether b, which does not begin before a, continues it.
func touches(a, b Range) bool {
	next := a.Last.Next()
	return !next.IsValid() || !next.Less(b.First)
}

// Subtract returns the addresses of from that are not in what. Both must be
// normalized by Normal.
func Subtract(from, what []Range) []Range {
	var out []Range
	for _, r := range from {
		i, _ := slices.BinarySearchFunc(what, r.First, func(w Range, a netip.Addr) int { return w.Last.Compare(a) })
		left := true
		for ; i < len(what) && !r.Last.Less(what[i].First); i++ {
			w := what[i]
			if r.First.Less(w.First) {
				out = append(out, Range{r.First, w.First.Prev()})
			}
			if !w.Last.Less(r.Last) {
				left = false
				break
			}
			r.First = w.Last.Next()
		}
		if left {
			out = append(out, r)
		}
	}
	return out
}

// Within returns the parts of ranges that lie in bound. ranges must be normalized by
// Normal.
func Within(ranges []Range, bound Range) []Range {
	var out []Range
	i, _ := slices.BinarySearchFunc(ranges, bound.First, func(w Range, a netip.Addr) int { return w.Last.Compare(a) })
	for ; i < len(ranges); i++ {
		part, ok := ranges[i].Intersect(bound)
		if !ok {
			break
		}
		out = append(out, part)
	}
	return out
}

// Total returns the number of addresses in ranges, which must not overlap.
func Total(ranges []Range) (c Count) {
	for _, r := range ranges {
		c = c.Add(r.Size())
	}
	return c
}

// Split divides p among n owners into CIDR-aligned parts, in order, as evenly as
// powers of two allow. If p has fewer addresses than owners, the last owners get an
// invalid Range.
func Split(p netip.Prefix, n int) []Range {
	out := make([]Range, n)
	split(p.Masked(), out)
	return out
}

func split(p netip.Prefix, out []Range) {
	if len(out) == 0 {
		return
	}
	if len(out) == 1 || p.IsSingleIP() {
		out[0] = Of(p)
		return
	}
	whole := Of(p)
	low := netip.PrefixFrom(p.Addr(), p.Bits()+1)
	high := netip.PrefixFrom(Of(low).Last.Next(), p.Bits()+1)
	if !whole.Contains(high.Addr()) {
		panic("addr: upper half is outside the whole")
	}
	half := (len(out) + 1) / 2
	split(low, out[:half])
	split(high, out[half:])
}
