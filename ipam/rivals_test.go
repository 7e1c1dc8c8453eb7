package ipam

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// claimFrom makes a peer claim an address as in use.
func claimFrom(heir, from *node, a netip.Addr) {
	id := from.core.nextID()
	heir.do(func(c *core) {
		_ = c.receive(from.cfg.Self, (&message{kind: msgClaimAsk, id: id, addr: a, inUse: true}).encode())
	})
}

// One host with two names claims the addresses before the host that uses them does, and later ends.
// The host that uses them has claimed them all the time, so nobody else may get them.
func TestTwoNamesThatClaimFirstTakeNothing(t *testing.T) {
	s := newSim(t, seed.New(t))
	heir, dead, used := removedWithoutHeir(t, s)
	renamed := s.lostState(dead, used)
	var liars []*node
	for _, n := range s.nodes {
		if n != heir && n != renamed {
			liars = append(liars, n)
		}
	}
	liars = liars[:2]
	liars[1].at = liars[0] // one underlay address
	lie := func() {
		for _, a := range used {
			for _, l := range liars {
				claimFrom(heir, l, a)
			}
		}
	}
	heir.do(func(c *core) { c.stopKeeping(dead.cfg.Self) }) // the range opens
	lie()
	for range 6 {
		s.run(5 * time.Second)
		lie()
	}
	s.run(2 * time.Second) // between two claims of the host
	lie()
	s.run(rivalTTL - 10*time.Second) // the liars are silent, the host goes on claiming
	stolen := make(map[netip.Addr]bool)
	for range 2000 {
		s.run(10 * time.Millisecond)
		for _, a := range used {
			if o, _ := heir.core.ring.Owner(a); o == liars[0].self() || o == liars[1].self() {
				stolen[a] = true
			}
		}
		for _, a := range used { // one of them wants them as free ones
			if owner, _ := heir.core.ring.Owner(a); owner == heir.self() {
				id := liars[0].core.nextID()
				heir.do(func(c *core) {
					_ = c.receive(liars[0].cfg.Self, (&message{kind: msgClaimAsk, id: id, addr: a}).encode())
				})
			}
		}
	}
	if len(stolen) > 0 {
		t.Errorf("the liar got %d of %d addresses that a host uses and has claimed all the time", len(stolen), len(used))
	}
}

// A liar with made-up names fills the share of peers without an address of their own. The second
// claim of an address that it has claimed counts all the same, so it does not get the address.
func TestFullShareOfClaimsHidesNoSecondClaim(t *testing.T) {
	s := newSim(t, 1)
	n := s.add("10.32.0.0/12", Init{Mode: Consensus, Expect: 1})
	liar := s.add("10.32.0.0/12", Init{Mode: Observer})
	honest := s.add("10.32.0.0/12", Init{Mode: Observer})
	second := s.add("10.32.0.0/12", Init{Mode: Observer})
	honest.at, second.at = liar, liar // all count as one: the same address, or no direct session
	n.allocate("c", "10.32.0.0/12")
	s.run(5 * time.Second)
	trio := []*node{liar, honest, second}
	for i, x := range trio {
		if n.core.hostOf(x.cfg.Self) == x.self() {
			trio[i], trio[2] = trio[2], trio[i]
			break
		}
	}
	liar, honest = trio[0], trio[1]
	all := addr.Of(pfx("10.32.128.0/17"))
	n.do(func(c *core) {
		c.keep(kept{rng: all, from: ring.Holder{Name: peer.Name{2, 7}, Key: peer.KeyID{7}}, until: c.now})
		c.setOwned()
		c.pushKept()
	})
	a := all.First
	for range maxRivalsBy {
		claimFrom(n, liar, a)
		a = a.Next()
	}
	used := slices.Collect(func(yield func(netip.Addr) bool) {
		a := all.First
		for range 20 {
			if !yield(a) {
				return
			}
			a = a.Next()
		}
	})
	taken := 0
	for range 24 {
		for _, a := range used {
			claimFrom(n, honest, a)
		}
		s.run(5 * time.Second)
	}
	for _, a := range used {
		if o, _ := n.core.ring.Owner(a); o == liar.self() {
			taken++
		}
	}
	if taken > 0 {
		t.Errorf("the liar got %d of %d addresses in use", taken, len(used))
	}
}

// The host uses an address, and its claim finds no place, as a liar has filled its share. The
// address is not free while the host has time to claim it again.
func TestClaimWithoutAPlaceKeepsTheAddressFromOthers(t *testing.T) {
	s := newSim(t, 1)
	n := s.add("10.32.0.0/12", Init{Mode: Consensus, Expect: 1})
	liar := s.add("10.32.0.0/12", Init{Mode: Observer})
	honest := s.add("10.32.0.0/12", Init{Mode: Observer})
	second := s.add("10.32.0.0/12", Init{Mode: Observer})
	honest.at, second.at = liar, liar
	n.allocate("c", "10.32.0.0/12")
	s.run(5 * time.Second)
	trio := []*node{liar, honest, second}
	for i, x := range trio {
		if n.core.hostOf(x.cfg.Self) == x.self() {
			trio[i], trio[2] = trio[2], trio[i]
			break
		}
	}
	liar, honest = trio[0], trio[1]
	all := addr.Of(pfx("10.32.128.0/17"))
	n.do(func(c *core) {
		c.keep(kept{rng: all, from: ring.Holder{Name: peer.Name{2, 7}, Key: peer.KeyID{7}}, until: c.now})
		c.setOwned()
		c.pushKept()
	})
	a := all.First
	for range maxRivalsBy {
		claimFrom(n, liar, a)
		a = a.Next()
	}
	for range 60 {
		claimFrom(n, honest, all.Last)
		s.run(regainEvery)
		if n.core.space.Owns(all.Last) {
			t.Fatalf("%s is in use on a host that claims it, and is free", all.Last)
		}
	}
	s.run(rivalTTL)
	if !n.core.space.Owns(all.Last) {
		t.Errorf("%s is still not free", all.Last)
	}
}

// One host that changes its name has no more claims than one that does not.
func TestClaimsOfOneHostUnderManyNames(t *testing.T) {
	s := newSim(t, 1)
	n := s.add("10.32.0.0/12", Init{Mode: Consensus, Expect: 1})
	n.allocate("c", "10.32.0.0/12")
	all := addr.Of(pfx("10.32.128.0/17"))
	n.do(func(c *core) {
		c.keep(kept{rng: all, from: ring.Holder{Name: peer.Name{2, 7}, Key: peer.KeyID{7}}, until: c.now})
		c.setOwned()
		c.pushKept()
	})
	a := all.First
	var first *node
	for range 9 {
		liar := s.add("10.32.0.0/12", Init{Mode: Observer})
		if first == nil {
			first = liar
		} else {
			liar.at = first
		}
		s.run(time.Second)
		for range maxRivalsBy {
			claimFrom(n, liar, a)
			a = a.Next()
		}
		liar.kill()
		if first != liar {
			s.drop(liar)
		}
	}
	if got := len(n.core.rivals); got > maxRivalsBy {
		t.Errorf("one host has %d claims want at most %d", got, maxRivalsBy)
	}
	honest := s.add("10.32.0.0/12", Init{Mode: Observer})
	s.run(time.Second)
	claimFrom(n, honest, all.Last)
	if n.core.rivals[all.Last] == nil {
		t.Error("the claim of another host has no place")
	}
}
