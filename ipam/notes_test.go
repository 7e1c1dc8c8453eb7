package ipam

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// claims makes a container of n use an address, which must be free there.
func (n *node) claims(a netip.Addr) {
	n.s.t.Helper()
	id := n.begin(func(c *core, id uint64) { c.claim(id, fmt.Sprint("claimed ", a), netip.PrefixFrom(a, 24)) })
	if r, ok := n.await(id, 5*time.Second); !ok || r.err != nil {
		n.s.t.Fatalf("%s claims %s: %v %s", n.cfg.Self, a, r.err, n.reason(id))
	}
}

// end ends all containers of n.
func (n *node) end() {
	for owner, as := range n.core.byOwner {
		for _, a := range slices.Clone(as) {
			n.do(func(c *core) { c.release(owner, a) })
		}
	}
}

// startAgain starts a node with another disk, while its containers live.
func (n *node) startAgain(disk *memDisk) {
	alive := n.core.allocations
	n.kill()
	n.disk = disk
	n.cfg.Lost = len(disk.data) == 0
	n.launch()
	n.do(func(c *core) {
		for a, al := range alive {
			c.hold(al.owner, netip.PrefixFrom(a, al.bits))
		}
	})
}

// waitKeep lets the time pass for which heirs keep what they got, and the time for claims.
func (s *sim) waitKeep() {
	s.now = s.now.Add(time.Hour)
	s.run(claimsFirst + 5*time.Second)
}

// An heir found the addresses of a removed host free, and a container of its own has one. Its disk
// goes back in time, or is lost, so it keeps them for the host once more. What it then gives back
// has no address of its own container.
func TestHeirGivesNothingBackThatItUses(t *testing.T) {
	for _, lost := range []bool{false, true} {
		s := newSim(t, seed.New(t))
		nodes, used := s.fiveInUse(keepRange, 5)
		back := nodes[4]
		back.end()
		back.kill()
		heir := s.removed(ByProgram, back, nodes[:4]...)
		s.converged(20 * time.Second)
		disk := heir.disk.clone()
		if lost {
			disk = newDisk()
		}
		s.waitKeep()
		heir.claims(used[0])
		heir.startAgain(disk)
		back.launch()
		for i := range 60 {
			back.begin(func(c *core, id uint64) { c.allocate(id, fmt.Sprint("wait", i), pfx(keepRange)) })
		}
		s.run(30 * time.Second)
		if al, given := back.core.allocations[used[0]]; given {
			t.Errorf("lost disk %v: %s is in use on the heir and was given to %s", lost, used[0], al.owner)
		}
		if owner, _ := heir.core.ring.Owner(used[0]); owner != heir.self() {
			t.Errorf("lost disk %v: %s is in use on the heir and belongs to %s", lost, used[0], owner)
		}
	}
}

// A host was removed, its heir used the addresses and was removed too. The next heir hears of both
// at once, as its disk went back in time. It keeps everything for the first heir all the same.
func TestOrderOfRemovalsThatAreHeardAtOnce(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, used := s.fiveInUse(keepRange, 5)
	back := nodes[4]
	back.end()
	disks := make(map[*node]*memDisk)
	for _, n := range nodes {
		disks[n] = n.disk.clone()
	}
	back.kill()
	first := s.removed(ByProgram, back, nodes[:4]...)
	s.converged(20 * time.Second)
	s.waitKeep()
	first.claims(used[0])
	first.kill()
	next := s.removed(ByProgram, first, except(nodes[:4], first)...)
	s.converged(20 * time.Second)
	next.startAgain(disks[next])
	back.launch()
	s.run(40 * time.Second)
	s.converged(20 * time.Second)
	if owner, _ := next.core.ring.Owner(used[0]); owner != next.self() {
		t.Fatalf("%s, which a container of the first heir has, belongs to %s", used[0], owner)
	}
	first.launch()
	s.run(20 * time.Second)
	s.converged(20 * time.Second)
	if !first.core.space.Owns(used[0]) {
		t.Errorf("%s does not belong to the first heir", used[0])
	}
}

// An heir leaves. The peer that gets everything is removed, and is back. It still keeps what
// belonged to the host that was removed first.
func TestAddressesAreKeptByAPeerThatWasRemovedItself(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, back, heir, used := s.removedByPrograms()
	heir.reset()
	nodes = except(nodes[:4], heir)
	s.converged(20 * time.Second)
	owner, _ := nodes[0].core.ring.Owner(used[0])
	next := nodes[slices.IndexFunc(nodes, func(n *node) bool { return n.self() == owner })]
	next.kill()
	s.removed(ByProgram, next, except(nodes, next)...)
	s.converged(20 * time.Second)
	next.launch()
	s.run(10 * time.Second)
	s.converged(20 * time.Second)
	if owner, _ := next.core.ring.Owner(used[0]); owner != next.self() {
		t.Fatalf("%s belongs to %s", used[0], owner)
	}
	for _, a := range s.fill(nodes...) {
		if slices.Contains(used, a) {
			t.Fatalf("%s was given to another container", a)
		}
	}
	back.launch()
	s.converged(20 * time.Second)
	s.run(10 * time.Second)
	for _, a := range used {
		if !back.core.space.Owns(a) {
			t.Errorf("%s was not given back", a)
		}
	}
}

// Operators remove a host that comes back. A minute later it is cut off, and programs ask for its
// removal. What the operators said does not hold for that: the heir keeps its addresses.
func TestRemovalByOperatorsDoesNotHoldForTheNextOne(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, used := s.fiveInUse(keepRange, 5)
	back := nodes[4]
	back.kill()
	s.removedBy(back, nodes[:4]...)
	s.run(time.Second)
	back.launch()
	s.run(time.Minute)
	s.converged(20 * time.Second)
	for _, a := range used {
		if !back.core.space.Owns(a) {
			t.Fatalf("%s was not given back", a)
		}
	}
	s.cut = func(a, b *node) bool { return a == back || b == back }
	ids := []uint64{nodes[0].removesBy(ByProgram, back), nodes[1].removesBy(ByProgram, back)}
	s.run(back.cfg.Absence / 2)
	if r, ok := s.replies[ids[0]]; ok {
		t.Errorf("it was removed at once: %v", r.err)
	}
	nodes[0].await(ids[0], 20*time.Second)
	for _, a := range s.fill(nodes[:4]...) {
		if slices.Contains(used, a) {
			t.Fatalf("%s was given to another container", a)
		}
	}
}

// Operators ban a host and then end the ban. One voter that lies cannot ban it again with what the
// operators asked for first.
func TestBanThatOperatorsEndedCannotBeRepeated(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes := s.addAll(5, keepRange)
	for _, n := range nodes {
		n.allocate("c", keepRange)
	}
	s.converged(20 * time.Second)
	host, liar := nodes[4], nodes[3]
	decide := func(unban bool) {
		for _, n := range nodes[:4] {
			n.bans(host, unban)
		}
		for _, n := range nodes[:4] {
			n.isBanned(host, !unban)
		}
	}
	decide(false)
	decide(true)
	s.run(5 * time.Second)
	for range 20 {
		liar.do(func(c *core) { // it proposes the ban, as if the others wanted it
			a := &ring.Action{Kind: ring.Ban, From: host.self(), To: c.heirFor(host.self())}
			heard := &voice{a, make(map[ring.Holder]time.Time)}
			for _, h := range c.ring.Voters() {
				heard.from[h] = s.now
			}
			c.ask(a)
			c.voices[c.voiceKey(a)] = heard
		})
		s.run(time.Second)
		if nodes[0].core.ring.IsBanned(host.self()) {
			t.Fatal("it is banned again")
		}
	}
}

// A member lets a thousand made-up peers own a range each, and be removed. The notes of an honest
// host with several ranges stay, also where this peer is the heir of the made-up ones only.
func TestRemovedPeersOfOneHostTakeNoNotesOfOthers(t *testing.T) {
	for _, heir := range []bool{false, true} {
		s := newSim(t, 1)
		n := s.add("10.32.0.0/12", Init{Mode: Consensus, Expect: 1})
		honest := ring.Holder{Name: peer.Name{2, 7}, Key: peer.KeyID{7}}
		a := netip.MustParseAddr("10.32.0.0")
		n.do(func(c *core) {
			var notes []kept
			for i := range 2 * maxKept {
				k := kept{rng: addr.Single(a), from: honest, until: c.now.Add(time.Hour), heir: heir, place: netip.MustParseAddr("192.0.2.77")}
				if i >= 10 {
					k.from, k.place = ring.Holder{Name: peer.Name{2, 8, byte(i), byte(i >> 8)}, Key: peer.KeyID{8}}, netip.MustParseAddr("192.0.2.78")
					k.heir = true
				}
				notes = append(notes, k)
				a = a.Next().Next()
			}
			for batch := range slices.Chunk(notes, 100) { // as removals are decided
				c.keep(batch...)
			}
		})
		count := 0
		for _, k := range n.core.kept {
			if k.from == honest {
				count++
			}
		}
		if len(n.core.kept) != maxKept || count != 10 {
			t.Errorf("heir %v: %d ranges, %d of the honest host", heir, len(n.core.kept), count)
		}
	}
}

// A note counts for the underlay address at which the host was, also after a restart, and also if this
// peer was started again since the host is away.
func TestNotesCountForTheUnderlayAddress(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, _ := s.fiveInUse(keepRange, 1)
	dead := nodes[4]
	dead.kill()
	s.run(5 * time.Second)
	for _, n := range nodes[:4] {
		n.kill()
		n.launch()
	}
	heir := s.removed(ByProgram, dead, nodes[:4]...)
	for range 2 {
		if k := heir.core.kept; len(k) == 0 || k[0].place != dead.place() {
			t.Errorf("%+v, want the address %s", k, dead.place())
		}
		heir.kill()
		heir.launch()
	}
	s.run(5 * time.Second)
	if left := len(heir.disk.data[bucketPlaces]); left != 3 {
		t.Errorf("the disk has the addresses of %d peers", left)
	}
}

// A state file with more notes and claims than a router writes is read up to the bounds, and what is
// beyond them is deleted.
func TestOverfullStateFile(t *testing.T) {
	s := newSim(t, 1)
	n := s.add("10.32.0.0/12", Init{Mode: Consensus, Expect: 1})
	n.allocate("c", "10.32.0.0/12")
	n.kill()
	write := func(bucket string, key, value []byte) {
		if err := n.disk.Apply([]store.Write{{Bucket: bucket, Key: key, Value: value}}); err != nil {
			t.Fatal(err)
		}
	}
	a := netip.MustParseAddr("10.32.0.0")
	for i := range maxRivals + 100 {
		h := ring.Holder{Name: peer.Name{2, 7, byte(i), byte(i >> 8)}, Key: peer.KeyID{7}}
		if i < maxKept+100 {
			k := kept{rng: addr.Single(a), from: h, until: s.now.Add(time.Hour)}
			key, value := k.write()
			write(bucketKept, key, value)
		}
		for j := range 3 {
			h.Key[1] = byte(j)
			key, value := writeRival(h, a, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
			write(bucketClaims, key, value)
		}
		a = a.Next()
	}
	n.launch()
	n.do(func(*core) {})
	if got := len(n.core.kept); got != maxKept || len(n.disk.data[bucketKept]) != maxKept {
		t.Errorf("%d notes, %d on disk", got, len(n.disk.data[bucketKept]))
	}
	claims := 0
	for _, rs := range n.core.rivals {
		claims += len(rs)
	}
	if len(n.core.rivals) != maxRivals || claims > 2*maxRivals || len(n.disk.data[bucketClaims]) != claims {
		t.Errorf("claims of %d addresses, %d claims, %d on disk", len(n.core.rivals), claims, len(n.disk.data[bucketClaims]))
	}
}

// A state file that has notes of addresses outside the range is read without them.
func TestNotesOutsideTheRangeAreNotRead(t *testing.T) {
	s := newSim(t, 1)
	n := s.add(keepRange, Init{Mode: Consensus, Expect: 1})
	k := kept{rng: addr.Single(netip.MustParseAddr("fd00::1")), from: n.self()}
	key, value := k.write()
	if err := n.disk.Apply([]store.Write{{Bucket: bucketKept, Key: key, Value: value}}); err != nil {
		t.Fatal(err)
	}
	c := newCore(n.cfg, n, s.rng)
	if notes := c.load(n.disk); len(notes) != 1 || len(c.kept) != 0 {
		t.Errorf("%v, %d notes of removals", notes, len(c.kept))
	}
}

// A host is away. Its heir is removed too, and then banned, so the heir gets nothing back. Nothing is
// kept for it then: the host gets its addresses as soon as it is back.
func TestNothingIsKeptForABannedHeir(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, back, first, used := s.removedByPrograms()
	others := except(nodes[:4], first)
	first.kill()
	s.removed(ByProgram, first, others...)
	for _, n := range others {
		n.do(func(c *core) { c.ask(&ring.Action{Kind: ring.Ban, From: first.self(), To: c.heirFor(first.self())}) })
	}
	back.launch()
	s.run(20 * time.Second)
	s.converged(20 * time.Second)
	if !others[0].core.ring.IsBanned(first.self()) {
		t.Fatal("it is not banned")
	}
	for _, a := range used {
		if !back.core.space.Owns(a) {
			t.Errorf("%s was not given back", a)
		}
	}
}

// A host inherits a range, and its own containers use some of the addresses: it was removed before,
// and is the heir of its heir. Those addresses are its own. When a container ends, its address is kept
// like the rest.
func TestAddressesOfOwnContainersAreNotKeptForOthers(t *testing.T) {
	s := newSim(t, seed.New(t))
	n := s.add(keepRange, Init{Mode: Consensus, Expect: 1})
	used := n.allocate("used", keepRange)
	n.do(func(c *core) {
		c.keep(kept{rng: addr.Of(pfx("10.32.0.0/25")), from: ring.Holder{Name: peer.Name{2, 7}, Key: peer.KeyID{7}}, until: c.now.Add(time.Hour), heir: true})
		c.setOwned()
	})
	for _, again := range []bool{false, true} {
		if again {
			n.startAgain(n.disk)
			s.run(5 * time.Second)
		}
		if st := n.core.status(); !n.core.space.Owns(used) || st.Owners[0].Active != 1 || len(st.Conflicts) > 0 {
			t.Errorf("started again %v: owners %+v, conflicts %v", again, st.Owners, st.Conflicts)
		}
	}
	found := used.Next() // by the kernel
	n.do(func(c *core) { c.hold("found", netip.PrefixFrom(found, 24)) })
	if !n.core.space.Owns(found) {
		t.Errorf("%s is in use here, and does not count as own", found)
	}
	n.do(func(c *core) { c.release("used", used) })
	if got := s.fill(n); slices.Contains(got, used) || len(got) == 0 {
		t.Errorf("%s is kept, and was given after its container had ended: %v", used, got)
	}
}

// A host has lost its state folder, and gets the addresses of its containers one by one from the heir
// of its old name. The heir goes before it has given all of them, and just then the host is cut off.
// Who owns the rest then gives none of it before the host has claimed it.
func TestHeirsOfHeirsTakeClaims(t *testing.T) {
	for _, how := range slices.Sorted(maps.Keys(waysToGo)) {
		s := newSim(t, seed.New(t))
		nodes, used := s.fiveInUse(keepRange, askBurst+10)
		for _, n := range nodes {
			n.core.cfg.Settle = time.Hour // the host gets no vote
		}
		dead := nodes[4]
		dead.kill()
		s.run(5 * time.Second)
		renamed := s.lostState(dead, used)
		s.run(5 * time.Second)
		heir := s.removedBy(dead, nodes[:4]...)
		s.run(claimsFirst + 5*time.Second)
		left := 0
		for _, a := range used {
			if owner, _ := nodes[0].core.ring.Owner(a); owner == heir.self() {
				left++
			}
		}
		if left == 0 {
			t.Fatal("the heir has given all")
		}
		others := except(nodes[:4], heir)
		s.cut = func(a, b *node) bool { return a == renamed || b == renamed }
		waysToGo[how](s, heir, others)
		for _, n := range others {
			for i := range 64 {
				n.begin(func(c *core, id uint64) { c.allocate(id, fmt.Sprint("more", i), pfx(keepRange)) })
			}
		}
		s.run(claimsFirst / 2)
		s.cut = func(a, b *node) bool { return false }
		s.run(time.Minute)
		for _, a := range used {
			for _, n := range others {
				if al, given := n.core.allocations[a]; given {
					t.Errorf("the heir %s: %s was given to %s", how, a, al.owner)
				}
			}
			if !renamed.core.space.Owns(a) {
				t.Errorf("the heir %s: %s does not belong to the host that uses it", how, a)
			}
		}
	}
}

// A host has lost its state folder, and too many voters are dead to remove its old name. An operator
// goes on without them on one host, and a minute later on the host without a state. Until then nobody
// gives the addresses of its containers, and then it gets them.
func TestRingThatIsFoundedAgainLeavesTimeForClaims(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, used := s.fiveInUse(keepRange, 5)
	for _, n := range nodes {
		n.core.cfg.Settle = time.Hour // no other gets a vote
	}
	nodes[4].kill()
	s.run(5 * time.Second)
	renamed := s.lostState(nodes[4], used)
	nodes[2].kill()
	nodes[3].kill()
	s.run(5 * time.Second)
	first, gone := nodes[0], []peer.Name{nodes[2].cfg.Self, nodes[3].cfg.Self, nodes[4].cfg.Self}
	first.do(func(c *core) {
		if _, err := c.refound(gone); err != nil {
			t.Fatal(err)
		}
	})
	for i := range 200 {
		first.begin(func(c *core, id uint64) { c.allocate(id, fmt.Sprint("more", i), pfx(keepRange)) })
	}
	s.run(30 * time.Second)
	first.kill() // what it keeps is on its disk
	first.launch()
	s.run(30 * time.Second)
	for _, n := range []*node{nodes[1], renamed} {
		n.do(func(c *core) {
			if err := c.adopt(first.core.ring.Genesis().ID(), true); err != nil {
				t.Fatal(err)
			}
		})
	}
	s.converged(20 * time.Second)
	s.run(followTime + claimsFirst)
	for _, a := range used {
		if al, given := first.core.allocations[a]; given {
			t.Errorf("%s was given to %s", a, al.owner)
		}
		if !renamed.core.space.Owns(a) {
			t.Errorf("%s does not belong to the host that uses it", a)
		}
	}
	for i := range 200 {
		first.begin(func(c *core, id uint64) { c.allocate(id, fmt.Sprint("last", i), pfx(keepRange)) })
	}
	s.run(5 * time.Second)
	if n := len(first.core.allocations); n < 100 {
		t.Errorf("only %d addresses are in use: those of the dead are not", n)
	}
}

// A peer has notes of removals in a ring that it leaves for another one, in which slots begin at 1
// again. Removals of the ring before still count as earlier.
func TestNotesOfAnotherRingAreEarlier(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, _, heir, used := s.removedByPrograms()
	others := except(nodes[:4], heir)
	first := others[0]
	for _, n := range append(slices.Clone(others[1:]), heir) {
		n.kill()
	}
	s.run(5 * time.Second)
	first.do(func(c *core) { // the heir is dead too
		if _, err := c.refound([]peer.Name{heir.cfg.Self}); err != nil {
			t.Fatal(err)
		}
	})
	s.run(time.Second)
	first.kill()
	first.launch()
	first.do(func(*core) {})
	var notes []kept
	for _, k := range first.core.kept {
		if k.rng.Contains(used[0]) {
			notes = append(notes, k)
		}
	}
	if len(notes) != 2 {
		t.Fatalf("notes %+v", notes)
	}
	for _, k := range notes {
		if k.forNobody() != (k.slot >= 0) {
			t.Errorf("slot %d, for nobody %v", k.slot, k.forNobody())
		}
	}
}

// decideSnapshot makes the voters decide a snapshot, although there are few decisions.
func (s *sim) decideSnapshot() {
	s.t.Helper()
	s.nodes[0].do(func(c *core) {
		body := c.ring.Body([]*ring.Action{c.ring.NextSnapshot()})
		msg := ring.VoteMessage(c.ring.Genesis().ID(), c.ring.Slot()+1, 0, ring.BodyID(body))
		var votes []ring.Vote
		for i, h := range c.ring.Voters() {
			for _, n := range s.nodes {
				if n.self() == h {
					votes = append(votes, ring.Vote{Voter: i, Key: n.cfg.Signer.Key(), Sig: n.cfg.Signer.Sign(ring.VoteDomain, msg)})
				}
			}
		}
		if out, err := c.ring.Decide(ring.NewDecision(body, 0, votes)); err != nil || !out.Changed {
			s.t.Fatal(err, out.Refused)
		}
	})
	s.converged(20 * time.Second)
}

// An heir loses its disk, and gets the ring as a snapshot, which does not say who owned what before.
// It gives nothing of what it inherited lately all the same, and the host that was removed gets it when
// it is back.
func TestSnapshotEndsNoKeeping(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, used := s.fiveInUse(keepRange, 5)
	back := nodes[4]
	nodes[0].claims(nodes[1].core.space.Owned()[0].Last) // a decision that changes no voters is not kept
	back.kill()
	heir := s.removed(ByProgram, back, nodes[:4]...)
	s.converged(20 * time.Second)
	s.decideSnapshot()
	heir.startAgain(newDisk())
	s.run(5 * time.Second)
	s.converged(20 * time.Second)
	for _, a := range s.fill(nodes[:4]...) {
		if slices.Contains(used, a) {
			t.Fatalf("%s was given to another container", a)
		}
	}
	back.launch()
	s.run(30 * time.Second)
	s.waitKeep()
	for _, a := range used {
		if !back.core.space.Owns(a) {
			t.Errorf("%s does not belong to the host that uses it", a)
		}
	}
}

// noteWrites is a watcher that counts the writes of notes.
type noteWrites int

func (w *noteWrites) stepped(_ *node, writes []store.Write, _ []effect) {
	for _, wr := range writes {
		if wr.Bucket == bucketKept {
			*w++
		}
	}
}

func (*noteWrites) repaired(_, _ *node, _ []byte) {}

// A removed peer owned more ranges than there are notes. Its largest ones are noted, and the others cost
// nothing.
func TestLargestRangesOfARemovedPeerAreKept(t *testing.T) {
	const whole = "10.32.0.0/16"
	s := newSim(t, seed.New(t))
	heir := s.add(whole, Init{Mode: Consensus, Expect: 1})
	heir.cfg.Settle = time.Hour // the other one gets no vote
	heir.launch()
	heir.allocate("c", whole)
	gone := s.add(whole, Init{Mode: Observer})
	s.run(time.Second)
	give := func(ranges ...addr.Range) {
		heir.do(func(c *core) {
			c.deciding = true // all in one decision
			for _, r := range ranges {
				if !c.give(gone.self(), r, 0) {
					t.Fatalf("it does not give %s", r)
				}
			}
			c.deciding = false
		})
		s.run(time.Second)
	}
	at := netip.MustParseAddr("10.32.1.0")
	for range 11 {
		var singles []addr.Range
		for range 100 {
			singles = append(singles, addr.Single(at))
			at = at.Next().Next()
		}
		give(singles...)
	}
	large := []addr.Range{addr.Of(pfx("10.32.128.0/28")), addr.Of(pfx("10.32.129.0/28"))}
	give(large...)
	if by, _ := heir.core.ring.Ranges(); by[gone.self()] <= maxKept {
		t.Fatalf("it owns %d ranges", by[gone.self()])
	}
	gone.kill()
	s.run(10 * time.Second)
	var written noteWrites
	s.watcher = &written
	heir.do(func(c *core) { c.remove(c.nextID(), []peer.Name{gone.cfg.Self}, ByOperator) })
	if by, _ := heir.core.ring.Ranges(); by[gone.self()] > 0 {
		t.Fatalf("it was not removed: %v", heir.core.status().Waiting)
	}
	if n := len(heir.core.kept); n != maxKept || written != maxKept {
		t.Errorf("%d notes, %d writes", n, written)
	}
	for _, r := range large {
		if !slices.ContainsFunc(heir.core.kept, func(k kept) bool { return k.rng == r }) {
			t.Errorf("there is no note of %s", r)
		}
	}
}
