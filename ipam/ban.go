package ipam

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/count"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// Bans. What a peer did is nothing that routers can evaluate, so a router votes for a ban
// only if its own operator asked for it: one stolen host bans nobody. The operators run
// weft ban on as many voters as are a quorum. Everybody else follows the decision.
//
// The vote of an operator holds for consentTTL, also if nobody waits for the decision, so
// operators can vote one after the other. Asking for the opposite takes it back.

// Vote is something that operators want and voters have to decide: a ban, its end, the
// adoption of another ring, or the removal of a dead peer.
type Vote struct {
	Kind     ring.Kind
	Peer     peer.Name // of a ban, its end, and a removal
	Nickname string
	Ring     ring.ID // of an adoption
	// For are the voters whose operators want it, as far as this peer has heard. Missing
	// are the others that can be reached, without the peer that would be banned.
	For, Missing []Voter
	Needed       int // how many of them are a quorum
	// Until is when the vote of this host ends, zero if it has none.
	Until time.Time
	// Waits is why it is not decided although the operators of a quorum want it.
	Waits string

	// Decided and TakenBack are set in the answer to an operator only. TakenBack is set if
	// this host had voted for the opposite: that vote is void, and there is none in its place.
	Decided, TakenBack bool
}

// ban records that the operator of this host wants peers to be banned, or with unban not to
// be banned any more. It records all or nothing.
func (c *core) ban(names []peer.Name, unban bool) (votes []Vote, err error) {
	if err := c.checkBan(names, unban); err != nil {
		return nil, err
	}
	for _, n := range names {
		if w := c.opposite(n, unban); w != nil {
			delete(c.asked, c.voiceKey(w.action))
			delete(c.consents, consent{w.action.Kind, w.action.From})
			c.takenBack[c.voiceKey(w.action)] = &wish{action: c.banAction(w.action.From, w.action.Kind == ring.Ban), own: true, at: c.now}
			c.sendVoices() // so that the others do not count it until they miss it
			votes = append(votes, Vote{Kind: w.action.Kind, Peer: n, Nickname: c.view.Nickname(n), TakenBack: true})
			continue
		}
		h, err := c.bannable(n, unban)
		if err != nil {
			return nil, err
		}
		if a := c.banAction(h, unban); c.ring.IsBanned(h) == unban {
			c.ask(a)
		}
		votes = append(votes, c.banVote(h, unban))
	}
	return votes, nil
}

// checkBan returns why ban would fail.
func (c *core) checkBan(names []peer.Name, unban bool) error {
	for _, n := range names {
		if c.opposite(n, unban) == nil {
			if _, err := c.bannable(n, unban); err != nil {
				return err
			}
		}
	}
	return nil
}

// banVotes returns how far bans are decided, or with unban their ends.
func (c *core) banVotes(names []peer.Name, unban bool) (votes []Vote, err error) {
	for _, n := range names {
		h, ok := c.bannedHolder(n)
		if !unban {
			if h, err = c.bannable(n, false); err != nil {
				return nil, err
			}
		} else if !ok {
			h = ring.Holder{Name: n}
		}
		votes = append(votes, c.banVote(h, unban))
	}
	return votes, nil
}

func (c *core) banVote(h ring.Holder, unban bool) Vote {
	v := c.voteOn(c.banAction(h, unban))
	v.Decided = c.ring.IsBanned(h) != unban
	return v
}

// opposite returns what the operator of this host asked for, if it is the opposite for a peer
// and not decided.
func (c *core) opposite(n peer.Name, unban bool) *wish {
	for _, w := range c.asked {
		if a := w.action; a.From.Name == n && a.Kind == banKind(!unban) && c.ring.CheckEffect(a) == nil {
			return w
		}
	}
	return nil
}

func banKind(unban bool) ring.Kind {
	if unban {
		return ring.Unban
	}
	return ring.Ban
}

func (c *core) banAction(h ring.Holder, unban bool) *ring.Action {
	if unban {
		return &ring.Action{Kind: ring.Unban, From: h}
	}
	return &ring.Action{Kind: ring.Ban, From: h, To: c.heirFor(h)}
}

// bannable returns the holder that a name stands for, or why this host cannot vote.
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
			ring.Quorum(len(c.ring.Voters())), joinNames(c.displayNames(c.ring.Voters())))
	}
	banned, ok := c.bannedHolder(n)
	if unban {
		if !ok {
			return ring.Holder{}, fmt.Errorf("peer %s is not banned, nor has this host voted for that", c.displayName(n))
		}
		return banned, nil
	}
	// The key that is in the mesh now is the one to throw out.
	if h, known := c.holderOf(n); known {
		return h, nil
	}
	if ok {
		return banned, nil
	}
	if named := c.ring.Named(n); len(named) > 0 {
		return named[0], nil
	}
	return ring.Holder{}, fmt.Errorf("peer %s: its key is unknown, as it neither is in the mesh nor owns addresses", c.displayName(n))
}

// selfBanned reports whether this peer is banned, as far as it knows.
func (c *core) selfBanned() bool { return c.ring.IsBanned(c.self) || c.view.Banned() }

func (c *core) bannedHolder(n peer.Name) (ring.Holder, bool) {
	for _, h := range c.ring.Banned() {
		if h.Name == n {
			return h, true
		}
	}
	return ring.Holder{}, false
}

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

// votes returns what operators want and the voters have not decided.
func (c *core) votes() (out []Vote) {
	if !c.ring.Ready() {
		return nil
	}
	add := func(a *ring.Action) {
		if c.ring.CheckEffect(a) == nil {
			out = append(out, c.voteOn(a))
		}
	}
	for k, v := range c.voices {
		if c.asked[k] == nil {
			add(v.action)
		}
	}
	for _, w := range c.asked {
		add(w.action)
	}
	removals := make(map[ring.Holder]bool)
	for k := range c.consents {
		removals[k.peer] = removals[k.peer] || k.kind == ring.Remove
	}
	for k := range c.wishes {
		removals[k.from] = removals[k.from] || k.kind == ring.Remove
	}
	for h, wanted := range removals {
		if wanted && c.inRing(h) {
			add(c.removalOf(h))
		}
	}
	slices.SortFunc(out, func(a, b Vote) int {
		return cmp.Or(a.Peer.Compare(b.Peer), cmp.Compare(a.Kind, b.Kind), slices.Compare(a.Ring[:], b.Ring[:]))
	})
	return out
}

// voteOn returns how far an action is, of those that operators must share.
func (c *core) voteOn(a *ring.Action) Vote {
	if a.Kind == ring.Ban {
		a = c.banAction(a.From, false) // with the heir of now
	}
	v := Vote{Kind: a.Kind, Peer: a.From.Name, Nickname: c.view.Nickname(a.From.Name), Needed: ring.Quorum(len(c.ring.Voters()))}
	if a.Kind == ring.Adopt {
		v.Ring = a.Genesis.ID()
	}
	agreed := c.agreed(a)
	for _, h := range c.ring.Voters() {
		switch voter := c.voterOf(h); {
		case slices.Contains(agreed, h):
			v.For = append(v.For, voter)
		case voter.Present && h != a.From:
			v.Missing = append(v.Missing, voter)
		}
	}
	if w := c.asked[c.voiceKey(a)]; w != nil {
		v.Until = w.at.Add(consentTTL)
	}
	if at, ok := c.consents[consent{ring.Remove, a.From}]; ok && a.Kind == ring.Remove {
		v.Until = at.Add(consentTTL)
	}
	if len(v.For) >= v.Needed || v.Kind == ring.Remove {
		v.Waits = c.undecided()
		if n, away := c.reachableWithout(a.From); v.Kind == ring.Ban && n < v.Needed {
			advice := "bring hosts back, or remove dead ones with weft rmpeer"
			if c.selfBanned() {
				advice = "this host is banned from the mesh"
			}
			v.Waits = fmt.Sprintf("only %s besides it can be reached, and %d must agree: %s; away: %s",
				count.Of(n, "voter", "voters"), v.Needed, advice, joinNames(away))
		}
	}
	return v
}

// reachableWithout returns how many voters other than h can be reached, and the names of those that cannot.
func (c *core) reachableWithout(h ring.Holder) (n int, away []string) {
	for _, o := range c.ring.Voters() {
		switch {
		case o == h:
		case c.present(o):
			n++
		default:
			away = append(away, c.displayName(o.Name))
		}
	}
	return n, away
}
