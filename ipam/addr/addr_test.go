package addr

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/seed"
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func ip(s string) netip.Addr    { return netip.MustParseAddr(s) }

func TestEndsOfFamilies(t *testing.T) {
	for _, s := range []string{"0.0.0.0/0", "255.255.255.255/32", "255.255.255.0/24", "::/0", "ffff:ffff::/32", "::/128", "10.32.0.0/12"} {
		p := pfx(s)
		r := Of(p)
		if got := r.Prefixes(); len(got) != 1 || got[0] != p {
			t.Errorf("prefixes of %s = %v", s, got)
		}
		if r.String() != s {
			t.Errorf("%s prints as %s", s, r)
		}
		if got := r.Block(r.Size()); got != p {
			t.Errorf("biggest block of %s = %s", s, got)
		}
	}
	if got := Of(pfx("0.0.0.0/0")).Size(); got != N(1<<32) {
		t.Errorf("size of all IPv4 = %v", got)
	}
	if got := Of(pfx("fd00::/8")).Size(); got != (Count{Hi: 1 << 56}) {
		t.Errorf("size of a /8 = %v", got)
	}
}

func TestHosts(t *testing.T) {
	for _, c := range []struct{ subnet, first, last string }{
		{"10.0.0.0/24", "10.0.0.1", "10.0.0.254"},
		{"10.0.0.4/30", "10.0.0.5", "10.0.0.6"},
		{"255.255.255.252/30", "255.255.255.253", "255.255.255.254"},
		{"fd00::/64", "fd00::1", "fd00::ffff:ffff:ffff:ffff"},
	} {
		r, err := Hosts(pfx(c.subnet))
		if err != nil || r != (Range{ip(c.first), ip(c.last)}) {
			t.Errorf("hosts of %s = %v, %v", c.subnet, r, err)
		}
	}
	for _, s := range []string{"10.0.0.0/31", "10.0.0.0/32", "fd00::/127"} {
		if _, err := Hosts(pfx(s)); err == nil {
			t.Errorf("%s is accepted as a subnet", s)
		}
	}
}

// bitsOf is the slow, obvious set of ranges: one bool for each of the last 256
// addresses of a family.
type bitsOf [256]bool

func (b *bitsOf) ranges(base netip.Addr) (out []Range) {
	n := number(base)
	for i := 0; i < len(b); i++ {
		if !b[i] {
			continue
		}
		j := i
		for j+1 < len(b) && b[j+1] {
			j++
		}
		out = append(out, Range{address(n.Add(N(uint64(i))), base), address(n.Add(N(uint64(j))), base)})
		i = j
	}
	return out
}

func random(rng *rand.Rand) (b bitsOf) {
	for range rng.IntN(6) {
		i := rng.IntN(256)
		for j := i; j < 256 && j < i+rng.IntN(60); j++ {
			b[j] = true
		}
	}
	return b
}

func TestAgainstSlowTwin(t *testing.T) {
	rng := seed.Rand(t)
	for _, base := range []netip.Addr{ip("255.255.255.0"), ip("10.0.0.0"), ip("::"), ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00")} {
		for range 2000 {
			a, b := random(rng), random(rng)
			var minus, union, within bitsOf
			lo := rng.IntN(256)
			hi := lo + rng.IntN(256-lo)
			for i := range a {
				minus[i] = a[i] && !b[i]
				union[i] = a[i] || b[i]
				within[i] = a[i] && i >= lo && i <= hi
			}
			ra, rb := a.ranges(base), b.ranges(base)
			if got := Subtract(ra, rb); !slices.Equal(got, minus.ranges(base)) {
				t.Fatalf("%v minus %v = %v", ra, rb, got)
			}
			mixed := append(slices.Clone(ra), rb...)
			rng.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
			if got := Normal(mixed); !slices.Equal(got, union.ranges(base)) {
				t.Fatalf("%v and %v = %v", ra, rb, got)
			}
			n := number(base)
			bound := Range{address(n.Add(N(uint64(lo))), base), address(n.Add(N(uint64(hi))), base)}
			if got := Within(ra, bound); !slices.Equal(got, within.ranges(base)) {
				t.Fatalf("%v within %v = %v", ra, bound, got)
			}
			var joined []Range
			for _, p := range bound.Prefixes() {
				joined = append(joined, Of(p))
			}
			if got := Normal(joined); len(got) != 1 || got[0] != bound {
				t.Fatalf("prefixes of %v join to %v", bound, got)
			}
			limit := N(uint64(1 + rng.IntN(256)))
			block := Of(bound.Block(limit))
			if !bound.Covers(block) || block.Size().Cmp(limit) > 0 {
				t.Fatalf("block of at most %v in %v = %v", limit, bound, block)
			}
			for _, p := range bound.Prefixes() {
				if s := Of(p).Size(); s.Cmp(limit) <= 0 && s.Cmp(block.Size()) > 0 {
					t.Fatalf("block of at most %v in %v = %v, but %v is bigger", limit, bound, block, p)
				}
			}
		}
	}
}

func TestSplitIsAlignedAndWhole(t *testing.T) {
	for _, s := range []string{"10.32.0.0/12", "10.0.0.0/29", "fd00:1::/48", "::/0"} {
		for n := 1; n <= 40; n++ {
			var got []Range
			for _, r := range Split(pfx(s), n) {
				if !r.IsValid() {
					continue
				}
				if len(r.Prefixes()) != 1 {
					t.Errorf("%s among %d: %v is not aligned", s, n, r)
				}
				got = append(got, r)
			}
			if got = Normal(got); len(got) != 1 || got[0] != Of(pfx(s)) {
				t.Errorf("%s among %d covers %v", s, n, got)
			}
		}
	}
}
