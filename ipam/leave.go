package ipam

import (
	"time"

	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// HandoverResult is what became of the space of a peer that left.
type HandoverResult struct {
	// Heir has it now; zero if there was nobody, or nothing to hand over.
	Heir peer.Name
	// Addresses is how many addresses there were to hand over.
	Addresses addr.Count
	// Unreachable is how many of them nobody is known to have: all, if there was
	// no heir or it did not confirm.
	Unreachable addr.Count
}

// leaving is a handover under way.
type leaving struct {
	id     uint64 // of the request; 0 once it gave up
	gone   ring.Holder
	heir   peer.Name
	sent   time.Time
	proof  []ring.Raw
	result HandoverResult
}

// handover hands all space to an heir. It cannot be undone, and afterwards this
// core refuses all requests.
func (c *core) handover(id uint64) {
	total := c.total().Addresses
	if c.leaving != nil {
		c.leaving.id = id
		return
	}
	if c.left || !c.ring.Ready() {
		c.leave()
		c.reply(id, answer{})
		return
	}
	heir, ok := c.pickHeir()
	if !ok {
		if total.IsZero() {
			c.leave()
		}
		c.reply(id, answer{handover: HandoverResult{Addresses: total, Unreachable: total}})
		return
	}
	gone := c.holder
	out, err := c.ring.Leave(c.cfg.Signer, c.cfg.Self, heir)
	if err != nil {
		c.fail(id, err)
		return
	}
	c.publish(out)
	c.leaving = &leaving{id: id, gone: gone, heir: heir, proof: out.Records,
		result: HandoverResult{Heir: heir, Addresses: total}}
	c.leave()
	c.pushLeave()
}

// total is what there is to hand over.
func (c *core) total() HandoverResult {
	if c.leaving != nil {
		return c.leaving.result
	}
	return HandoverResult{Addresses: addr.Total(c.space.Owned())}
}

// leave makes this core refuse all requests.
func (c *core) leave() {
	c.left = true
	c.retryPending()
}

// pickHeir prefers a peer that owns a part of the ring and can be reached, of
// those the one that owns least; else any that can be reached.
func (c *core) pickHeir() (heir peer.Name, ok bool) {
	var least addr.Count
	for _, h := range c.ownersIn(c.cfg.Range) {
		n := c.ring.Owners()[h]
		if h.Name != c.cfg.Self && c.view.Reachable(h.Name) && (!ok || n.Cmp(least) < 0) {
			heir, least, ok = h.Name, n, true
		}
	}
	if ok {
		return heir, true
	}
	for _, p := range c.view.Peers() {
		if p != c.cfg.Self && (!ok || p.Compare(heir) < 0) {
			heir, ok = p, true
		}
	}
	return heir, ok
}

// pushLeave tells the heir, until it confirms.
func (c *core) pushLeave() {
	l := c.leaving
	if l == nil || !l.sent.IsZero() && c.now.Before(l.sent.Add(resendEvery)) || !c.view.Reachable(l.heir) {
		return
	}
	l.sent = c.now
	c.sendProof(l.heir, l.proof)
	c.send(l.heir, message{kind: msgLeave, holder: l.gone})
}

// onLeave confirms that this peer knows of a removal, which is on disk when the
// confirmation leaves.
func (c *core) onLeave(from peer.Name, m message) {
	if _, removed := c.ring.Removed(m.holder); !removed {
		return // the record was lost on its way; it comes again
	}
	c.flush()
	c.send(from, message{kind: msgLeaveAck})
}

func (c *core) onLeaveAck(from peer.Name, _ message) {
	l := c.leaving
	if l == nil || from != l.heir {
		return
	}
	if l.id != 0 {
		c.reply(l.id, answer{handover: l.result})
	}
	c.leaving = nil
}

// flush puts the records of others with the writes of this step.
func (c *core) flush() {
	c.writes = append(c.deferred, c.writes...)
	c.deferred = nil
}

// cancelOther ends a handover or removal whose time is up.
func (c *core) cancelOther(id uint64) (waitedFor error) {
	if l := c.leaving; l != nil && l.id == id {
		l.id = 0
		return because(ErrNoAnswer, "%s, who inherits %s addresses, has not confirmed", c.displayName(l.heir), l.result.Addresses)
	}
	if r := c.removals[id]; r != nil {
		delete(c.removals, id)
		return c.notRemoved(r)
	}
	return nil
}
