package ipam

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

const keepRange = "10.32.0.0/24"

// fiveInUse makes five nodes with a container each, and returns n more addresses that containers of
// the last one have.
func (s *sim) fiveInUse(addrRange string, n int) (nodes []*node, used []netip.Addr) {
	nodes = slices.Clone(s.addAll(5, addrRange))
	for i, n := range nodes {
		n.allocate(fmt.Sprint("c", i), addrRange)
	}
	s.converged(20 * time.Second)
	for i := range n {
		used = append(used, nodes[4].allocate(fmt.Sprint("used", i), addrRange))
	}
	s.converged(20 * time.Second)
	return nodes, used
}

// removedByPrograms makes five nodes, of which programs have removed the last one, gone. It also returns
// the heir and the addresses that containers of gone have.
func (s *sim) removedByPrograms() (nodes []*node, gone, heir *node, used []netip.Addr) {
	nodes, used = s.fiveInUse(keepRange, 5)
	gone = nodes[4]
	gone.kill()
	heir = s.removed(ByProgram, gone, nodes[:4]...)
	s.converged(20 * time.Second)
	return nodes, gone, heir, used
}

// except returns the nodes without one.
func except(nodes []*node, gone *node) []*node {
	return slices.DeleteFunc(slices.Clone(nodes), func(n *node) bool { return n == gone })
}

// removedWithoutHeir makes five nodes of which the last one is dead and was removed by
// others than the heir. It returns the heir, the dead node and the addresses in use there.
func removedWithoutHeir(t *testing.T, s *sim) (heir, dead *node, used []netip.Addr) {
	nodes, used := s.fiveInUse(keepRange, 5)
	dead = nodes[4]
	dead.kill()
	var next peer.Name
	nodes[0].do(func(c *core) { next = c.heirFor(dead.self()).Name })
	var others []*node
	for _, n := range nodes[:4] {
		if n.cfg.Self == next {
			heir = n
		} else {
			others = append(others, n)
		}
	}
	if got := s.removedBy(dead, others[:2]...); got != heir {
		t.Fatalf("the heir is %v", got)
	}
	s.converged(20 * time.Second)
	return heir, dead, used
}

// fill allocates until no address is left.
func (s *sim) fill(nodes ...*node) (got []netip.Addr) {
	for _, n := range nodes {
		for i := 0; ; i++ {
			id := n.begin(func(c *core, id uint64) { c.allocate(id, fmt.Sprint("fill", i), pfx(keepRange)) })
			r, ok := n.await(id, claimsFirst+10*time.Second)
			if !ok || r.err != nil {
				n.reason(id)
				break
			}
			got = append(got, r.prefix.Addr())
		}
	}
	return got
}

// A host that was removed while it was cut off returns within the hour: its addresses are
// its own again, and nobody has used them, although all others ran out of addresses and the
// heir was restarted.
func TestHostThatReturnsGetsItsAddressesBack(t *testing.T) {
	s := newSim(t, seed.New(t))
	heir, back, used := removedWithoutHeir(t, s)
	before := addr.Total(back.ownedOnDisk())
	heir.kill()
	s.run(time.Second)
	heir.launch()
	s.run(3 * time.Second)
	for _, a := range s.fill(s.nodes[:4]...) {
		if slices.Contains(used, a) {
			t.Fatalf("%s was given to another container", a)
		}
	}
	if k := heir.core.status().Kept; len(k) != 1 || k[0].Name != back.cfg.Self || k[0].Addresses != before {
		t.Errorf("the heir keeps %+v, want %s addresses of %s", k, before, back.cfg.Self)
	}
	back.launch()
	s.converged(20 * time.Second)
	s.run(10 * time.Second)
	for _, a := range used {
		if !back.core.space.Owns(a) {
			t.Errorf("%s was not given back", a)
		}
	}
	if st := back.core.status(); len(st.Conflicts) > 0 {
		t.Errorf("conflicts %v", st.Conflicts)
	}
	if got := addr.Total(back.core.ring.Owned(back.self())); got != before {
		t.Errorf("it owns %v addresses, before it was removed %v", got, before)
	}
	if k := heir.core.status().Kept; len(k) != 0 {
		t.Errorf("the heir still keeps %+v", k)
	}
}

// ownedOnDisk returns what a dead node owned by the ring on its disk.
func (n *node) ownedOnDisk() []addr.Range {
	c := newCore(n.cfg, n, n.s.rng)
	c.load(n.disk)
	return c.ring.Owned(n.self())
}

// Programs that have seen a sign of the death of a host, such as a Node that was deleted, ask for its
// removal on all hosts, the heir among them, and ask again later. That is no person's word: the
// heir keeps the addresses. It keeps them also if it was removed and is back, and the next heir
// gave it everything back.
func TestProgramsDoNotEndKeeping(t *testing.T) {
	for _, heirGoes := range []bool{false, true} {
		s := newSim(t, seed.New(t))
		nodes, back, heir, used := s.removedByPrograms()
		if heirGoes {
			heir.kill()
			s.removed(ByProgram, heir, except(nodes[:4], heir)...)
			s.converged(20 * time.Second)
			heir.launch()
			s.run(10 * time.Second)
			s.converged(20 * time.Second)
		}
		for _, n := range nodes[:4] {
			id := n.removesBy(ByProgram, back)
			if r, ok := n.await(id, time.Second); !ok || r.err != nil {
				t.Errorf("a removal that is done is asked for again: %v, %v", ok, r.err)
			}
		}
		for _, a := range s.fill(nodes[:4]...) {
			if slices.Contains(used, a) {
				t.Fatalf("the heir was removed %v: %s was given to another container", heirGoes, a)
			}
		}
		back.launch()
		s.converged(20 * time.Second)
		s.run(10 * time.Second)
		for _, a := range used {
			if !back.core.space.Owns(a) {
				t.Errorf("the heir was removed %v: %s was not given back", heirGoes, a)
			}
		}
	}
}

// waysToGo are the ways in which an heir can go, by the will of its operator or of those of others.
var waysToGo = map[string]func(s *sim, heir *node, others []*node){
	"leaves": func(_ *sim, heir *node, _ []*node) { heir.reset() },
	"is removed": func(s *sim, heir *node, others []*node) {
		heir.kill()
		s.removedBy(heir, others...)
		s.drop(heir)
	},
	"is banned": func(s *sim, heir *node, others []*node) {
		heir.kill()
		for _, n := range others {
			n.bans(heir, false)
		}
		for _, n := range others {
			n.isBanned(heir, true)
		}
		s.drop(heir)
	},
}

// A host is away, and programs have removed it. Its heir goes too: its operator resets it, or the
// operators of all others remove or ban it. Who gets its addresses then keeps those of the first host
// all the same, and gives them back to it.
func TestAddressesAreKeptByEveryHeir(t *testing.T) {
	for _, how := range slices.Sorted(maps.Keys(waysToGo)) {
		s := newSim(t, seed.New(t))
		nodes, back, heir, used := s.removedByPrograms()
		others := except(nodes[:4], heir)
		waysToGo[how](s, heir, others)
		s.converged(20 * time.Second)
		for _, n := range others { // its notes are on its disk
			n.launch()
		}
		s.converged(20 * time.Second)
		for _, a := range s.fill(others...) {
			if slices.Contains(used, a) {
				t.Fatalf("the heir %s: %s was given to another container", how, a)
			}
		}
		back.launch()
		s.converged(20 * time.Second)
		s.run(10 * time.Second)
		for _, a := range used {
			if !back.core.space.Owns(a) && how != "is removed" { // the next heir keeps all for the first
				t.Errorf("the heir %s: %s was not given back", how, a)
			}
		}
	}
}

// An owner that finds the addresses of a removed peer free can give them to others, who use them at
// once, although they noted the removal too.
func TestAddressesThatAreFoundFreeAreFreeForAll(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, dead, heir, used := s.removedByPrograms()
	heir.removes(dead)
	s.run(claimsFirst + 5*time.Second)
	s.drop(dead)
	for _, a := range used {
		for i, n := range except(nodes[:4], heir) {
			owner := fmt.Sprint("claim", i, a)
			id := n.begin(func(c *core, id uint64) { c.claim(id, owner, netip.PrefixFrom(a, 24)) })
			if r, ok := n.await(id, 10*time.Second); !ok || r.err != nil {
				t.Fatalf("%s cannot use %s: %v %s", n.cfg.Self, a, r.err, n.reason(id))
			}
			n.do(func(c *core) { c.release(owner, a) })
		}
	}
}

// An heir is cut off. Before it hears that it was removed itself, it offers what it keeps to a host
// that is back. That offer is void, so it goes on to keep it once it gets it back.
func TestOfferThatIsVoidEndsNoKeeping(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, back, heir, used := s.removedByPrograms()
	others := except(nodes[:4], heir)
	s.cut = func(a, b *node) bool { return slices.Contains(others, a) != slices.Contains(others, b) }
	s.run(5 * time.Second)
	s.removed(ByProgram, heir, others...)
	back.launch()
	s.run(30 * time.Second)
	if len(heir.core.offers) == 0 {
		t.Fatal("it offers nothing")
	}
	s.run(offerTTL) // the offer is revoked
	if heir.core.space.Owns(used[0]) {
		t.Errorf("%s is free as the offer was revoked", used[0])
	}
	back.kill()
	s.cut = func(a, b *node) bool { return false }
	s.converged(30 * time.Second)
	s.run(10 * time.Second)
	if owner, _ := heir.core.ring.Owner(used[0]); owner != heir.self() {
		t.Fatalf("%s belongs to %s", used[0], owner)
	}
	for _, a := range s.fill(nodes[:4]...) {
		if slices.Contains(used, a) {
			t.Errorf("%s was given to another container", a)
		}
	}
}

// A host returns after its heir was removed for good. The next heir keeps everything for the first
// one. When that time is over, the containers of the host still have their addresses to themselves,
// although many others wait for one.
func TestAddressesInUseAreNotGivenWhenTheirTimeIsOver(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, used := s.fiveInUse(rollbackRange, 5)
	for _, n := range nodes {
		n.cfg.Keep = 3 * time.Minute
		n.launch()
	}
	s.run(time.Second)
	back := nodes[4]
	back.kill()
	first := s.removed(ByProgram, back, nodes[:4]...)
	s.converged(20 * time.Second)
	first.kill()
	s.removed(ByProgram, first, except(nodes[:4], first)...)
	s.drop(first)
	back.launch()
	s.converged(20 * time.Second)
	for _, n := range s.nodes {
		for i := range 40 {
			n.begin(func(c *core, id uint64) { c.allocate(id, fmt.Sprint("wait", i), pfx(rollbackRange)) })
		}
	}
	s.run(200 * time.Second) // sim.check looks at what is given
	for _, a := range used {
		if !back.core.space.Owns(a) {
			t.Errorf("%s is not its own", a)
		}
		for _, n := range s.nodes {
			if al, uses := n.core.allocations[a]; uses && n != back {
				t.Errorf("%s was given to %s", a, al.owner)
			}
		}
	}
	given := 0
	for _, n := range s.nodes {
		given += len(n.core.allocations)
	}
	if given < 55 {
		t.Errorf("only %d addresses are in use: those of the host that is gone are not", given)
	}
}

// comeAndGo does one random thing to hosts whose routers end, are cut off and are removed by
// programs, while their containers live.
func (w *rollbacks) comeAndGo(step int) {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	switch k := w.rng.IntN(20); {
	case k < 8:
		for i := range 1 + w.rng.IntN(6) {
			n.begin(func(c *core, id uint64) { c.allocate(id, fmt.Sprint("c", step, "-", i), pfx(rollbackRange)) })
		}
	case k < 10:
		n.do(func(c *core) { c.pending = nil }) // their callers are gone
		for _, a := range slices.SortedFunc(maps.Keys(w.alive[n]), netip.Addr.Compare) {
			owner := w.alive[n][a]
			if n.core != nil && w.rng.IntN(2) == 0 {
				delete(w.alive[n], a)
				n.do(func(c *core) { c.release(owner, a) })
			}
		}
	case k < 12: // at most one is dead, so that there is a quorum
		if !slices.ContainsFunc(w.nodes, func(m *node) bool { return m.core == nil }) {
			n.kill()
		}
	case k < 14:
		for _, m := range w.nodes {
			if m.core == nil {
				w.restart(m, m.disk, false)
			}
		}
	case k < 17:
		for _, m := range w.nodes { // programs on all hosts have seen that the Node was deleted
			if m != n && m.core != nil {
				m.removesBy(ByProgram, n)
			}
		}
	case k == 17:
		w.cut = func(a, b *node) bool { return a == n || b == n }
	case k == 18 && n.core != nil && w.rng.IntN(3) == 0: // its operator resets it; another host comes
		w.cut = func(a, b *node) bool { return false }
		w.run(3 * time.Second)
		n.do(func(c *core) { c.pending = nil })
		clear(w.alive[n])
		n.reset()
		delete(w.alive, n)
		w.join(len(w.nodes) + 1)
	default:
		w.cut = func(a, b *node) bool { return false }
	}
	w.run(time.Duration(w.rng.IntN(4000)) * time.Millisecond)
}

// Routers end and are cut off at random moments, programs on all other hosts ask for their
// removal, heirs are removed too, and all of them come back while their containers live. No
// address of a container is given to another one, and in the end each host owns what its
// containers have.
func TestHostsThatComeBackKeepTheirAddresses(t *testing.T) {
	first, removals := seed.New(t), 0
	for seed := first; seed < first+4; seed++ {
		w := newRollbacks(t, seed, 5)
		w.nodes[0].allocate("first", rollbackRange)
		w.converged(30 * time.Second)
		for step := range 120 {
			before := len(w.nodes[0].ownersInRing())
			w.comeAndGo(step)
			if len(w.nodes[0].ownersInRing()) < before {
				removals++
			}
		}
		w.cut = func(a, b *node) bool { return false }
		for _, m := range w.nodes {
			if m.core == nil {
				w.restart(m, m.disk, false)
			}
		}
		w.converged(60 * time.Second)
		w.run(30 * time.Second)
		for _, n := range w.nodes {
			for a, owner := range w.alive[n] {
				if !n.core.space.Owns(a) {
					t.Errorf("seed %d: %s does not own %s of %s", seed, n.cfg.Self, a, owner)
				}
			}
		}
	}
	if removals == 0 {
		t.Error("no host was removed")
	}
}

// ownersInRing returns the owners that the node knows, nil if it is dead.
func (n *node) ownersInRing() map[ring.Holder]addr.Count {
	if n.core == nil {
		return nil
	}
	return n.core.ring.Owners()
}

// The addresses of a host that does not return are used after a while, or as soon as the
// operator of the heir says that it is dead.
func TestAddressesOfADeadHostAreUsedInTheEnd(t *testing.T) {
	for _, byOperator := range []bool{false, true} {
		s := newSim(t, seed.New(t))
		heir, dead, used := removedWithoutHeir(t, s)
		if byOperator {
			id := heir.removes(dead)
			if r, ok := heir.await(id, time.Second); !ok || r.err != nil {
				t.Fatal(r.err)
			}
		} else {
			s.now = s.now.Add(time.Hour)
			s.run(6 * time.Second)
		}
		s.drop(dead)
		got := s.fill(heir)
		for _, a := range used {
			if !slices.Contains(got, a) {
				t.Errorf("by the operator %v: %s is not used", byOperator, a)
			}
		}
	}
}

// lostState starts a host with a new name in place of one that is dead: its state folder was lost,
// and its containers live.
func (s *sim) lostState(dead *node, used []netip.Addr) *node {
	n := s.add(keepRange, Init{Mode: Consensus, Expect: 5})
	n.do(func(c *core) {
		for i, a := range used {
			c.hold(fmt.Sprint("used", i), netip.PrefixFrom(a, pfx(keepRange).Bits()))
		}
	})
	s.drop(dead)
	s.converged(20 * time.Second)
	return n
}

// A host has lost its state folder, so it has a new name, and its containers use addresses of the
// old one. The operator removes the old name on all hosts. The addresses go to the host that uses
// them, although all others want addresses, and also if it shares its underlay address.
func TestAddressesInUseGoToTheHostThatUsesThem(t *testing.T) {
	for _, shared := range []bool{false, true} {
		s := newSim(t, seed.New(t))
		nodes, used := s.fiveInUse(keepRange, 20)
		dead := nodes[4]
		dead.kill()
		renamed := s.lostState(dead, used)
		if shared {
			renamed.at = nodes[0]
		}
		s.run(10 * time.Second)
		var want []uint64
		for _, n := range nodes[:4] { // more than there are
			for i := range 48 {
				want = append(want, n.begin(func(c *core, id uint64) { c.allocate(id, fmt.Sprint("more", i), pfx(keepRange)) }))
			}
		}
		for _, n := range nodes[:4] {
			n.removes(dead)
		}
		s.run(90 * time.Second) // sim.check sees whether an address is given twice
		for _, id := range want {
			if r, ok := s.replies[id]; ok && r.err == nil && slices.Contains(used, r.prefix.Addr()) {
				t.Errorf("shared %v: %s was given to another container", shared, r.prefix)
			}
		}
		for _, a := range used {
			if !renamed.core.space.Owns(a) {
				t.Errorf("shared %v: %s does not belong to the host that uses it", shared, a)
			}
		}
		if st := renamed.core.status(); len(st.Conflicts) > 0 {
			t.Errorf("shared %v: conflicts %+v", shared, st.Conflicts)
		}
		if n := len(nodes[0].core.rivals) + len(nodes[1].core.rivals) + len(nodes[2].core.rivals) + len(nodes[3].core.rivals); n > 0 {
			t.Errorf("shared %v: %d claims are left", shared, n)
		}
	}
}

// The heir itself can be the host that lost its state.
func TestHeirThatUsesTheAddressesKeepsThem(t *testing.T) {
	s := newSim(t, seed.New(t))
	heir, dead, used := removedWithoutHeir(t, s)
	heir.do(func(c *core) { c.hold("own", netip.PrefixFrom(used[0], 24)) })
	for _, n := range s.nodes {
		if n != heir && n.core != nil {
			id := n.begin(func(c *core, id uint64) { c.claim(id, "other", netip.PrefixFrom(used[0], 24)) })
			if r, ok := n.await(id, 5*time.Second); !ok || r.err == nil || !strings.Contains(r.err.Error(), "in use") {
				t.Errorf("another host claims it: %v, %v", ok, r.err)
			}
		}
	}
	heir.removes(dead)
	s.drop(dead)
	s.run(claimsFirst + 5*time.Second)
	if st := heir.core.status(); len(st.Conflicts) > 0 || !heir.core.space.Owns(used[0]) {
		t.Errorf("conflicts %+v", st.Conflicts)
	}
	if got := s.fill(heir); slices.Contains(got, used[0]) || !slices.Contains(got, used[1]) {
		t.Errorf("it gives %v", got)
	}
}

// A member says that it uses all addresses of a host that lost its state. It gets none that the
// host uses, before and after the removal, and nobody else does.
func TestLiarGetsNoAddressInUse(t *testing.T) {
	s := newSim(t, seed.New(t))
	heir, dead, used := removedWithoutHeir(t, s)
	renamed := s.lostState(dead, used)
	var liar *node
	for _, n := range s.nodes {
		if n != heir && n != renamed {
			liar = n
		}
	}
	lie := func() {
		for _, a := range used {
			id := liar.core.nextID()
			heir.do(func(c *core) {
				_ = c.receive(liar.cfg.Self, (&message{kind: msgClaimAsk, id: id, addr: a, inUse: true}).encode())
			})
		}
	}
	lie() // while they are kept
	s.run(5 * time.Second)
	heir.removes(dead)
	lie()
	for range 10 {
		s.run(5 * time.Second)
		lie()
	}
	for _, a := range s.fill(heir) {
		if slices.Contains(used, a) {
			t.Errorf("%s was given", a)
		}
	}
	for _, a := range used {
		if owner, _ := heir.core.ring.Owner(a); owner == liar.self() {
			t.Errorf("%s belongs to the liar", a)
		}
	}
	for _, rs := range heir.core.rivals { // the liar has ended
		rs[liar.self()] = rival{at: s.now.Add(-rivalTTL - 1), from: rs[liar.self()].from}
	}
	s.run(time.Minute)
	for _, a := range used {
		if owner, _ := heir.core.ring.Owner(a); owner != renamed.self() {
			t.Errorf("%s belongs to %s", a, owner)
		}
	}
}

// The claims that an heir keeps are bounded, also those of made-up peers, and those of a host
// have a place next to them.
func TestClaimsOfAddressesInUseAreBounded(t *testing.T) {
	s := newSim(t, 1)
	n := s.add("10.32.0.0/12", Init{Mode: Consensus, Expect: 1})
	host := s.add("10.32.0.0/12", Init{Mode: Observer})
	n.allocate("c", "10.32.0.0/12")
	all := addr.Of(pfx("10.32.0.0/12"))
	n.do(func(c *core) {
		c.keep(kept{rng: all, from: ring.Holder{Name: peer.Name{2, 7}, Key: peer.KeyID{7}}, until: c.now})
		c.pushKept()
		a := all.First.Next().Next()
		for i := range 2 * maxRivalsBy {
			c.noteRival(ring.Holder{Name: peer.Name{2, byte(i), byte(i >> 8)}}, a)
			a = a.Next()
		}
		if len(c.rivals) != maxRivalsBy {
			t.Errorf("%d claims of made-up peers, want %d", len(c.rivals), maxRivalsBy)
		}
		c.noteRival(host.self(), a)
		if c.rivals[a] == nil {
			t.Error("a host has no place")
		}
		for i := range 5 {
			c.noteRival(ring.Holder{Name: peer.Name{2, byte(i)}}, a)
		}
		if len(c.rivals[a]) > 2 {
			t.Errorf("%d peers with claims of one address", len(c.rivals[a]))
		}
	})
}

// A claim of an address that is kept fails at once, and says for whom it is kept, until when,
// and what ends that.
func TestClaimOfAKeptAddressFailsAtOnce(t *testing.T) {
	s := newSim(t, seed.New(t))
	heir, dead, used := removedWithoutHeir(t, s)
	until := heir.core.kept[0].until.Format(time.DateTime)
	for _, n := range s.nodes {
		if n == dead {
			continue
		}
		id := n.begin(func(c *core, id uint64) { c.claim(id, "new", netip.PrefixFrom(used[0], 24)) })
		r, ok := n.await(id, time.Second)
		if !ok || !errors.Is(r.err, ErrKept) {
			t.Errorf("heir %v: %v, %v %s", n == heir, ok, r.err, n.reason(id))
			continue
		}
		for _, want := range []string{"kept until " + until, "for " + dead.cfg.Self.String(), "on host " + heir.cfg.Self.String(), "weft rmpeer " + dead.cfg.Self.String()} {
			if !strings.Contains(r.err.Error(), want) {
				t.Errorf("heir %v: %q lacks %q", n == heir, r.err, want)
			}
		}
	}
	// As the error says.
	heir.removes(dead)
	id := heir.begin(func(c *core, id uint64) { c.claim(id, "new", netip.PrefixFrom(used[0], 24)) })
	if r, ok := heir.await(id, claimsFirst+2*time.Second); !ok || r.err != nil {
		t.Errorf("after the removal: %v, %v %s", ok, r.err, heir.reason(id))
	}
}

// What is kept is bounded, and a peer with many ranges does not take the place of others.
func TestKeptRangesAreBounded(t *testing.T) {
	s := newSim(t, 1)
	n := s.add("10.32.0.0/12", Init{Mode: Consensus, Expect: 1})
	honest := ring.Holder{Name: peer.Name{2, 7}, Key: peer.KeyID{7}}
	liar := ring.Holder{Name: peer.Name{2, 8}, Key: peer.KeyID{8}}
	a := netip.MustParseAddr("10.32.0.0")
	n.do(func(c *core) {
		for i := range 2 * maxKept {
			from := liar
			if i < 10 {
				from = honest
			}
			c.keep(kept{rng: addr.Single(a), from: from, until: c.now.Add(time.Hour)})
			a = a.Next().Next()
		}
	})
	count := 0
	for _, k := range n.core.kept {
		if k.from == honest {
			count++
		}
	}
	if len(n.core.kept) != maxKept || len(n.disk.data[bucketKept]) != maxKept || count != 10 {
		t.Errorf("%d ranges, %d on disk, %d of the honest peer", len(n.core.kept), len(n.disk.data[bucketKept]), count)
	}
}

func FuzzParseKept(f *testing.F) {
	k := kept{rng: addr.Of(pfx("10.32.0.0/30")), from: ring.Holder{Name: peer.Name{2, 7}, Key: peer.KeyID{7}}, until: time.Unix(1_700_000_000, 0)}
	key, value := k.write()
	f.Add(key, value)
	k.heir, k.slot, k.place = true, 7, netip.MustParseAddr("192.0.2.1")
	key, value = k.write()
	f.Add(key, value)
	k.from, k.slot = ring.Holder{}, -7
	key, value = k.write()
	f.Add(key, value)
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, key, value []byte) {
		k, err := parseKept(key, value)
		if err != nil {
			return
		}
		if again, v := k.write(); !slices.Equal(again, key) || !slices.Equal(v, value) {
			t.Errorf("% x %x is written as % x %x", key, value, again, v)
		}
	})
}
