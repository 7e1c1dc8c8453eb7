package ipam

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// newSeeds returns a sim of n nodes that are the seeds of their ring and use addresses.
func newSeeds(t *testing.T, n int) *sim {
	s := newSim(t, seed.New(t))
	in := Init{Mode: Seed}
	for i := range n {
		in.Seeds = append(in.Seeds, nameOfNode(i+1))
	}
	for i := range n {
		s.add(addrRange, in)
		s.nodes[i].begin(func(c *core, id uint64) { c.allocate(id, fmt.Sprint("c", i), pfx(addrRange)) })
	}
	s.converged(20 * time.Second)
	return s
}

// A ring from seeds, whose names users gave, survives that all hosts are switched off and
// come back one after the other, each alone at first.
func TestRingFromSeedsSurvivesAPowerCut(t *testing.T) {
	s := newSeeds(t, 3)
	late := s.add(addrRange, Init{Mode: Seed, Seeds: s.nodes[0].cfg.Init.Seeds})
	late.allocate("late", addrRange)
	s.converged(20 * time.Second)
	before := s.nodes[0].core.ring.Slot()
	owned := late.core.ring.Owners()[late.self()]
	for _, n := range s.nodes {
		n.kill()
	}
	for _, n := range s.nodes {
		n.launch()
		if got := n.core.ring.Slot(); got != before || n.core.ring.Owners()[late.self()] != owned {
			t.Errorf("%s knows %d of %d decisions after a restart", n.cfg.Self, got, before)
		}
		n.kill()
	}
}

// A host that joins while a seed is dead gets the decisions for which that one voted.
func TestRingFromSeedsIsPassedOnWithoutADeadSeed(t *testing.T) {
	s := newSeeds(t, 4)
	for range 6 {
		s.add(addrRange, Init{Mode: Seed, Seeds: s.nodes[0].cfg.Init.Seeds}).allocate("c", addrRange)
	}
	s.converged(20 * time.Second)
	s.nodes[0].kill()
	fresh := s.add(addrRange, Init{Mode: Seed, Seeds: s.nodes[1].cfg.Init.Seeds})
	fresh.allocate("fresh", addrRange)
}

// A seed that is banned loses its addresses and its vote, too, although the ring knows it by
// its name only.
func TestBannedSeedLosesItsAddresses(t *testing.T) {
	s := newSeeds(t, 4)
	banned := s.nodes[3]
	for _, n := range s.nodes[:3] {
		n.bans(banned, false)
	}
	s.run(5 * time.Second)
	if !s.nodes[0].core.ring.IsBanned(banned.self()) {
		t.Fatal(s.nodes[0].core.status().Waiting)
	}
	banned.kill() // the mesh refuses it
	s.run(10 * time.Second)
	seed := ring.Holder{Name: banned.cfg.Self}
	if r := s.nodes[0].core.ring; !r.Owners()[seed].IsZero() || slices.Contains(r.Voters(), seed) {
		t.Errorf("it owns %v addresses, and the voters are %v", r.Owners()[seed], r.Voters())
	}
}

// Small rings that lost the voters that they need go on by the word of an operator: the
// founder with the only vote, one of two, and two of three seeds with names of users.
func TestSmallRingsGoOnWithoutTheirFounders(t *testing.T) {
	for _, c := range []struct {
		name         string
		init         Init
		founders     int
		lost, joined int
	}{
		{"the only voter", Init{Mode: Consensus, Expect: 1}, 1, 1, 2},
		{"one of two voters", Init{Mode: Consensus, Expect: 2}, 2, 1, 1},
		{"two of three seeds", Init{Mode: Seed, Seeds: []peer.Name{nameOfNode(1), nameOfNode(2), nameOfNode(3)}}, 3, 2, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSim(t, seed.New(t))
			for range c.founders {
				n := s.add(addrRange, c.init)
				n.cfg.Settle = time.Hour // nobody else gets a vote
				n.launch()
			}
			for i, n := range s.nodes {
				n.allocate(fmt.Sprint("c", i), addrRange)
			}
			for range c.joined {
				s.add(addrRange, Init{Mode: Observer}).allocate("c", addrRange)
			}
			s.converged(20 * time.Second)
			var gone []peer.Name
			for _, n := range s.nodes[:c.lost] {
				n.kill()
				gone = append(gone, n.cfg.Self)
			}
			s.nodes = s.nodes[c.lost:]
			first := s.nodes[0]
			id := first.begin(func(c *core, id uint64) { c.remove(id, gone, ByOperator) })
			if _, ok := first.await(id, 70*time.Second); ok {
				t.Fatal("it was decided without a quorum")
			}
			if why := first.reason(id); !strings.Contains(why, "must agree") {
				t.Errorf("the operator reads %q", why)
			}
			first.do(func(c *core) {
				if _, err := c.refound(gone); err != nil {
					t.Fatal(err)
				}
			})
			s.run(5 * time.Second)
			for _, n := range s.nodes[1:] {
				st := n.core.status()
				if len(st.Divergent) != 1 {
					t.Fatalf("%s shows %v", n.cfg.Self, st.Divergent)
				}
				n.do(func(c *core) {
					if err := c.adopt(st.Divergent[0].Theirs, true); err != nil {
						t.Fatal(err)
					}
				})
			}
			s.converged(10 * time.Second)
			if got, whole := s.liveShare(first), addr.Of(pfx(addrRange)).Size(); got != whole {
				t.Errorf("live peers own %v of %v", got, whole)
			}
			for _, n := range s.nodes {
				if st := n.core.status(); len(st.Conflicts) > 0 {
					t.Errorf("%s: %v", n.cfg.Self, st.Conflicts)
				}
			}
			s.add(addrRange, Init{Mode: Observer}).allocate("new", addrRange)
		})
	}
}

// nameOfNode returns the name of the i-th node of a sim.
func nameOfNode(i int) peer.Name { return peer.Name{2, 0, 0, 0, byte(i >> 8), byte(i)} }

// Nobody signs a ring from seeds. One of the seeds that lies says that the others have signed another one.
func TestRingFromSeedsIsNotLeftForOneThatNobodySigned(t *testing.T) {
	s := newSeeds(t, 4)
	liar := s.nodes[3]
	founders := []ring.Holder{{Name: nameOfNode(99)}}
	var votes []ring.Vote
	for i, n := range s.nodes {
		founders = append(founders, ring.Holder{Name: n.cfg.Self})
		votes = append(votes, ring.Vote{Voter: i, Key: n.cfg.Signer.Key()})
	}
	g, err := ring.NewGenesis(pfx(addrRange), founders)
	if err != nil {
		t.Fatal(err)
	}
	before := s.nodes[0].core.ring.Genesis().ID()
	a := &ring.Action{Kind: ring.Adopt, Genesis: g.WithVotes(votes)}
	for range 10 {
		for _, n := range s.nodes[:3] {
			m := message{kind: msgWish, id: liar.core.ring.Slot(), body: a.Encode()}
			n.do(func(c *core) { c.handle(liar.cfg.Self, m) })
		}
		s.run(time.Second)
	}
	for _, n := range s.nodes[:3] {
		if !n.core.ring.Ready() || n.core.ring.Genesis().ID() != before {
			t.Errorf("%s left its ring: %v", n.cfg.Self, n.core.noRing())
		}
	}
}
