package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
)

// The voters do not agree to what a peer offered: it can use the range again after a while.
func TestOfferThatIsNotDecidedIsRevoked(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes := s.addAll(4, addrRange)
	for i, n := range nodes {
		n.allocate(fmt.Sprint("c", i), addrRange)
	}
	s.converged(20 * time.Second)
	for _, n := range nodes[1:] {
		n.core.cfg.maxRanges = 8 // for them the ring has too many already
	}
	free := nodes[0].core.space.Free(addr.Of(pfx(addrRange)))
	a := free[len(free)/2].Last.Prev()
	nodes[3].begin(func(c *core, id uint64) { c.claim(id, "x", netip.PrefixFrom(a, 20)) })
	s.run(10 * time.Second)
	if nodes[0].core.space.Owns(a) {
		t.Fatal("it was not offered")
	}
	nodes[3].launch() // it does not ask again, and what it wanted is no request any more
	s.run(offerTTL + 10*time.Second)
	if !nodes[0].core.space.Owns(a) || len(nodes[0].core.offers) > 0 {
		t.Errorf("%d offers wait, and %s is locked", len(nodes[0].core.offers), a)
	}
}

// Other decisions go on while an offer waits to be revoked. The host asks for one revocation, and not for
// another one after each decision.
func TestOfferIsRevokedOnce(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, _ := s.fiveInUse(keepRange, 1)
	giver, to := nodes[0], nodes[4]
	for _, n := range nodes {
		n.core.deciding = true // only what this test decides
	}
	giver.do(func(c *core) {
		if !c.give(to.self(), addr.Single(c.space.Free(addr.Of(pfx(keepRange)))[0].First), 1) {
			t.Fatal("it gives nothing")
		}
	})
	to.kill()
	for range 3 {
		s.run(2 * giver.cfg.Absence)
		s.decideSnapshot()
	}
	s.run(time.Second)
	n := 0
	for k := range giver.core.wishes {
		if k.kind == ring.Transfer {
			n++
		}
	}
	if n != 1 {
		t.Errorf("it asks for %d transfers", n)
	}
}

// A member cuts what it owns into single addresses, which it gives to peers that it made up
// and that cut on. The ring does not fill, and the others still give each other addresses,
// also to hosts that only relays reach.
func TestMemberThatCutsItsRangesStopsNobody(t *testing.T) {
	const wide = "10.0.0.0/12"
	s := newSim(t, seed.New(t))
	nodes := s.addAll(4, wide)
	liar := nodes[3]
	madeUp := []*node{liar}
	for range 6 {
		m := s.add(wide, Init{Mode: Observer})
		m.at = liar
		madeUp = append(madeUp, m)
	}
	for _, n := range s.nodes {
		n.cfg.maxRanges = 4096
		n.launch()
	}
	for i, n := range s.nodes {
		n.allocate(fmt.Sprint("c", i), wide)
	}
	s.converged(20 * time.Second)
	for range 60 {
		for i, m := range madeUp {
			m.do(func(c *core) {
				to := madeUp[(i+1)%len(madeUp)].self()
				n := 0
				for _, r := range c.ring.Owned(c.self) {
					for a := r.First.Next(); n < 60 && r.Contains(a) && r.Contains(a.Next()); a = a.Next().Next() {
						if act, err := c.ring.Give(c.cfg.Signer, c.self, to, addr.Single(a)); err == nil {
							c.wish(act)
							n++
						}
					}
				}
				c.pushDecide()
			})
		}
		s.run(500 * time.Millisecond)
	}
	honest := nodes[0]
	if _, total := honest.core.ring.Ranges(); total < 400 || total > 4096*3/4 {
		t.Errorf("the ring has %d ranges", total)
	}
	relayed := s.add(wide, Init{Mode: Observer})
	s.direct = func(a, b *node) bool { return a != relayed && b != relayed }
	relayed.allocate("first", wide)
	for i, n := range slices.Concat(nodes[:3], []*node{relayed}) {
		owner := nodes[(i+1)%3]
		free := owner.core.space.Free(addr.Of(pfx(wide)))
		a := free[len(free)/2].Last
		id := n.begin(func(c *core, id uint64) { c.claim(id, "claimed", netip.PrefixFrom(a, 12)) })
		if r, ok := n.await(id, 20*time.Second); !ok || r.err != nil {
			t.Errorf("%s claims %s: %v %s", n.cfg.Self, a, r.err, n.reason(id))
		}
	}
}
