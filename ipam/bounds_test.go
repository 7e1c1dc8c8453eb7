package ipam

import (
	"errors"
	"net/netip"
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
		digest := append(ring.EncodeRange(victim.cfg.Range), 1, byte(i), byte(i>>8), 77)
		digest = append(digest, make([]byte, ring.DigestLen-4)...)
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
		n.bans(thrownOut, false)
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

// Two peers with different address ranges both say so, while they hear of each other. A peer
// that claims many ranges fills nothing.
func TestOtherAddressRanges(t *testing.T) {
	s := newSim(t, 1)
	a := s.add(addrRange, Init{Mode: Consensus, Expect: 1})
	other := netip.MustParsePrefix("10.64.0.0/16")
	ranges := func() (out []netip.Prefix) {
		a.do(func(c *core) { out = c.status().OtherRanges })
		return out
	}
	hear := func(r netip.Prefix) {
		a.do(func(c *core) {
			digest := append(ring.EncodeRange(r), make([]byte, ring.DigestLen)...)
			if deltas, wants, err := c.missing(digest); len(deltas) > 0 || wants || err != nil {
				t.Errorf("the answer to another range is %d deltas, %v, %v", len(deltas), wants, err)
			}
		})
	}
	hear(other)
	hear(netip.MustParsePrefix("fd00::/48"))
	if got := ranges(); len(got) != 2 || got[0] != other {
		t.Errorf("other ranges: %v", got)
	}
	for i := range 1000 {
		hear(netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 0}), 24))
	}
	if got := ranges(); len(got) != maxOtherRanges {
		t.Errorf("%d ranges are kept", len(got))
	}
	s.now = s.now.Add(2 * keepOtherRange)
	if got := ranges(); len(got) > 0 {
		t.Errorf("after two minutes: %v", got)
	}
	var err error
	malformed := append(ring.EncodeRange(other), make([]byte, ring.DigestLen)...)
	malformed[rangeLen-1] = 1 // the length of the prefix
	a.do(func(c *core) { _, _, err = c.missing(malformed) })
	if !errors.Is(err, errMessage) {
		t.Errorf("a digest with a malformed range: %v", err)
	}
}
