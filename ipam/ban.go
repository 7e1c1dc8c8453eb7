package ipam

import (
	"fmt"
	"strings"

	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// Bans. What a peer did is nothing that routers can evaluate, so a router votes for a ban
// only if its own operator asked for it: one stolen host bans nobody. The operators run
// weft ban on as many voters as are a quorum. Everybody else follows the decision.

// banRequest is a call of Ban that waits.
type banRequest struct {
	id    uint64
	name  peer.Name
	peer  ring.Holder
	unban bool
}

// ban begins a request of the operator.
func (c *core) ban(id uint64, n peer.Name, unban bool) {
	h, err := c.bannable(n, unban)
	if err != nil {
		c.fail(id, err)
		return
	}
	r := &banRequest{id, n, h, unban}
	if c.banDecided(r) {
		c.reply(id, answer{})
		return
	}
	c.bans[id] = r
	c.ask(r.action(c))
	c.pushBans()
}

func (r *banRequest) action(c *core) *ring.Action {
	if r.unban {
		return &ring.Action{Kind: ring.Unban, From: r.peer}
	}
	return &ring.Action{Kind: ring.Ban, From: r.peer, To: c.heirFor(r.peer)}
}

// bannable returns the holder that a name stands for.
func (c *core) bannable(n peer.Name, unban bool) (ring.Holder, error) {
	switch {
	case c.left:
		return ring.Holder{}, ErrLeft
	case !c.ring.Ready():
		return ring.Holder{}, fmt.Errorf("there is no ring: %w", c.noRing())
	case n == c.cfg.Self:
		return ring.Holder{}, fmt.Errorf("peer %s is this peer; reset it instead", c.displayName(n))
	case !c.hasVote():
		return ring.Holder{}, fmt.Errorf("this peer has no vote; run it on the voters, at least %d of: %s",
			ring.Quorum(len(c.ring.Voters())), c.voterNames())
	}
	for _, h := range c.ring.Banned() {
		if h.Name == n {
			return h, nil
		}
	}
	if unban {
		return ring.Holder{}, fmt.Errorf("peer %s is not banned", c.displayName(n))
	}
	// The key that is in the mesh now is the one to throw out.
	if h, ok := c.holderOf(n); ok {
		return h, nil
	}
	if named := c.ring.Named(n); len(named) > 0 {
		return named[0], nil
	}
	return ring.Holder{}, fmt.Errorf("peer %s: its key is unknown, as it neither is in the mesh nor owns addresses", n)
}

func (c *core) voterNames() string {
	var out []string
	for _, h := range c.ring.Voters() {
		out = append(out, c.displayName(h.Name))
	}
	return joinNames(out)
}

func (c *core) banDecided(r *banRequest) bool { return c.ring.IsBanned(r.peer) != r.unban }

// removeBannedSeeds asks for the removal of banned peers that the ring also knows by their
// names alone, as seeds. A ban names a key, so it does not take what the seed owns, nor its
// vote. The operators who asked for the ban agree, once the mesh has thrown the peer out.
func (c *core) removeBannedSeeds() {
	for _, h := range c.ring.Banned() {
		seed, ok := c.ring.Founder(h.Name)
		_, asked := c.consents[consent{ring.Ban, h}]
		if ok && asked && !c.present(seed) && c.inRing(seed) {
			c.consents[consent{ring.Remove, seed}] = c.now
			c.wish(c.removalOf(seed))
		}
	}
}

// pushBans replies to the requests that are decided.
func (c *core) pushBans() {
	c.removeBannedSeeds()
	for id, r := range c.bans {
		if c.banDecided(r) {
			delete(c.bans, id)
			c.reply(id, answer{})
		}
	}
}

// notBanned returns the reason why a request waits.
func (c *core) notBanned(r *banRequest) error {
	agreed := c.agreed(r.action(c))
	var names []string
	for _, h := range agreed {
		names = append(names, c.displayName(h.Name))
	}
	need := ring.Quorum(len(c.ring.Voters()))
	if len(agreed) >= need {
		return because(ErrNoQuorum, "%s", c.undecided())
	}
	return because(ErrNoQuorum, "the operators of %d voters agree (%s), %d are needed; run it on %d more of: %s",
		len(agreed), strings.Join(names, ", "), need, need-len(agreed), c.voterNames())
}
