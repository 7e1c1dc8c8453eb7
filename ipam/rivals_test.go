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
	"github.com/weft-net/weft/mesh/peer"
)

// claimFrom makes a peer claim an address as in use.
func claimFrom(heir, from *node, a netip.Addr) {
	id := from.core.nextID()
	heir.do(func(c *core) {
		_ = c.receive(from.cfg.Self, (&message{kind: msgClaimAsk, id: id, addr: a, inUse: true}).encode())
	})
}

// openRange makes a node that owns everything and takes claims of a part of it.
func (s *sim) openRange(whole, part string) (heir *node, open addr.Range) {
	heir, open = s.add(whole, Init{Mode: Consensus, Expect: 1}), addr.Of(pfx(part))
	heir.allocate("c", whole)
	heir.do(func(c *core) {
		c.keep(kept{rng: open, from: ring.Holder{Name: peer.Name{2, 7}, Key: peer.KeyID{7}}, until: c.now, heir: true})
		c.setOwned()
		c.pushKept()
	})
	return heir, open
}

// fullShare makes two nodes that share their claims with all that have no address of their own. The
// first one has filled the share.
func (s *sim) fullShare(heir *node, open addr.Range) (liar, honest *node) {
	var trio []*node
	for range 3 { // one of them is the host at the address
		n := s.add(heir.cfg.Range.String(), Init{Mode: Observer})
		if len(trio) > 0 {
			n.at = trio[0]
		}
		trio = append(trio, n)
	}
	s.run(5 * time.Second)
	trio = slices.DeleteFunc(trio, func(n *node) bool { return heir.core.hostOf(n.cfg.Self) == n.self() })
	a := open.First
	for range maxRivalsBy {
		claimFrom(heir, trio[0], a)
		a = a.Next()
	}
	return trio[0], trio[1]
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
	n, all := s.openRange("10.32.0.0/12", "10.32.128.0/17")
	liar, honest := s.fullShare(n, all)
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
	n, all := s.openRange("10.32.0.0/12", "10.32.128.0/17")
	_, honest := s.fullShare(n, all)
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

// One host that changes its name has no more claims than one that does not, also if it has a new
// address of its IPv6 network each time.
func TestClaimsOfOneHostUnderManyNames(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		s := newSim(t, 1)
		n, all := s.openRange("10.32.0.0/12", "10.32.128.0/17")
		a := all.First
		var first *node
		for i := range 9 {
			liar := s.add("10.32.0.0/12", Init{Mode: Observer})
			if first == nil {
				first = liar
			}
			if ipv6 {
				liar.underlay = netip.AddrFrom16([16]byte{0xfd, 15: byte(i + 1)})
			} else if liar != first {
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
			t.Errorf("IPv6 %v: one host has %d claims, want at most %d", ipv6, got, maxRivalsBy)
		}
		honest := s.add("10.32.0.0/12", Init{Mode: Observer})
		s.run(time.Second)
		claimFrom(n, honest, all.Last)
		if n.core.rivals[all.Last] == nil {
			t.Errorf("IPv6 %v: the claim of another host has no place", ipv6)
		}
	}
}

// A host that lost its state has a full bridge: all its containers have addresses of a removed name.
// It claims each of them before the range is free.
func TestFullBridgeClaimsAllItsAddresses(t *testing.T) {
	s := newSim(t, seed.New(t))
	s.tickEvery = tickEvery
	n := s.add("10.32.0.0/12", Init{Mode: Consensus, Expect: 1})
	host := s.add("10.32.0.0/12", Init{Mode: Observer})
	n.allocate("c", "10.32.0.0/12")
	s.converged(20 * time.Second)
	open := addr.Of(pfx("10.32.128.0/17"))
	n.do(func(c *core) {
		c.keep(kept{rng: open, from: ring.Holder{Name: peer.Name{2, 7}, Key: peer.KeyID{7}}, until: c.now, heir: true})
		c.setOwned()
		c.pushKept()
	})
	var used []netip.Addr
	host.do(func(c *core) {
		a := open.First
		for i := range 1023 {
			c.hold(fmt.Sprint("used", i), netip.PrefixFrom(a, 12))
			used, a = append(used, a), a.Next()
		}
	})
	s.run(claimsFirst - time.Second)
	for _, a := range used {
		if len(n.core.rivals[a]) != 1 {
			t.Fatalf("%s is not claimed", a)
		}
	}
	s.run(10 * time.Second)
	for _, a := range used {
		if n.core.space.Owns(a) {
			t.Fatalf("%s is free", a)
		}
	}
}

// The heir and the host that uses the addresses are cut off from the voters, so that what the heir
// gives to the host stays undecided, and is void in the end. The addresses are not free meanwhile.
func TestAddressInUseStaysSoUntilItIsDecided(t *testing.T) {
	s := newSim(t, seed.New(t))
	heir, dead, used := removedWithoutHeir(t, s)
	renamed := s.lostState(dead, used)
	heir.removes(dead)
	s.run(5 * time.Second)
	s.cut = func(a, b *node) bool { return (a == heir || a == renamed) != (b == heir || b == renamed) }
	for at := time.Duration(0); at < claimsFirst+offerTTL+time.Minute; at += simStep {
		if at == claimsFirst+offerTTL+30*time.Second {
			s.cut = func(a, b *node) bool { return a == renamed || b == renamed } // it cannot claim again
		}
		s.run(simStep)
		for _, a := range used {
			if heir.core.space.Owns(a) {
				t.Fatalf("after %v: %s is free", at, a)
			}
		}
	}
}

// Two hosts say that they use an address, and the heir starts again while both are away. The
// address does not become free at once.
func TestClaimsSurviveARestart(t *testing.T) {
	s := newSim(t, seed.New(t))
	n, open := s.openRange("10.32.0.0/12", "10.32.128.0/17")
	for range 2 {
		host := s.add("10.32.0.0/12", Init{Mode: Observer})
		s.run(time.Second)
		claimFrom(n, host, open.First)
		host.kill()
	}
	s.run(claimsFirst + time.Second)
	if n.core.space.Owns(open.First) || !n.core.space.Owns(open.Last) {
		t.Fatal("the range is not free, or the claims were forgotten")
	}
	n.kill()
	s.run(time.Second)
	n.launch()
	s.run(rivalTTL - time.Second)
	if n.core.space.Owns(open.First) {
		t.Errorf("%s is in use and free", open.First)
	}
	s.run(10 * time.Second)
	if !n.core.space.Owns(open.First) {
		t.Errorf("%s is still not free, though nobody claims it", open.First)
	}
	if left := len(n.disk.data[bucketClaims]); left > 0 {
		t.Errorf("%d claims are left on disk", left)
	}
}

func FuzzParseClaim(f *testing.F) {
	for _, from := range []netip.Addr{{}, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::")} {
		key, value := writeRival(ring.Holder{Name: peer.Name{2, 7}, Key: peer.KeyID{7}}, netip.MustParseAddr("10.32.0.1"), from)
		f.Add(key, value)
	}
	f.Fuzz(func(t *testing.T, key, value []byte) {
		h, a, from, err := parseRival(key, value)
		if err != nil {
			return
		}
		if k, v := writeRival(h, a, from); !slices.Equal(k, key) || !slices.Equal(v, value) {
			t.Errorf("% x %x is written as % x %x", key, value, k, v)
		}
	})
}

// Two containers on two hosts use one address, after rings met. One of them ends: its address is not
// given again, as the other one lives. The host of that one gets the address.
func TestAddressInUseOnTwoHostsIsNotGivenWhenOneContainerEnds(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, used := s.fiveInUse(keepRange, 1)
	owner, other := nodes[4], nodes[0]
	s.duplicatesExpected = true
	other.do(func(c *core) { c.hold("other", netip.PrefixFrom(used[0], 24)) })
	s.run(2 * regainEvery)
	if st := other.core.status(); len(st.Conflicts) != 1 || !st.Conflicts[0].InUse {
		t.Fatalf("conflicts %+v", st.Conflicts)
	}
	if st := owner.core.status(); len(st.Conflicts) != 0 {
		t.Errorf("conflicts on the owner %+v", st.Conflicts)
	}
	owner.do(func(c *core) { c.release("used0", used[0]) })
	if got := owner.allocate("new", keepRange); got == used[0] {
		t.Errorf("%s was given to another container", got)
	}
	s.run(2 * regainEvery)
	if !other.core.space.Owns(used[0]) || len(other.core.status().Conflicts) > 0 {
		t.Errorf("%s does not belong to the host that uses it: %+v", used[0], other.core.status().Conflicts)
	}
}

// An address that another host uses is not free from the moment of the claim on, also if that host cannot
// get it yet.
func TestClaimKeepsAFreeAddressAtOnce(t *testing.T) {
	s := newSim(t, seed.New(t))
	owner := s.add("10.32.0.0/22", Init{Mode: Consensus, Expect: 1})
	owner.allocate("c", "10.32.0.0/22")
	host := s.add("10.32.0.0/22", Init{Mode: Observer})
	s.converged(20 * time.Second)
	a := netip.MustParseAddr("10.32.0.20")
	owner.do(func(c *core) { c.askers[host.cfg.Self] = &asker{at: c.now} }) // it got what it may get now
	claimFrom(owner, host, a)
	if owner.core.space.Owns(a) || owner.core.offered(host.cfg.Self, addr.Single(a)) {
		t.Errorf("%s is in use on another host and free", a)
	}
}

// A host claims more addresses that its containers use than it gets at once. None of the others is
// given to containers of the owner meanwhile, nor to other hosts, and in the end it has all of them.
func TestAddressesInUseAreNotGivenBeforeTheirTurn(t *testing.T) {
	s := newSim(t, seed.New(t))
	owner := s.add("10.32.0.0/22", Init{Mode: Consensus, Expect: 1})
	owner.allocate("c", "10.32.0.0/22")
	host, third := s.add("10.32.0.0/22", Init{Mode: Observer}), s.add("10.32.0.0/22", Init{Mode: Observer})
	s.converged(20 * time.Second)
	var used []netip.Addr
	host.do(func(c *core) {
		a := netip.MustParseAddr("10.32.0.20")
		for i := range 2 * askBurst {
			c.hold(fmt.Sprint("used", i), netip.PrefixFrom(a, 22))
			used, a = append(used, a), a.Next()
		}
	})
	s.run(2 * regainEvery)
	for i := range 100 {
		for _, n := range []*node{owner, third} {
			if got := n.allocate(fmt.Sprint("new", i), "10.32.0.0/22"); slices.Contains(used, got) {
				t.Fatalf("%s is in use and was given", got)
			}
		}
	}
	s.run(2 * askBurst * askEvery)
	for _, a := range used {
		if !host.core.space.Owns(a) {
			t.Errorf("%s does not belong to the host that uses it", a)
		}
	}
}

// A member claims all addresses of a small range as in use. Other hosts still get some.
func TestClaimsOfAllAddressesStopNobody(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, _ := s.fiveInUse(keepRange, 1)
	owner, liar := nodes[4], nodes[0]
	before := addr.Total(owner.core.space.Free(addr.Of(pfx(keepRange))))
	for _, r := range owner.core.space.Owned() {
		for a := r.First; r.Contains(a); a = a.Next() {
			claimFrom(owner, liar, a)
		}
	}
	after := addr.Total(owner.core.space.Free(addr.Of(pfx(keepRange))))
	if after.Float() < before.Float()/othersReserve-1 {
		t.Errorf("of %v free addresses %v are left", before, after)
	}
}

// Two peers have claimed an address and are silent. The claim of a third one takes the place of that
// which is silent for longer.
func TestClaimTakesThePlaceOfThatSilentForLonger(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, used := s.fiveInUse(keepRange, 1)
	owner, a := nodes[4], used[0]
	for _, n := range nodes[:3] {
		s.run(rivalAfter/2 + time.Second)
		owner.do(func(c *core) { c.noteRival(n.self(), a) })
	}
	if rs := owner.core.rivals[a]; len(rs) != 2 || !rs[nodes[0].self()].at.IsZero() {
		t.Errorf("claims %v", rs)
	}
	s.run(rivalAfter + time.Second)
	owner.do(func(c *core) { c.noteRival(nodes[0].self(), a) })
	if rs := owner.core.rivals[a]; len(rs) != 2 || !rs[nodes[1].self()].at.IsZero() {
		t.Errorf("claims %v", rs)
	}
}
