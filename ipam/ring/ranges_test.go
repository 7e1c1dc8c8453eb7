package ring

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/ipam/addr"
)

// Cuts says how a transfer changes the number of ranges.
func TestCutsCountsRanges(t *testing.T) {
	rng := rand.New(rand.NewPCG(seed.New(t), 1))
	r := newRing(t, 3)
	first := r.Genesis().Range.Addr().As4()
	for range 2000 {
		from := rng.IntN(200)
		rg := addr.Range{First: netip.AddrFrom4(first), Last: netip.AddrFrom4(first)}
		for range from {
			rg.First = rg.First.Next()
		}
		rg.Last = rg.First
		for range rng.IntN(20) {
			rg.Last = rg.Last.Next()
		}
		to := holder(rng.IntN(3))
		st := r.st.trial()
		want := -len(st.pieces)
		st.assign(rg, to)
		want += len(st.pieces)
		if got := r.st.cuts(rg, to); got != want {
			t.Fatalf("%s to %s: %d ranges more, want %d: %v", rg, to, got, want, r.Entries())
		}
		r.st.assign(rg, to)
	}
}

// crowded returns a ring with n ranges of as many owners.
func crowded(t testing.TB, n int) *Ring {
	wide := netip.MustParsePrefix("10.0.0.0/8")
	r := New(wide, signer(0), nil)
	g := founded(t, wide, 4)
	if _, err := r.Start(g); err != nil {
		t.Fatal(err)
	}
	a := r.st.whole.First
	for i := range n {
		r.st.pieces = append(r.st.pieces[:i], piece{a, holder(i), 0})
		a = a.Next().Next()
	}
	r.st.pieces[0].holder = g.Founders[0]
	r.epoch++
	return r
}

// BenchmarkManyRanges is what a peer does under its lock for one decision, and for one look
// at a wish, in a ring that is full.
func BenchmarkManyRanges(b *testing.B) {
	for _, n := range []int{20_000, MaxRanges} {
		r := crowded(b, n)
		remove := &Action{Kind: Remove, From: holder(n - 1), To: holder(0)}
		b.Run(fmt.Sprintf("check/%d", n), func(b *testing.B) {
			for b.Loop() {
				if err := r.CheckEffect(remove); err != nil {
					b.Fatal(err)
				}
			}
		})
		var many []*Action // a body has maxTakesAll of them
		for i := range 600 {
			many = append(many, &Action{Kind: Remove, From: holder(n - 1 - i), To: holder(0)})
		}
		b.Run(fmt.Sprintf("removals/%d", n), func(b *testing.B) {
			for b.Loop() {
				if r.Body(many) == nil {
					b.Fatal("no body")
				}
			}
		})
		body := r.Body(many)
		b.Run(fmt.Sprintf("body/%d", n), func(b *testing.B) {
			for b.Loop() {
				if _, err := r.CheckBody(body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
