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
	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

const addrRange = "10.32.0.0/20"

func TestFirstRingByConsensusAndUniqueAddresses(t *testing.T) {
	for _, u := range []string{addrRange, "fd00:10::/48"} {
		s := newSim(t, seed.New(t))
		s.loss = 0.2
		nodes := s.addAll(5, u)
		if got := nodes[0].core.status().State; got != "idle" {
			t.Errorf("state %q", got)
		}
		seen := map[netip.Addr]bool{}
		for i := range 40 {
			a := nodes[i%5].allocate(fmt.Sprint("c", i), u)
			if seen[a] {
				t.Fatalf("%s twice", a)
			}
			seen[a] = true
		}
		s.converged(20 * time.Second)
		if got := nodes[0].core.status().State; got != "ready" {
			t.Errorf("state %q", got)
		}
		// A repeated request gets the same address.
		if a, b := nodes[1].allocate("c1", u), nodes[1].allocate("c1", u); a != b {
			t.Errorf("%s, then %s", a, b)
		}
	}
}

// Hosts that see most others only through their neighbours make a ring too.
func TestFirstRingInALineAndAStar(t *testing.T) {
	for name, direct := range map[string]func(a, b *node) bool{
		"line": func(a, b *node) bool { return a.number-b.number == 1 || b.number-a.number == 1 },
		"star": func(a, b *node) bool { return a.number == 1 || b.number == 1 },
	} {
		for asked := range 3 {
			s := newSim(t, seed.New(t))
			s.direct = direct
			nodes := s.addAll(9, addrRange)
			nodes[asked*4].allocate(name, addrRange)
			s.converged(20 * time.Second)
			if n := len(nodes[0].core.ring.Voters()); n != 9 {
				t.Errorf("%s: %d voters", name, n)
			}
		}
	}
}

func TestSmallSubnetIsSharedToTheLastAddress(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes := s.addAll(3, addrRange)
	for i := range 14 { // a /28 has 14 hosts
		nodes[i%3].allocate(fmt.Sprint("c", i), "10.32.1.16/28")
	}
	id := nodes[0].begin(func(c *core, id uint64) { c.allocate(id, "more", pfx("10.32.1.16/28")) })
	if _, ok := nodes[0].await(id, 10*time.Second); ok {
		t.Fatal("a full subnet gave an address")
	}
	if why := nodes[0].reason(id); !strings.Contains(why, "subnet 10.32.1.16/28 is full") {
		t.Errorf("reason %q", why)
	}
	// An address is released on another peer, and found.
	id = nodes[0].begin(func(c *core, id uint64) { c.allocate(id, "more", pfx("10.32.1.16/28")) })
	s.run(time.Second)
	if st := nodes[0].core.status(); st.PendingAllocates != 1 || !strings.HasPrefix(st.State, "waiting for 1 IP because subnet") {
		t.Errorf("status %+v", st.State)
	}
	owner := "c1"
	nodes[1].do(func(c *core) { c.release(owner, c.byOwner[owner][0]) })
	if _, ok := nodes[0].await(id, 20*time.Second); !ok {
		t.Fatalf("not found: %s", nodes[0].reason(id))
	}
}

func TestRollingResetLosesNoSpace(t *testing.T) {
	s := newSim(t, seed.New(t))
	s.loss = 0.1
	s.addAll(4, addrRange)
	for i, n := range s.nodes {
		n.allocate(fmt.Sprint("c", i), addrRange)
	}
	s.converged(10 * time.Second)
	whole := addr.Of(pfx(addrRange)).Size()
	for round := range 2 {
		for i := range 4 {
			old := s.nodes[0]
			if got := old.reset(); !got.Unreachable.IsZero() || got.Heir.IsZero() {
				t.Fatalf("reset left %+v", got)
			}
			// It comes back at once, with a new name or with its old one.
			n := s.add(addrRange, Init{Mode: Consensus, Expect: 4})
			if i%2 == 0 {
				n.cfg.Self = old.cfg.Self
				n.launch()
			}
			n.allocate(fmt.Sprint("n", round, i), addrRange)
			s.converged(30 * time.Second)
			if got := s.liveShare(n); got != whole {
				t.Fatalf("live peers own %v of %v", got, whole)
			}
		}
	}
	if got := s.nodes[0].core.status(); got.Refused != 0 && got.State != "ready" {
		t.Errorf("status %+v", got)
	}
}

func TestTwoRemovalsAtOnceGiveOneHeir(t *testing.T) {
	first := seed.New(t)
	for seed := first; seed < first+15; seed++ {
		s := newSim(t, seed)
		s.loss = 0.15
		nodes := s.addAll(5, addrRange)
		for i, n := range nodes {
			n.allocate(fmt.Sprint("c", i), addrRange)
		}
		s.converged(20 * time.Second)
		dead := nodes[4]
		dead.kill()
		ids := make([]uint64, 3)
		for i := range ids {
			ids[i] = nodes[i].begin(func(c *core, id uint64) { c.remove(id, []peer.Name{dead.cfg.Self}, ByOperator) })
			s.run(time.Duration(s.rng.IntN(300)) * time.Millisecond)
		}
		if s.rng.IntN(2) == 0 { // one of them is killed in the middle of it
			nodes[0].diesInNextStep = true
			s.run(time.Second)
			nodes[0].launch()
			ids = ids[1:]
		}
		var heirs []peer.Name
		for i, id := range ids {
			n := nodes[i+3-len(ids)]
			r, ok := n.await(id, 60*time.Second)
			if !ok || r.err != nil {
				t.Fatalf("seed %d: %s: %v %s", seed, n.cfg.Self, r.err, n.reason(id))
			}
			heirs = append(heirs, r.removed[0].Heir)
		}
		s.converged(20 * time.Second)
		for i, h := range heirs {
			if h != heirs[0] {
				t.Fatalf("seed %d: heirs %v (%d)", seed, heirs, i)
			}
		}
		if got, whole := s.liveShare(nodes[0]), addr.Of(pfx(addrRange)).Size(); got != whole {
			t.Fatalf("seed %d: live peers own %v of %v", seed, got, whole)
		}
		for i := range 20 {
			nodes[i%4].allocate(fmt.Sprint("after", i), addrRange)
		}
	}
}

// A peer that was removed although it was alive gets its addresses back.
func TestRemovedPeerComesBack(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes := s.addAll(3, addrRange)
	foreign := nodes[2].allocate("alive", addrRange)
	s.converged(10 * time.Second)
	s.cut = func(a, b *node) bool { return (a.number == 3) != (b.number == 3) }
	s.removedBy(nodes[2], nodes[0], nodes[1])
	s.cut = func(a, b *node) bool { return false }
	s.converged(20 * time.Second)
	s.run(15 * time.Second)
	if !nodes[2].core.space.Owns(foreign) || len(nodes[2].core.status().Conflicts) != 0 {
		t.Errorf("%s was not given back: %+v", foreign, nodes[2].core.status().Conflicts)
	}
	nodes[2].allocate("more", addrRange)
}

func TestDivergenceIsShownOnBothSidesAndHealedByOneCommand(t *testing.T) {
	for _, crossed := range []bool{false, true} {
		s := newSim(t, seed.New(t))
		s.cut = func(a, b *node) bool { return (a.number <= 2) != (b.number <= 2) }
		for range 4 {
			s.add(addrRange, Init{Mode: Consensus, Expect: 2})
		}
		s.duplicatesExpected = true // both sides give the same addresses, and cannot know it
		for i, n := range s.nodes {
			n.allocate(fmt.Sprint("c", i), addrRange)
		}
		s.cut = func(a, b *node) bool { return false }
		s.run(8 * time.Second)
		for _, n := range s.nodes {
			st := n.core.status()
			if len(st.Divergent) != 1 || st.Divergent[0].Theirs == st.Ring {
				t.Fatalf("%s shows %v", n.cfg.Self, st.Divergent)
			}
			if txt := st.Divergent[0].String(); !strings.Contains(txt, st.Ring.String()) {
				t.Errorf("text %q", txt)
			}
		}
		a, b := s.nodes[0], s.nodes[2]
		ringA, ringB := a.core.status().Ring, b.core.status().Ring
		if err := b.adopt(ringA); err != nil {
			t.Fatal(err)
		}
		if crossed {
			if err := a.adopt(ringB); err != nil {
				t.Fatal(err)
			}
		} else { // killed after its side left its ring
			s.run(5 * time.Second)
			b.kill()
			b.launch()
			if st := b.core.status(); st.Ring != ringA || !slices.Contains(st.LeftRings, ringB) {
				t.Errorf("ring %s, left %v", st.Ring, st.LeftRings)
			}
		}
		s.run(15 * time.Second) // crossed adoptions pass each other
		s.converged(30 * time.Second)
		s.duplicatesExpected = false
		s.run(20 * time.Second)
		conflicts := 0
		for _, n := range s.nodes {
			st := n.core.status()
			if st.State != "ready" || len(st.Divergent) != 0 {
				t.Errorf("%s: %s, %v", n.cfg.Self, st.State, st.Divergent)
			}
			for _, c := range st.Conflicts {
				if !c.InUse {
					t.Errorf("%s still asks for %v", n.cfg.Self, c)
				}
				conflicts++
			}
		}
		if conflicts != 2 {
			t.Errorf("%d conflicts shown, 2 addresses were given twice", conflicts)
		}
		for i, n := range s.nodes {
			n.allocate(fmt.Sprint("after", i), addrRange)
		}
	}
}

// Two of three hosts are lost for good. The voters that are left are too few, and say so;
// the operator of the last host goes on without them, and one that comes back follows.
func TestRingIsFoundedAgainAfterTheQuorumIsLost(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes := s.addAll(3, addrRange)
	kept := make([]netip.Addr, 3)
	for i, n := range nodes {
		kept[i] = n.allocate("kept", addrRange)
	}
	s.converged(10 * time.Second)
	nodes[1].kill()
	nodes[2].kill()
	s.run(3 * time.Second)
	gone := []peer.Name{nodes[1].cfg.Self, nodes[2].cfg.Self}
	id := nodes[0].begin(func(c *core, id uint64) { c.remove(id, gone, ByOperator) })
	if _, ok := nodes[0].await(id, 30*time.Second); ok {
		t.Fatal("one voter of three decided")
	}
	if why := nodes[0].reason(id); !strings.Contains(why, "1 of 3 voters can be reached, 2 must agree") {
		t.Errorf("reason %q", why)
	}
	nodes[0].do(func(c *core) {
		if out, err := c.refound(gone); err != nil || len(out) != 2 || out[0].Addresses.IsZero() {
			t.Fatal(out, err)
		}
	})
	nodes[0].kill() // the new ring is on disk
	nodes[0].launch()
	fresh := s.add(addrRange, Init{Mode: Consensus, Expect: 3})
	fresh.allocate("new", addrRange)

	nodes[1].launch()
	s.run(5 * time.Second)
	st := nodes[1].core.status()
	if len(st.Divergent) != 1 || !nodes[1].core.space.Owns(kept[1]) {
		t.Fatalf("divergent %v", st.Divergent)
	}
	nodes[1].do(func(c *core) {
		if err := c.adopt(st.Divergent[0].Theirs, true); err != nil {
			t.Fatal(err)
		}
	})
	s.converged(10 * time.Second)
	s.run(followTime + claimsFirst + 5*time.Second)
	if !nodes[1].core.space.Owns(kept[1]) || !nodes[0].core.space.Owns(kept[0]) {
		t.Error("addresses in use were lost")
	}
	s.drop(nodes[2])
	if got, whole := s.liveShare(nodes[0]), addr.Of(pfx(addrRange)).Size(); got != whole {
		t.Errorf("live peers own %v of %v", got, whole)
	}
}

func (n *node) adopt(id [16]byte) (err error) {
	n.do(func(c *core) { err = c.adopt(id, false) })
	return err
}

// churn is a sim in which random things happen to six nodes.
type churn struct {
	*sim
	seed    uint64
	remover map[peer.Name]bool // for each removed peer, whether it owned anything then
}

const churnRange = "10.32.0.0/24"

// event makes one random thing happen.
func (w *churn) event(step int) {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	switch k := w.rng.IntN(20); {
	case n.core == nil:
		n.launch()
	case k < 9:
		n.begin(func(c *core, id uint64) { c.allocate(id, fmt.Sprint(w.seed, step), pfx(churnRange)) })
	case k < 12:
		if owners := slices.Sorted(maps.Keys(n.core.byOwner)); len(owners) > 0 {
			n.do(func(c *core) { c.release(owners[0], c.byOwner[owners[0]][0]) })
		}
	case k < 14:
		n.diesInNextStep = true
	case k == 14:
		split := w.rng.IntN(7)
		w.cut = func(a, b *node) bool { return (a.number < split) != (b.number < split) }
	case k < 18:
		w.heal()
	case k == 18 && len(w.nodes) > 4:
		w.loseDisk(n)
	}
	w.run(time.Duration(w.rng.IntN(400)) * time.Millisecond)
}

func (w *churn) heal() { w.cut = func(a, b *node) bool { return false } }

// loseDisk kills n for good. The others remove it, and a fresh node takes its place.
func (w *churn) loseDisk(n *node) {
	n.kill()
	w.heal()
	for _, m := range w.nodes {
		if m.core == nil && m != n {
			m.launch()
		}
	}
	m := w.nodes[0]
	if m == n {
		m = w.nodes[1]
	}
	w.converged(60 * time.Second)
	// The votes of peers that were lost before go to those that are there; a quorum does
	// not survive the loss of several hosts in a moment.
	w.run(2 * dropAfter * n.cfg.Absence)
	if m.core == nil {
		m.launch()
	}
	if v := m.core.ring.Voters(); len(v)-1 < ring.Quorum(len(v)) {
		n.launch() // with two voters the operator would have to force it
		return
	}
	for _, o := range w.nodes {
		if o != n && o != m {
			o.removes(n)
		}
	}
	id := m.removes(n)
	r, ok := m.await(id, 30*time.Second)
	if !ok && m.core != nil { // without a voter that died meanwhile, too few may be left
		for _, o := range w.nodes {
			if o != n && o.core == nil {
				o.launch()
			}
		}
		r, ok = m.await(id, 60*time.Second)
	}
	if !ok || r.err != nil {
		if m.core == nil {
			return // killed while it waited
		}
		w.t.Fatalf("seed %d: %v %s", w.seed, r.err, m.reason(id))
	}
	w.drop(n)
	w.remover[n.cfg.Self] = !r.removed[0].Addresses.IsZero()
	w.add(churnRange, Init{Mode: Consensus, Expect: 6})
}

// removeAgain removes the peers to which a transfer was decided after they were removed,
// which can happen only if they owned nothing before.
func (w *churn) removeAgain() {
	for _, h := range slices.SortedFunc(maps.Keys(w.nodes[0].core.ring.Owners()), ring.Holder.Compare) {
		owned, removed := w.remover[h.Name]
		if !removed {
			continue
		}
		if owned {
			w.t.Fatalf("seed %d: %s was removed and owns space again", w.seed, h)
		}
		n := w.nodes[0]
		id := n.begin(func(c *core, id uint64) { c.remove(id, []peer.Name{h.Name}, ByOperator) })
		w.nodes[1].begin(func(c *core, id uint64) { c.remove(id, []peer.Name{h.Name}, ByOperator) })
		if r, ok := n.await(id, 60*time.Second); !ok || r.err != nil {
			w.t.Fatalf("seed %d: %s is not removed again: %v %s", w.seed, h, r.err, n.reason(id))
		}
	}
}

// Random allocations, releases, losses, cuts, kills at any moment and restarts, with
// or without the disk. check looks for duplicates at each step, and in the end every
// request is served. A removal survives all of that.
func TestNoDuplicatesUnderChurn(t *testing.T) {
	first := seed.New(t)
	for seed := first; seed < first+12; seed++ {
		w := &churn{sim: newSim(t, seed), seed: seed, remover: make(map[peer.Name]bool)}
		w.loss = 0.2
		w.addAll(6, churnRange)
		w.nodes[0].allocate("first", churnRange)
		w.converged(30 * time.Second)
		for step := range 150 {
			w.event(step)
		}
		w.heal()
		for _, n := range w.nodes {
			if n.diesInNextStep = false; n.core == nil {
				n.launch()
			}
		}
		w.converged(60 * time.Second)
		w.removeAgain()
		w.converged(60 * time.Second)
		w.run(30 * time.Second)
		if got, whole := w.liveShare(w.nodes[0]), addr.N(256); got != whole {
			t.Fatalf("seed %d: live peers own %v of %v: %+v", seed, got, whole, w.nodes[0].core.status().Owners)
		}
		for _, n := range w.nodes {
			if st := n.core.status(); len(st.Conflicts) > 0 || st.PendingAllocates > 0 {
				t.Fatalf("seed %d: %s: %s %v", seed, n.cfg.Self, st.State, st.Conflicts)
			}
		}
	}
}

// Real keys, from which the names are derived, so no book of names is needed.
func TestRealKeys(t *testing.T) {
	s := newSim(t, seed.New(t))
	for range 4 {
		s.add(addrRange, Init{Mode: Consensus, Expect: 4}).withKeys()
	}
	for i, n := range s.nodes {
		n.allocate(fmt.Sprint("c", i), addrRange)
	}
	s.converged(10 * time.Second)
	dead := s.nodes[3]
	dead.kill()
	s.removedBy(dead, s.nodes[0], s.nodes[1])
	s.drop(dead)
	s.nodes[0].reset()
	s.converged(10 * time.Second)
	if got, whole := s.liveShare(s.nodes[0]), addr.Of(pfx(addrRange)).Size(); got != whole {
		t.Errorf("live peers own %v of %v", got, whole)
	}
	if st := s.nodes[0].core.status(); st.Refused != 0 {
		t.Errorf("%d records refused", st.Refused)
	}
}

// Containers that start at once get the last addresses of another host, which gives one at a time, without
// long waits between them.
func TestLastAddressesOfAHostAreGivenOneAfterTheOther(t *testing.T) {
	const subnet = "10.32.0.0/26"
	s := newSim(t, seed.New(t))
	s.addAll(2, subnet)
	for i, n := range s.nodes {
		n.allocate(fmt.Sprint("first", i), subnet)
	}
	s.converged(20 * time.Second)
	owner, host := s.nodes[0], s.nodes[1]
	for i := range 24 {
		owner.allocate(fmt.Sprint("owner", i), subnet)
	}
	addrs, err := addr.Hosts(pfx(subnet))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; !addr.Total(host.core.space.Free(addrs)).IsZero(); i++ {
		host.allocate(fmt.Sprint("host", i), subnet)
	}
	start := s.now
	var ids []uint64
	for i := range 4 {
		ids = append(ids, host.begin(func(c *core, id uint64) { c.allocate(id, fmt.Sprint("late", i), pfx(subnet)) }))
	}
	for _, id := range ids {
		if r, ok := host.await(id, time.Minute); !ok || r.err != nil {
			t.Fatalf("%v %s", r.err, host.reason(id))
		}
	}
	if took := s.now.Sub(start); took > promiseTTL {
		t.Errorf("it took %v", took)
	}
}

// A host that owns most of the addresses promises some again and again, and gives none. The others are
// asked meanwhile.
func TestPromisesThatAreNotKeptDoNotKeepOthersFromBeingAsked(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes := slices.Clone(s.addAll(4, addrRange))
	for _, n := range nodes {
		n.allocate("c", addrRange)
	}
	s.converged(20 * time.Second)
	liar := nodes[3]
	for _, n := range nodes[:2] { // the liar owns three quarters
		n.do(func(c *core) {
			for _, r := range c.space.Free(addr.Of(pfx(addrRange))) {
				c.give(liar.self(), r, 0)
			}
		})
	}
	s.run(5 * time.Second)
	liar.core, liar.pretends = nil, true
	host := s.add(addrRange, Init{Mode: Observer})
	id := host.begin(func(c *core, id uint64) { c.allocate(id, "c", pfx(addrRange)) })
	for end := s.now.Add(20 * time.Second); s.now.Before(end); s.run(simStep) {
		for _, p := range s.wire {
			m, err := parseMessage(p.data)
			if p.kind == 'u' && p.to == liar && err == nil && m.kind == msgSpaceAsk {
				answer := message{kind: msgSpaceAnswer, id: m.id, status: statusYes, free: addr.N(1 << 16)}
				s.post(liar, p.from, 'u', answer.encode())
			}
		}
		if _, ok := host.await(id, 0); ok {
			return
		}
	}
	t.Errorf("%s", host.reason(id))
}
