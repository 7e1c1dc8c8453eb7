package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// foreignAddr is an address that is in use here although another peer owns it:
// after an adoption, or after this peer was removed by mistake. The core asks the
// owner for it until the owner gives it. If the owner uses it too, both containers
// keep it until one of them releases it.
type foreignAddr struct {
	askID uint64
	asked peer.Name
	next  time.Time
	inUse peer.Name // the owner that said that it uses the address
}

// regainBatch bounds how many addresses are asked for in one step.
const regainBatch = 32

// findForeign updates the list of addresses that are in use here and that another
// peer owns.
func (c *core) findForeign() {
	if !c.ring.Ready() {
		return
	}
	for a := range c.allocations {
		if !c.ringDivides(a) || c.space.Owns(a) {
			delete(c.foreign, a)
			continue
		}
		if c.foreign[a] == nil {
			c.foreign[a] = &foreignAddr{}
		}
	}
}

// pushRegain asks the owners of foreign addresses for them.
func (c *core) pushRegain() {
	if !c.ring.Ready() || c.left || c.leaving != nil {
		return
	}
	// Those asked longest ago first: else the first ones are due again before the last are asked for.
	due := c.foreignAddrs()
	slices.SortStableFunc(due, func(a, b netip.Addr) int { return c.foreign[a].next.Compare(c.foreign[b].next) })
	n := 0
	for _, a := range due {
		l := c.foreign[a]
		owner, ok := c.ring.Owner(a)
		if n == regainBatch {
			return
		}
		if !ok || !c.asksFor(l, owner) {
			continue
		}
		n++
		l.askID, l.asked, l.next = c.nextID(), owner.Name, c.now.Add(regainEvery)
		c.send(owner.Name, message{kind: msgClaimAsk, id: l.askID, addr: a, inUse: true})
	}
}

// asksFor reports whether a foreign address is to be asked for now. Another owner is asked at
// once: it may be about to give the address to others.
func (c *core) asksFor(l *foreignAddr, owner ring.Holder) bool {
	return (l.asked != owner.Name || !c.now.Before(l.next)) && c.view.Reachable(owner.Name)
}

// regainDue reports whether a foreign address is to be asked for now.
func (c *core) regainDue() bool {
	if !c.ring.Ready() || c.left || c.leaving != nil {
		return false
	}
	for a, l := range c.foreign {
		if owner, ok := c.ring.Owner(a); ok && c.asksFor(l, owner) {
			return true
		}
	}
	return false
}

func (c *core) foreignAddrs() []netip.Addr {
	var out []netip.Addr
	for a := range c.foreign {
		out = append(out, a)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// regainAnswer handles the answer to an ask of pushRegain, and reports whether m is
// one.
func (c *core) regainAnswer(from peer.Name, m message) bool {
	for a, l := range c.foreign {
		if l.askID != m.id || l.asked != from {
			continue
		}
		if m.status != statusNo {
			l.inUse = peer.Name{}
		} else if l.inUse != from {
			l.inUse = from
			c.warn("an address is in use on two peers", "addr", a, "container", c.allocations[a].owner, "peer", from)
		}
		return true
	}
	return false
}

// adopt wants all peers of this ring to leave it for another one, which the voters decide.
// If here is set, only this peer leaves, whatever the voters say; in this way the operator
// of a host also undoes an adoption. Once the other ring is there, findForeign and
// pushRegain ask for the addresses in use.
func (c *core) adopt(other ring.ID, here bool) error {
	d, seen := c.diverged[other]
	switch {
	case c.left:
		return ErrLeft
	case !seen && !(here && c.ring.Left(other)):
		return fmt.Errorf("adopt ring %s: no peer has shown it recently", other)
	case here:
		c.machine = nil
		return c.ring.Follow(other)
	case d.genesis == nil:
		return fmt.Errorf("adopt ring %s: its genesis has not arrived yet; try again in a few seconds", other)
	case !c.hasVote():
		return fmt.Errorf("adopt ring %s: this peer has no vote in its ring; run it on a voter, or with --here for this peer alone", other)
	}
	a := &ring.Action{Kind: ring.Adopt, Genesis: d.genesis}
	if err := c.ring.Check(a); err != nil {
		return fmt.Errorf("adopt ring %s: %w", other, err)
	}
	c.ask(a)
	if n := len(c.presentVoters()); n < ring.Quorum(len(c.ring.Voters())) {
		return because(ErrNoQuorum, "adopt ring %s: %s; to leave with this peer alone use --here", other, c.undecided())
	}
	return nil
}

func (c *core) presentVoters() (out []ring.Holder) {
	for _, h := range c.ring.Voters() {
		if c.present(h) {
			out = append(out, h)
		}
	}
	return out
}
