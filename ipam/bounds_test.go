package ipam

import (
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// genesisDelta returns a delta with the genesis of a ring that somebody made up.
func genesisDelta(t *testing.T, n *node, founder ring.Holder) (ring.ID, []byte) {
	t.Helper()
	g, err := ring.NewGenesis(n.cfg.Range, []ring.Holder{founder})
	if err != nil {
		t.Fatal(err)
	}
	raw := (&ring.Action{Kind: ring.Adopt, Genesis: g}).Encode()[1:]
	return g.ID(), append([]byte{deltaRing}, ringDeltaOf(g.ID(), raw)...)
}

// A member shows rings without end that it made up. A real one is shown in the status all
// the same, and the log does not fill.
func TestMadeUpRingsHideNoRealOne(t *testing.T) {
	s := newSim(t, seed.New(t))
	s.lies = true
	nodes := s.addAll(3, addrRange)
	nodes[0].allocate("c", addrRange)
	s.converged(10 * time.Second)
	victim, honest, liar := nodes[0], nodes[1], nodes[2]
	warnings := 0
	step := func(from *node, delta []byte) {
		_, effects := victim.core.step(s.now, func() { _, _ = victim.core.merge(from.cfg.Self, delta) })
		for _, e := range effects {
			if _, ok := e.(effWarn); ok {
				warnings++
			}
		}
	}
	lie := func(i int) {
		_, d := genesisDelta(t, victim, ring.Holder{Name: peer.Name{2, 9, byte(i >> 8), byte(i)}, Key: peer.KeyID{9}})
		step(liar, d)
		digest := append([]byte{1, byte(i), byte(i >> 8), 77}, make([]byte, ring.DigestLen-4)...)
		victim.do(func(c *core) { _, _, _ = c.missing(digest) })
	}
	for i := range 200 {
		lie(i)
	}
	id, d := genesisDelta(t, victim, honest.self())
	step(honest, d)
	for i := range 200 {
		lie(200 + i)
	}
	st := victim.core.status()
	if !slices.ContainsFunc(st.Divergent, func(d Divergence) bool { return d.Theirs == id }) {
		t.Errorf("ring %s is not among %v", id, st.Divergent)
	}
	if len(st.Divergent) > maxDiverged || warnings > 2 {
		t.Errorf("%d rings shown, %d lines in the log", len(st.Divergent), warnings)
	}
}

// A voter that lies wants to ban everybody. The operators of the others are heard.
func TestVoterWithManyWishesKeepsNobodyFromBeingHeard(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes := s.addAll(6, addrRange)
	for _, n := range nodes {
		n.allocate("c", addrRange)
	}
	s.converged(20 * time.Second)
	liar, thrownOut := nodes[4], nodes[5]
	heir := nodes[0].self()
	lie := func() {
		for i := range 100 {
			a := &ring.Action{Kind: ring.Ban, From: ring.Holder{Name: peer.Name{2, 9, 0, byte(i)}, Key: peer.KeyID{9}}, To: heir}
			for _, n := range nodes[:4] {
				n.do(func(c *core) { _ = c.receive(liar.cfg.Self, (&message{kind: msgWish, body: a.Encode()}).encode()) })
			}
		}
	}
	lie()
	for _, n := range nodes[:4] {
		n.begin(func(c *core, id uint64) { c.ban(id, thrownOut.cfg.Self, false) })
	}
	for range 8 {
		lie()
		s.run(time.Second)
	}
	for _, n := range nodes[:4] {
		if !n.core.ring.IsBanned(thrownOut.self()) {
			t.Errorf("%s: %v", n.cfg.Self, n.core.status().Waiting)
		}
	}
}

// Peers that claim to be behind make a voter send the whole ring only so often.
func TestPeersThatClaimToBeBehindGetNoFlood(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes := s.addAll(3, addrRange)
	for _, n := range nodes {
		n.allocate("c", addrRange)
	}
	fresh := s.add(addrRange, Init{Mode: Observer})
	fresh.allocate("c", addrRange)
	s.converged(20 * time.Second)
	sent := 0
	for i := range 1000 {
		from := peer.Name{2, 9, 0, 0, byte(i >> 8), byte(i)}
		behind := message{kind: msgBehind, slot: 0}
		_, effects := nodes[0].core.step(s.now, func() { _ = nodes[0].core.receive(from, behind.encode()) })
		sent += len(effects)
	}
	if sent > 2*othersHelp {
		t.Errorf("%d answers to 1000 names", sent)
	}
}
