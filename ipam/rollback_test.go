package ipam

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

const rollbackRange = "10.32.0.0/26"

// rollbacks is a sim of hosts whose disks are replaced by old copies, or lost, while their
// containers live on. It knows which addresses containers really have.
type rollbacks struct {
	*sim
	seed   uint64
	alive  map[*node]map[netip.Addr]string // owners
	old    map[*node][]*memDisk
	warned map[netip.Addr]bool // given by a node that said that others may have it
	gave   int
}

func newRollbacks(t testing.TB, seed uint64, nodes int) *rollbacks {
	w := &rollbacks{sim: newSim(t, seed), seed: seed, alive: make(map[*node]map[netip.Addr]string), old: make(map[*node][]*memDisk), warned: make(map[netip.Addr]bool)}
	w.duplicatesExpected, w.watcher = true, w // stepped is the stricter check
	for range nodes {
		w.join(nodes)
	}
	return w
}

// join adds a node to a mesh of some nodes.
func (w *rollbacks) join(nodes int) {
	n := w.add(rollbackRange, Init{Mode: Consensus, Expect: nodes})
	n.cfg.CatchUp = 20 * time.Second
	n.launch()
	w.alive[n] = make(map[netip.Addr]string)
}

func (w *rollbacks) repaired(*node, *node, []byte) {}

// stepped fails the test if a node gives an address that a container has, unless it, or the
// node that gave the address before, had said that this may happen.
func (w *rollbacks) stepped(n *node, _ []store.Write, effects []effect) {
	for _, e := range effects {
		r, ok := e.(effReply)
		if !ok || !r.prefix.IsValid() {
			continue
		}
		a := r.prefix.Addr()
		warned := n.core.unheard() != ""
		for m, has := range w.alive {
			if owner := has[a]; owner != "" && owner != n.core.allocations[a].owner && !warned && !w.warned[a] {
				w.t.Fatalf("seed %d: %s gives %s, which %s has on %s", w.seed, n.cfg.Self, a, owner, m.cfg.Self)
			}
		}
		w.alive[n][a] = n.core.allocations[a].owner
		w.warned[a] = warned
		w.gave++
	}
}

// restart kills a node and starts it with another disk. Its containers live on, and the
// kernel shows them to it.
func (w *rollbacks) restart(n *node, disk *memDisk, lost bool) {
	n.kill()
	if w.rng.IntN(2) == 0 {
		w.run(time.Duration(w.rng.IntN(2000)) * time.Millisecond)
	}
	n.disk, n.cfg.Lost = disk, lost
	n.launch()
	n.do(func(c *core) {
		for _, a := range slices.SortedFunc(maps.Keys(w.alive[n]), netip.Addr.Compare) {
			c.hold(w.alive[n][a], netip.PrefixFrom(a, 26))
		}
		for _, a := range slices.SortedFunc(maps.Keys(c.allocations), netip.Addr.Compare) {
			if al := c.allocations[a]; w.alive[n][a] != al.owner {
				c.release(al.owner, a) // the container is gone
			}
		}
	})
}

// lose returns a copy of a disk without some of its buckets.
func (w *rollbacks) lose(disk *memDisk) *memDisk {
	d := disk.clone()
	for _, bucket := range slices.Sorted(maps.Keys(d.data)) {
		if w.rng.IntN(2) == 0 {
			delete(d.data, bucket)
		}
	}
	return d
}

func (w *rollbacks) event(step int) {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	// One at a time: a quorum survives a third of the voters that forgot their votes.
	free := !slices.ContainsFunc(w.nodes, func(m *node) bool { return m != n && m.core.catch != nil })
	switch k := w.rng.IntN(20); {
	case k < 8:
		for i := range 1 + w.rng.IntN(12) { // many on one host, so that ranges move
			n.begin(func(c *core, id uint64) { c.allocate(id, fmt.Sprint("c", step, "-", i), pfx(rollbackRange)) })
		}
	case k < 11:
		n.do(func(c *core) { c.pending = nil }) // their callers are gone
		for _, a := range slices.SortedFunc(maps.Keys(w.alive[n]), netip.Addr.Compare) {
			owner := w.alive[n][a]
			delete(w.alive[n], a)
			n.do(func(c *core) { c.release(owner, a) })
		}
	case k < 13:
		w.old[n] = append(w.old[n], n.disk.clone())
	case k < 15:
		if copies := w.old[n]; free && len(copies) > 0 {
			w.restart(n, copies[w.rng.IntN(len(copies))].clone(), false)
		}
	case k == 15 && free:
		w.restart(n, w.lose(n.disk), true)
	case k == 16 && free:
		w.restart(n, newDisk(), true)
	case k == 17:
		split := 1 + w.rng.IntN(4)
		w.cut = func(a, b *node) bool { return (a.number <= split) != (b.number <= split) }
	default:
		w.cut = func(a, b *node) bool { return false }
	}
	w.run(time.Duration(w.rng.IntN(1500)) * time.Millisecond)
}

// Disks go back in time, lose a part or everything at random moments, one at a time, with
// living containers, cut off and not: no address is given twice, except where the node said
// that it might.
func TestOldStateGivesNothingTwice(t *testing.T) {
	first := seed.New(t)
	for seed := first; seed < first+20; seed++ {
		w := newRollbacks(t, seed, 5)
		w.nodes[0].allocate("first", rollbackRange)
		w.converged(30 * time.Second)
		for step := range 120 {
			w.event(step)
		}
		w.cut = func(a, b *node) bool { return false }
		w.converged(60 * time.Second)
		w.run(30 * time.Second)
		for _, n := range w.nodes {
			if s := n.core.status(); s.State != "ready" && s.PendingAllocates == 0 || s.Unheard != "" {
				t.Errorf("seed %d: %s is %s; %s", seed, n.cfg.Self, s.State, s.Unheard)
			}
		}
		if w.gave < 20 {
			t.Errorf("seed %d: only %d addresses were given", seed, w.gave)
		}
	}
}

// A host with an old disk that is cut off gives nothing and says why. After a time it gives
// addresses, and says what that means. When it meets the others it gives only its own.
func TestOldStateOfACutOffHost(t *testing.T) {
	w := newRollbacks(t, seed.New(t), 2)
	a, b := w.nodes[0], w.nodes[1]
	a.allocate("first", rollbackRange)
	w.converged(30 * time.Second)
	old := a.disk.clone()
	for i := range 45 { // more than the half of b
		b.allocate(fmt.Sprint("b", i), rollbackRange)
	}
	w.converged(30 * time.Second)
	w.cut = func(a, b *node) bool { return true }
	w.restart(a, old, false)
	id := a.begin(func(c *core, id uint64) { c.allocate(id, "second", pfx(rollbackRange)) })
	w.run(10 * time.Second)
	if s := a.core.status(); s.PendingAllocates != 1 || !strings.Contains(s.State, "no peer that owns addresses and knows the present state has been reached") || s.Unheard != "" {
		t.Errorf("it is %s; %s", s.State, s.Unheard)
	}
	if why := a.reason(id); !strings.Contains(why, "may be old") {
		t.Errorf("reason %q", why)
	}
	w.run(15 * time.Second)
	a.allocate("third", rollbackRange)
	if s := a.core.status(); !strings.Contains(s.Unheard, "others may have these addresses") {
		t.Errorf("it is %s; %s", s.State, s.Unheard)
	}
	w.cut = func(a, b *node) bool { return false }
	w.run(simStep)
	for i := range 5 {
		a.allocate(fmt.Sprint("a", i), rollbackRange) // stepped checks each
	}
	if s := a.core.status(); s.Unheard != "" {
		t.Errorf("after contact: %s", s.Unheard)
	}
}

// A copy of the folder of a host that lives gives nothing, however long it waits.
func TestCopyOfALivingHostGivesNothing(t *testing.T) {
	w := newRollbacks(t, seed.New(t), 2)
	a := w.nodes[0]
	a.allocate("first", rollbackRange)
	w.converged(30 * time.Second)
	w.cut = func(a, b *node) bool { return true } // the others refuse it
	w.restart(a, a.disk, false)
	a.collides = true
	id := a.begin(func(c *core, id uint64) { c.allocate(id, "second", pfx(rollbackRange)) })
	// It fails at once: nothing that the caller could wait for changes it.
	requests := map[string]uint64{"allocate, begun before it is known": id}
	w.run(time.Second)
	requests["allocate"] = a.begin(func(c *core, id uint64) { c.allocate(id, "third", pfx(rollbackRange)) })
	requests["claim"] = a.begin(func(c *core, id uint64) { c.claim(id, "fourth", netip.MustParsePrefix("10.32.0.9/26")) })
	requests["prime"] = a.begin(func(c *core, id uint64) { c.prime(id) })
	for what, id := range requests {
		r, ok := a.await(id, time.Second)
		if !ok || r.err == nil || !strings.Contains(r.err.Error(), "another live router has the identity of this host") {
			t.Errorf("%s: %v, %v, %v", what, ok, r.prefix, r.err)
		}
	}
	// A container that it has already keeps its address.
	if got := a.allocate("first", rollbackRange); got != a.core.byOwnerFirst("first") {
		t.Errorf("the first container has %s", got)
	}
	w.run(time.Minute)
	last := a.begin(func(c *core, id uint64) { c.allocate(id, "last", pfx(rollbackRange)) })
	if r, ok := a.await(last, time.Second); !ok || r.err == nil {
		t.Errorf("a minute later it gives %v", r.prefix)
	}
}

// Peers that the ring does not name, and that come one after another and do not answer, keep a
// host from its addresses neither if it reaches the others nor if it is cut off from them.
func TestVisitorsDoNotStopAllocation(t *testing.T) {
	for _, isCut := range []bool{false, true} {
		w := newRollbacks(t, seed.New(t), 3)
		a := w.nodes[0]
		a.allocate("first", rollbackRange)
		w.converged(30 * time.Second)
		known := slices.Clone(w.nodes)
		w.cut = func(m, n *node) bool { return isCut && slices.Contains(known, m) && slices.Contains(known, n) }
		w.restart(a, a.disk, false)
		id := a.begin(func(c *core, id uint64) { c.allocate(id, "second", pfx(rollbackRange)) })
		bound := 5 * time.Second
		if isCut {
			bound = a.cfg.CatchUp + stateTimeout
		}
		var visitors []*node
		given := false
		for end := w.now.Add(bound); !given && w.now.Before(end); {
			v := w.add(rollbackRange, Init{Mode: Observer})
			v.core, v.pretends = nil, true
			if visitors = append(visitors, v); len(visitors) > 2 {
				visitors[len(visitors)-3].pretends = false
			}
			_, given = a.await(id, 4*time.Second)
		}
		if !given {
			t.Errorf("cut off %v: nothing is given in %v: %s", isCut, bound, a.reason(id))
		}
	}
}

// Two known peers that do not answer, one of which is always present, delay allocation no
// longer than two that stay.
func TestPeersThatComeAndGoDoNotStopAllocation(t *testing.T) {
	w := newRollbacks(t, seed.New(t), 3)
	a, b, c := w.nodes[0], w.nodes[1], w.nodes[2]
	a.allocate("first", rollbackRange)
	w.converged(30 * time.Second)
	b.kill()
	c.kill()
	w.restart(a, a.disk, false)
	id := a.begin(func(c *core, id uint64) { c.allocate(id, "second", pfx(rollbackRange)) })
	given, turn := false, false
	for end := w.now.Add(a.cfg.CatchUp + 2*stateTimeout); !given && w.now.Before(end); turn = !turn {
		b.pretends, c.pretends = turn, !turn
		if _, given = a.await(id, 4*time.Second); !given {
			b.pretends, c.pretends = true, true
			_, given = a.await(id, time.Second)
		}
	}
	if !given {
		t.Errorf("nothing is given: %s", a.reason(id))
	}
}

// A file from before others joined names none of them. If targets were given, and none of them
// answers, nothing is given at first either.
func TestOldStateFromBeforeOthersJoined(t *testing.T) {
	w := newRollbacks(t, seed.New(t), 1)
	a := w.nodes[0]
	a.allocate("first", rollbackRange)
	old := a.disk.clone()
	b := w.add(rollbackRange, Init{Mode: Observer})
	w.alive[b] = make(map[netip.Addr]string)
	b.allocate("b", rollbackRange)
	w.converged(30 * time.Second)
	w.cut = func(a, b *node) bool { return true }
	a.awaits = true
	w.restart(a, old, false)
	id := a.begin(func(c *core, id uint64) { c.allocate(id, "second", pfx(rollbackRange)) })
	w.run(10 * time.Second)
	if s := a.core.status(); s.PendingAllocates != 1 || !strings.Contains(s.State, "no target of this host has answered") {
		t.Errorf("it is %s", s.State)
	}
	if _, ok := a.await(id, time.Minute); !ok {
		t.Errorf("it gives nothing: %s", a.reason(id))
	}
	if s := a.core.status(); !strings.Contains(s.Unheard, "others may have these addresses") {
		t.Errorf("it does not say what that means: %q", s.Unheard)
	}
}

// A peer that signed a transfer, and forgot that with its disk, does not use the range.
func TestForgottenTransferIsHonoured(t *testing.T) {
	w := newRollbacks(t, seed.New(t), 3)
	a, b := w.nodes[0], w.nodes[1]
	a.allocate("first", rollbackRange)
	w.converged(30 * time.Second)
	old := a.disk.clone()
	var offered *ring.Action
	a.do(func(c *core) {
		r := c.ring.RunOf(c.byOwnerFirst("first"))
		r.First = c.byOwnerFirst("first").Next()
		if !c.give(ring.HolderOf(b.cfg.Self, b.cfg.Signer.Key()), r, 1) {
			t.Fatal("nothing is offered")
		}
		for _, o := range c.offers {
			offered = o.action
		}
	})
	// The wish arrives, and the voters cannot decide it yet.
	b.do(func(c *core) { c.onWish(a.cfg.Self, message{kind: msgWish, body: offered.Encode()}) })
	w.restart(a, old, false)
	a.do(func(c *core) {
		if len(c.offers) != 0 {
			t.Fatal("the offer is on the old disk")
		}
	})
	w.run(simStep)
	got := a.allocate("second", rollbackRange)
	if offered.Range.Contains(got) {
		t.Errorf("%s is in the range %s that was given away", got, offered.Range)
	}
}

// A host starts with a disk from the time of the first election, which has no ring. When the ring of
// the others arrives, it catches up with them before it gives anything.
func TestStateFromTheFirstElectionIsOld(t *testing.T) {
	w := newRollbacks(t, seed.New(t), 3)
	a := w.nodes[0]
	a.begin(func(c *core, id uint64) { c.allocate(id, "first", pfx(rollbackRange)) })
	for len(a.disk.data[bucketElection]) == 0 {
		w.run(simStep)
	}
	old := a.disk.clone()
	if len(old.data[bucketRing]) > 0 {
		t.Fatal("the disk has a ring")
	}
	w.converged(30 * time.Second)
	before := w.nodes[1].core.ring.Slot()
	for range 64 { // more than its own part
		a.begin(func(c *core, id uint64) { c.allocate(id, fmt.Sprint("c", id), pfx(rollbackRange)) })
	}
	w.run(10 * time.Second)
	w.converged(30 * time.Second)
	if w.nodes[1].core.ring.Slot() == before {
		t.Fatal("nothing was decided")
	}
	w.restart(a, old, false)
	for !a.core.ring.Ready() {
		w.run(simStep)
	}
	if state := a.core.status().State; !strings.HasPrefix(state, "catching up") {
		t.Errorf("it is %s", state)
	}
	w.run(5 * time.Second)
	if state := a.core.status().State; strings.HasPrefix(state, "catching up") {
		t.Errorf("it is still %s", state)
	}
}

// A host has signed a transfer, which reached one voter alone, and starts with a disk from before. The
// voters that it asks do not agree to the transfer as long as others may bring it: not before the host
// itself sends it again.
func TestForgottenTransferIsNotDecided(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, _ := s.fiveInUse(keepRange, 1)
	giver, voter, to := nodes[4], nodes[0], nodes[1]
	free := giver.core.space.Free(addr.Of(pfx(keepRange)))[0]
	a, err := giver.core.ring.Give(giver.cfg.Signer, giver.self(), to.self(), addr.Single(free.Last))
	if err != nil {
		t.Fatal(err)
	}
	if err := voter.core.agree(a); err != nil {
		t.Fatalf("before the start: %v", err)
	}
	giver.kill()
	s.run(time.Second)
	giver.launch()
	s.run(5 * time.Second)
	wish := (&message{kind: msgWish, id: voter.core.ring.Slot(), body: a.Encode()}).encode()
	voter.do(func(c *core) { _ = c.receive(to.cfg.Self, wish) })
	s.run(5 * time.Second)
	if owner, _ := voter.core.ring.Owner(free.Last); owner != giver.self() {
		t.Fatalf("%s went to %s", free.Last, owner)
	}
	s.run(5 * time.Minute) // a voter that lies can bring it again at any time
	voter.do(func(c *core) { _ = c.receive(to.cfg.Self, wish) })
	if err := voter.core.agree(a); err == nil || !strings.Contains(err.Error(), "may have forgotten it") {
		t.Errorf("after the start: %v", err)
	}
	voter.do(func(c *core) { _ = c.receive(giver.cfg.Self, wish) })
	if err := voter.core.agree(a); err != nil {
		t.Errorf("sent by the host itself: %v", err)
	}
}

// A host has signed a transfer of one address, has forgotten it, and a container has the address. Later
// the routers of the voters are started again, one after the other. A voter that lies has kept the
// transfer, and shows it to them then. The address stays where it is in use.
func TestForgottenTransferIsNotDecidedAfterVotersStart(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, _ := s.fiveInUse(keepRange, 1)
	giver, liar := nodes[4], nodes[0]
	a := giver.core.space.Free(addr.Of(pfx(keepRange)))[0].Last
	kept, err := giver.core.ring.Give(giver.cfg.Signer, giver.self(), liar.self(), addr.Single(a))
	if err != nil {
		t.Fatal(err)
	}
	giver.kill()
	s.run(time.Second)
	giver.launch()
	s.run(5 * time.Second)
	giver.claims(a)
	for _, n := range nodes[:4] {
		n.kill()
		s.run(time.Second)
		n.launch()
		s.run(5 * time.Second)
	}
	liar.do(func(c *core) { c.hold("liar", netip.PrefixFrom(a, 24)) })
	for range 10 {
		for _, n := range nodes {
			s.post(liar, n, 'u', (&message{kind: msgWish, id: n.core.ring.Slot(), body: kept.Encode()}).encode())
		}
		s.run(time.Second)
		if owner, _ := nodes[1].core.ring.Owner(a); owner != giver.self() {
			t.Fatalf("%s, which a container has, went to %s", a, owner)
		}
	}
}

// offersWithoutQuorum makes five nodes, of which the last one has signed n transfers to the first one
// while too few voters can be reached. Then all are dead.
func (s *sim) offersWithoutQuorum(n int) (nodes []*node, given []netip.Addr) {
	s.t.Helper()
	const many = "10.32.0.0/20"
	nodes, _ = s.fiveInUse(many, 1)
	giver, to := nodes[4], nodes[0]
	for _, m := range nodes[1:4] {
		m.kill()
	}
	for i := range n {
		a := giver.core.space.Free(addr.Of(pfx(many)))[0].Last
		giver.do(func(c *core) {
			if !c.give(to.self(), addr.Single(a), uint64(i)) {
				s.t.Fatal("it gives nothing")
			}
		})
		given = append(given, a)
	}
	s.run(wishTTL / 2)
	for _, m := range nodes {
		m.kill()
	}
	return nodes, given
}

// A host has signed more transfers than voters keep wishes of a host, and nothing was decided before
// all hosts start again. All transfers are decided all the same.
func TestManyTransfersAreDecidedAfterAllHostsStart(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, given := s.offersWithoutQuorum(2 * maxWishesBy)
	for _, n := range nodes {
		n.launch()
	}
	s.run(wishTTL)
	s.converged(20 * time.Second)
	for _, a := range given {
		if owner, _ := nodes[4].core.ring.Owner(a); owner != nodes[0].self() {
			t.Errorf("%s belongs to %s", a, owner)
		}
	}
}

// Slots count in one ring. What a peer remembers of starts of others ends, also on its disk, when the ring
// is founded again.
func TestStartsOfAnotherRingAreForgotten(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, _ := s.fiveInUse(keepRange, 1)
	first, again := nodes[0], nodes[1]
	again.kill()
	again.launch()
	s.run(5 * time.Second)
	if n := len(first.disk.data[bucketStarts]); n != 1 {
		t.Fatalf("the disk has %d starts", n)
	}
	for _, n := range nodes[2:] {
		n.kill()
	}
	s.run(5 * time.Second)
	first.do(func(c *core) {
		if _, err := c.refound([]peer.Name{nodes[2].cfg.Self}); err != nil {
			t.Fatal(err)
		}
	})
	s.run(2 * flushEvery)
	if n := len(first.core.startedPeers) + len(first.disk.data[bucketStarts]); n != 0 {
		t.Errorf("it knows %d starts", n)
	}
}

// A voter remembers fewer transfers of a peer that shares its underlay address with another one, as
// whoever knows the password can make up such peers. It forgets them once the peer is silent.
func TestTransfersThatVotersRememberAreBounded(t *testing.T) {
	const n = maxTransfers + 20
	for _, shared := range []bool{false, true} {
		s := newSim(t, seed.New(t))
		nodes, _ := s.offersWithoutQuorum(n)
		voter, giver, want := nodes[0], nodes[4], n
		if shared {
			giver.at, nodes[1].pretends, want = nodes[1], true, maxTransfers
		}
		voter.launch()
		giver.launch()
		s.run(10 * time.Second)
		if got := len(voter.core.startedPeers[giver.cfg.Self].knows); got != want {
			t.Errorf("shared %v: %d transfers, want %d", shared, got, want)
		}
		giver.kill()
		s.run(wishTTL + 2*watchEvery)
		if got := len(voter.core.startedPeers[giver.cfg.Self].knows); got != 0 {
			t.Errorf("shared %v: %d transfers of a silent peer", shared, got)
		}
	}
}

// An operator resets a host while too few voters can be reached, and then starts its router again. The
// heir still asks for the handover, but the host has forgotten it and gives addresses to containers.
// So it keeps them. When the operator resets it once more, it leaves.
func TestForgottenHandoverIsNotDecided(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, _ := s.fiveInUse(keepRange, 1)
	host, dead := nodes[4], nodes[:2]
	before := host.core.ring.Owners()[host.self()]
	for _, n := range dead {
		n.kill()
	}
	id := host.begin(func(c *core, id uint64) { c.handover(id) })
	if _, ok := host.await(id, 5*time.Second); ok {
		t.Fatal("it was decided without a quorum")
	}
	host.kill()
	s.run(time.Second)
	host.launch()
	host.allocate("new", keepRange)
	for _, n := range dead {
		n.launch()
	}
	s.run(time.Minute)
	s.converged(20 * time.Second)
	if got := host.core.ring.Owners()[host.self()]; got != before {
		t.Errorf("it owns %v addresses, before %v", got, before)
	}
	if r := host.reset(); !r.Unreachable.IsZero() || r.Addresses != before {
		t.Errorf("%+v", r)
	}
}

func (c *core) byOwnerFirst(owner string) netip.Addr { return c.byOwner[owner][0] }
