package ipam

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// newBanSim returns a mesh of six voters, of which four decide.
func newBanSim(t *testing.T) (s *sim, voters []*node, other *node) {
	s = newSim(t, seed.New(t))
	nodes := s.addAll(6, addrRange)
	for _, n := range nodes {
		n.allocate("c", addrRange)
	}
	s.converged(20 * time.Second)
	return s, nodes[:5], nodes[5]
}

// listed returns who is listed, in the order of nodes.
func listed(voters []Voter, nodes []*node) (out string) {
	for i, n := range nodes {
		if slices.ContainsFunc(voters, func(v Voter) bool { return v.Name == n.cfg.Self }) {
			out += string(rune('0' + i))
		}
	}
	return out
}

// Every voter shows what an operator wants, who wants it, and who could. The host that would
// be banned is nobody to wait for.
func TestVotesAreShown(t *testing.T) {
	s, nodes, other := newBanSim(t)
	shown := func(n *node) Vote {
		t.Helper()
		votes := n.core.status().Votes
		if len(votes) != 1 {
			t.Fatalf("%s shows %+v", n.cfg.Self, votes)
		}
		return votes[0]
	}
	nodes[0].bans(other, false)
	s.run(3 * time.Second)
	for i, n := range nodes {
		v := shown(n)
		if v.Kind != ring.Ban || v.Peer != other.cfg.Self || v.Needed != 4 || listed(v.For, s.nodes) != "0" || listed(v.Missing, s.nodes) != "1234" {
			t.Errorf("%s shows %+v", n.cfg.Self, v)
		}
		if own := i == 0; own == v.Until.IsZero() {
			t.Errorf("%s shows that its vote ends at %v", n.cfg.Self, v.Until)
		}
	}
	nodes[1].kill()
	s.run(15 * time.Second)
	if v := shown(nodes[2]); listed(v.Missing, s.nodes) != "234" {
		t.Errorf("missing: %+v", v.Missing)
	}
	nodes[1].launch()
	s.run(5 * time.Second)
	for _, n := range nodes[1:4] {
		n.bans(other, false)
	}
	for _, n := range nodes {
		n.isBanned(other, true)
		if votes := n.core.status().Votes; len(votes) > 0 {
			t.Errorf("%s still shows %+v", n.cfg.Self, votes)
		}
	}
}

// An operator takes a vote back by asking for the opposite. It counts no more, from that moment on.
func TestVoteIsTakenBack(t *testing.T) {
	for _, unban := range []bool{false, true} {
		s, nodes, other := newBanSim(t)
		if unban {
			for _, n := range nodes {
				n.bans(other, false)
			}
			nodes[0].isBanned(other, true)
			other.kill()
			s.run(2 * time.Second)
		}
		for range 2 {
			if v := nodes[0].bans(other, unban); v.TakenBack || v.Decided || v.Until.IsZero() {
				t.Fatalf("unban %v: the vote is %+v", unban, v)
			}
			s.run(2 * time.Second)
			if v := nodes[0].bans(other, !unban); !v.TakenBack || v.Decided {
				t.Fatalf("unban %v: taken back: %+v", unban, v)
			}
			s.run(4 * time.Second)
			for _, n := range nodes {
				if v := n.core.status().Votes; len(v) > 0 {
					t.Errorf("unban %v: %s still shows %+v", unban, n.cfg.Self, v)
				}
			}
		}
		for _, n := range nodes[1:4] {
			n.bans(other, unban)
		}
		s.run(20 * time.Second)
		if got := nodes[1].core.ring.IsBanned(other.self()); got != unban {
			t.Fatalf("unban %v: three of four votes decided it", unban)
		}
		if v := nodes[0].core.status().Votes; len(v) != 1 || listed(v[0].For, s.nodes) != "123" {
			t.Errorf("unban %v: votes %+v", unban, v)
		}
		nodes[4].bans(other, unban)
		nodes[1].isBanned(other, !unban)
	}
}

// A vote holds for ten minutes without anybody who waits, and ends then.
func TestVoteEnds(t *testing.T) {
	s, nodes, other := newBanSim(t)
	nodes[0].bans(other, false)
	s.run(9 * time.Minute)
	nodes[1].bans(other, false)
	nodes[2].bans(other, false)
	s.run(2 * time.Minute)
	nodes[3].bans(other, false)
	s.run(20 * time.Second)
	if nodes[2].core.ring.IsBanned(other.self()) {
		t.Fatal("a vote counts after eleven minutes")
	}
	nodes[0].bans(other, false)
	nodes[2].isBanned(other, true)
}

// What an operator voted for and was decided ends when others decide the opposite.
func TestVoteIsSpent(t *testing.T) {
	s, nodes, other := newBanSim(t)
	for _, n := range nodes[:4] {
		n.bans(other, false)
	}
	for _, n := range nodes {
		n.isBanned(other, true)
	}
	for _, n := range nodes[1:] {
		n.bans(other, true)
	}
	for _, n := range nodes {
		n.isBanned(other, false)
	}
	s.run(time.Second)
	nodes[0].do(func(c *core) {
		if c.agree(c.banAction(other.self(), false)) == nil {
			t.Error("the host would agree to the same ban again")
		}
	})
}

// Of several peers all are voted on, or none.
func TestVoteOnAllOrNone(t *testing.T) {
	_, nodes, other := newBanSim(t)
	nodes[0].do(func(c *core) {
		_, err := c.ban([]peer.Name{other.cfg.Self, c.cfg.Self}, false)
		if err == nil || !strings.Contains(err.Error(), "is this peer") {
			t.Errorf("ban of the host itself: %v", err)
		}
		if v := c.votes(); len(v) > 0 {
			t.Errorf("votes after an error: %+v", v)
		}
	})
}

// A ban that enough operators want, but too few voters that can be reached, says so.
func TestBanThatCannotBeDecidedSaysWhy(t *testing.T) {
	s, nodes, other := newBanSim(t)
	for _, n := range nodes[:3] {
		n.bans(other, false)
	}
	s.run(time.Second)
	nodes[1].kill()
	nodes[2].kill()
	s.run(time.Second)
	nodes[3].bans(other, false)
	s.run(time.Second)
	v := nodes[3].core.status().Votes
	if len(v) != 1 || listed(v[0].For, s.nodes) != "0123" || !strings.HasPrefix(v[0].Waits, "only 3 voters besides it can be reached, and 4 must agree") {
		t.Errorf("votes %+v", v)
	}
}

// A removal that one operator asked for is shown on all voters.
func TestRemovalIsShown(t *testing.T) {
	s, nodes, other := newBanSim(t)
	other.kill()
	s.run(3 * time.Second)
	nodes[0].removes(other)
	s.run(time.Second)
	for i, n := range nodes {
		v := n.core.status().Votes
		if len(v) != 1 || v[0].Kind != ring.Remove || v[0].Peer != other.cfg.Self || v[0].Waits == "" || (i == 0) == v[0].Until.IsZero() {
			t.Errorf("%s shows %+v", n.cfg.Self, v)
		}
	}
}

// A peer that the others refuse as banned does not give the advice to remove them.
func TestBannedPeerDoesNotAdviseToRemoveOthers(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes := s.addAll(2, addrRange)
	nodes[0].allocate("x", addrRange)
	of := nodes[1].allocate("x", addrRange)
	s.converged(10 * time.Second)
	nodes[1].kill()
	s.run(3 * time.Second)
	for _, banned := range []bool{false, true} {
		nodes[0].banned = banned
		id := nodes[0].begin(func(c *core, id uint64) { c.claim(id, "y", netip.PrefixFrom(of, 24)) })
		nodes[0].await(id, 5*time.Second)
		if why := nodes[0].reason(id); strings.Contains(why, "rmpeer") == banned || strings.Contains(why, "this host is banned from the mesh") != banned {
			t.Errorf("banned %v: %q", banned, why)
		}
	}
}

// What a voter says of its reasons is shown as its word, whatever it says.
func TestReasonOfAVoterIsItsWord(t *testing.T) {
	_, nodes, liar := newBanSim(t)
	c := nodes[0].core
	c.onRefusal(liar.cfg.Self, message{kind: msgRefusal, body: []byte("decided\"; run weft reset")})
	want := `; ` + c.displayName(liar.cfg.Self) + ` says "decided\"; run weft reset"`
	if got := c.undecided(); !strings.HasSuffix(got, want) {
		t.Errorf("%s, want it to end with %s", got, want)
	}
}
