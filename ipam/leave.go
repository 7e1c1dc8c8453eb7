package ipam

import (
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// HandoverResult describes a handover of the space of a peer that left.
type HandoverResult struct {
	// Heir owns the space now; zero if no peer was reachable or there was no space.
	Heir peer.Name
	// Addresses is the size of the space.
	Addresses addr.Count
	// Unreachable is how many of the addresses have no confirmed owner: all of
	// them if there was no heir or it did not confirm.
	Unreachable addr.Count
}

// leaving is a handover that waits for its decision.
type leaving struct {
	id     uint64 // of the request; 0 once its time was up
	heir   peer.Name
	action *ring.Action
	since  time.Time // of this heir
	sent   time.Time
	slot   uint64     // of the decision, 0 before it
	sample netip.Addr // an address to hand over; zero if there is none
	tried  map[ring.Holder]bool
	result HandoverResult
}

// heirTimeout is how long a handover to one heir may take. Then this peer asks another one too.
const heirTimeout = 5 * time.Second

// handover hands all space to an heir. From now on this core gives no addresses. It has
// left once the voters decided so; until then the handover goes on, as this peer cannot
// take its signature back.
func (c *core) handover(id uint64) {
	total := c.total().Addresses
	if c.leaving != nil {
		c.leaving.id = id
		return
	}
	if c.left || !c.ring.Ready() || c.gone() {
		c.leave()
		c.reply(id, answer{})
		return
	}
	heir, ok := c.pickHeir(nil)
	if !ok {
		c.reply(id, answer{handover: HandoverResult{Addresses: total, Unreachable: total}})
		return
	}
	c.leaving = &leaving{id: id, tried: make(map[ring.Holder]bool), result: HandoverResult{Addresses: total}}
	if owned := c.ring.Owned(c.mine()...); len(owned) > 0 {
		c.leaving.sample = owned[0].First
	}
	c.leaveTo(heir)
	c.retryPending()
	c.pushLeave()
}

// total returns the space to hand over.
func (c *core) total() HandoverResult {
	if c.leaving != nil {
		return c.leaving.result
	}
	return HandoverResult{Addresses: addr.Total(c.space.Owned())}
}

// gone reports whether this peer owns nothing and has no vote.
func (c *core) gone() bool {
	_, vote := c.voter()
	return !vote && addr.Total(c.ring.Owned(c.mine()...)).IsZero()
}

// leaver returns this peer as the owner or voter that leaves next.
func (c *core) leaver() ring.Holder {
	for _, h := range c.mine() {
		if !c.ring.Owners()[h].IsZero() || slices.Contains(c.ring.Voters(), h) {
			return h
		}
	}
	return c.self
}

// leave makes this core refuse all requests.
func (c *core) leave() {
	c.left = true
	c.retryPending()
}

// leaveTo signs the handover to an heir.
func (c *core) leaveTo(heir ring.Holder) {
	l := c.leaving
	l.heir, l.result.Heir, l.since, l.tried[heir] = heir.Name, heir.Name, c.now, true
	l.action = c.ring.Leaving(c.cfg.Signer, c.leaver(), heir)
}

// pickHeir returns the reachable voter that owns least, or else the owner, or else any reachable
// peer. Whoever knows the password can make up owners, but only hosts have votes. It leaves out
// those that were tried.
func (c *core) pickHeir(tried map[ring.Holder]bool) (heir ring.Holder, ok bool) {
	var least addr.Count
	consider := func(h ring.Holder) {
		n := c.ring.Owners()[h]
		if !tried[h] && !c.isMine(h) && c.present(h) && !c.ring.IsBanned(h) && (!ok || n.Cmp(least) < 0) {
			heir, least, ok = h, n, true
		}
	}
	for _, h := range c.ring.Voters() {
		consider(h)
	}
	if !ok {
		for _, h := range c.ownersIn(c.cfg.Range) {
			consider(h)
		}
	}
	if !ok {
		for _, n := range c.view.Peers() {
			if h, known := c.holderOf(n); known {
				consider(h)
			}
		}
	}
	return heir, ok
}

// pushLeave sends the handover to the heir until it is decided, and to the voters, so that they
// see that this peer still wants it.
func (c *core) pushLeave() {
	l := c.leaving
	if l == nil {
		return
	}
	switch {
	case c.gone():
		// The heir must know it too before this peer goes: nobody else may have heard of
		// the decision. If it is away, another peer must.
		l.slot = c.ring.Slot()
		if owner, ok := c.ring.Owner(l.sample); ok {
			l.heir, l.result.Heir = owner.Name, owner.Name
		}
		if other, ok := c.pickHeir(nil); ok && !c.view.Reachable(l.heir) {
			l.heir = other.Name
		}
	case c.now.Sub(l.sent) < resendEvery:
	case c.now.Sub(l.since) >= heirTimeout:
		heir, ok := c.pickHeir(l.tried)
		if !ok { // all were tried
			clear(l.tried)
			heir, ok = c.pickHeir(nil)
		}
		if ok {
			c.leaveTo(heir)
		}
	case c.ring.CheckEffect(l.action) != nil || !c.view.Reachable(l.heir):
		// The space changed, or the heir left: sign again.
		if heir, ok := c.pickHeir(nil); ok {
			c.leaveTo(heir)
		}
	}
	if c.now.Sub(l.sent) < resendEvery {
		return
	}
	l.sent = c.now
	m := message{kind: msgLeave, body: l.action.Encode()}
	c.send(l.heir, m)
	for _, h := range c.presentVoters() {
		if !c.isMine(h) && h.Name != l.heir {
			c.send(h.Name, m)
		}
	}
}

// onLeave agrees to take the space of a peer that leaves.
func (c *core) onLeave(from peer.Name, m message) {
	a, err := ring.ParseAction(m.body)
	if err != nil || a.Kind != ring.Leave || a.From.Name != from || !c.ring.Ready() {
		return
	}
	if s := c.startedPeers[from]; s != nil {
		s.leave = a.SignedID()
	}
	c.send(from, message{kind: msgBehind, slot: c.ring.Slot()})
	if a.To != c.self || c.left || c.leaving != nil {
		return
	}
	c.ring.SignAsHeir(c.cfg.Signer, a)
	host := c.hostOf(from)
	if c.ring.Check(a) != nil || c.wishes[keyOf(a)] == nil && c.leavesOf(host) >= maxLeaves {
		return
	}
	c.wish(a)
	c.wishes[keyOf(a)].from = host
	c.pushDecide()
}

// maxLeaves bounds the handovers to this peer that are not decided, of one host. All peers that are
// not alone at their underlay address count as one.
const maxLeaves = 64

// leavesOf returns how many handovers of a host to this peer are not decided.
func (c *core) leavesOf(host ring.Holder) (n int) {
	for _, w := range c.wishes {
		if w.own && w.action.Kind == ring.Leave && w.from == host {
			n++
		}
	}
	return n
}

// heardLeave ends the handover once the heir knows its decision.
func (c *core) heardLeave(from peer.Name, slot uint64) {
	l := c.leaving
	if l == nil || l.heir != from || l.slot == 0 || slot < l.slot {
		return
	}
	c.leaving = nil
	if l.id != 0 {
		c.reply(l.id, answer{handover: l.result})
	}
	c.leave()
}

// flush adds the records of other peers to the writes of this step.
func (c *core) flush() {
	c.writes = append(c.deferred, c.writes...)
	c.deferred = nil
}

// cancelOther ends a handover or removal whose time is up. The wish of the operator
// stays for consentTTL.
func (c *core) cancelOther(id uint64) (waitedFor error) {
	if l := c.leaving; l != nil && l.id == id {
		l.id = 0
		return because(ErrNoAnswer, "the voters have not decided that %s gets them: %s", c.displayName(l.heir), c.undecided())
	}
	if r := c.removals[id]; r != nil {
		delete(c.removals, id)
		return c.notRemoved(r)
	}
	return nil
}
