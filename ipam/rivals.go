package ipam

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// Addresses of a removed peer that are in use. A host that lost its state folder has a new name,
// and its containers still use addresses of the old one. Once an operator removes the old name,
// its heir would give these addresses to others. So for claimsFirst the heir gives nothing of
// such a range. It takes claims of peers whose containers use an address, and then gives each of
// them that address alone:
//
//	peer with containers       heir
//	claim ask, in use  ------> one peer uses the address: a transfer of it, as the rates allow
//	repeated until given       two say so: neither gets it, and nobody else does
//
// Whether a container uses the address, the heir cannot know. A member that lies gets no more
// than by claims of free addresses, as the same rates hold for both; it cannot get an address
// that a host uses; and what it holds back from all is bounded.

const (
	// claimsFirst is how long an heir takes claims before it uses a range. A host with a full
	// bridge needs 8 s to claim the address of each container.
	claimsFirst = 15 * time.Second
	// rivalTTL is how long a claim holds that is not repeated: its host may be starting again.
	rivalTTL = 10 * time.Minute
	// maxRivals bounds the addresses with claims, and maxRivalsBy those of one host: a bridge has
	// at most 1,023 ports. All peers that are not alone at their underlay address count as one.
	maxRivals   = 8192
	maxRivalsBy = 1024
)

// rivals are the peers that say that they use an address, and when each last did. Two are
// enough to know that nobody can have it.
type rivals map[ring.Holder]time.Time

// noteRival records that a peer uses an address of an open range, or of one that was open.
func (c *core) noteRival(h ring.Holder, a netip.Addr) {
	rs, known := c.rivals[a]
	if _, repeated := rs[h]; !repeated {
		host := c.hostOf(h.Name)
		by := 0
		for _, rs := range c.rivals {
			if slices.ContainsFunc(slices.Collect(maps.Keys(rs)), func(r ring.Holder) bool { return c.hostOf(r.Name) == host }) {
				by++
			}
		}
		if len(rs) == 2 || by >= maxRivalsBy || !known && len(c.rivals) >= maxRivals {
			c.counters.Asks++
			return
		}
	}
	if !known {
		rs = make(rivals)
		c.rivals[a] = rs
	}
	rs[h] = c.now
}

// pushRivals gives addresses of ranges that are no longer kept to the peers that use them.
func (c *core) pushRivals() {
	changed := false
	for _, a := range slices.SortedFunc(maps.Keys(c.rivals), netip.Addr.Compare) {
		rs := c.rivals[a]
		maps.DeleteFunc(rs, func(_ ring.Holder, at time.Time) bool { return c.now.Sub(at) > rivalTTL })
		owner, _ := c.ring.Owner(a)
		if len(rs) == 0 || !c.isMine(owner) {
			delete(c.rivals, a)
			changed = true
			continue
		}
		if c.keptAt(a) != nil || len(rs) > 1 || !c.caughtUp() {
			continue
		}
		for h := range rs {
			if c.present(h) && !c.ring.IsBanned(h) && c.mayGive(h) && c.give(h, addr.Single(a), 0) {
				delete(c.rivals, a)
			}
		}
	}
	if changed {
		c.setOwned()
		c.retryPending()
	}
}

// onClaimOfKept answers a claim of an address that is kept, or that a peer uses.
func (c *core) onClaimOfKept(h ring.Holder, m message) message {
	k := c.keptAt(m.addr)
	answer := message{kind: msgClaimAnswer, id: m.id, status: statusYes} // it asks again
	if c.allocations[m.addr].owner != "" {
		answer.status = statusNo // by a container of this host
	} else if k != nil && !k.isOpen() {
		answer.status, answer.until, answer.name = statusKept, k.until, k.from.Name
	} else if m.inUse {
		c.noteRival(h, m.addr)
	}
	return answer
}

// isKept is the reason why an address is given to nobody yet.
func (c *core) isKept(a netip.Addr, from, heir peer.Name, until time.Time) error {
	return because(ErrKept, "%s is kept until %s for %s, which was removed, in case that it returns; "+
		"to free the addresses of %s at once run on host %s: weft rmpeer %s",
		a, until.Format(time.DateTime), c.displayName(from), from, c.displayName(heir), from)
}
