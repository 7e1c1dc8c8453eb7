package ipam

import (
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

// leaving is a handover that waits for its heir.
type leaving struct {
	id     uint64 // of the request; 0 once its time was up
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

// total returns the space to hand over.
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

// pickHeir returns the reachable owner that owns least, or else any reachable peer.
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

// pushLeave sends the removal to the heir, until the heir confirms.
func (c *core) pushLeave() {
	l := c.leaving
	if l == nil || !l.sent.IsZero() && c.now.Before(l.sent.Add(resendEvery)) || !c.view.Reachable(l.heir) {
		return
	}
	l.sent = c.now
	c.sendProof(l.heir, l.proof)
	c.send(l.heir, message{kind: msgLeave, holder: l.gone})
}

// onLeave confirms that this peer knows of a removal. The removal is on disk when
// the confirmation is sent.
func (c *core) onLeave(from peer.Name, m message) {
	if _, removed := c.ring.Removed(m.holder); !removed {
		return // the record was lost on the way; it is sent again
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

// flush adds the records of other peers to the writes of this step.
func (c *core) flush() {
	c.writes = append(c.deferred, c.writes...)
	c.deferred = nil
}

// cancelOther ends a handover or removal whose time is up.
func (c *core) cancelOther(id uint64) (waitedFor error) {
	if l := c.leaving; l != nil && l.id == id {
		l.id = 0
		return because(ErrNoAnswer, "%s, the heir of %s addresses, has not confirmed", c.displayName(l.heir), l.result.Addresses)
	}
	if r := c.removals[id]; r != nil {
		delete(c.removals, id)
		return c.notRemoved(r)
	}
	return nil
}
