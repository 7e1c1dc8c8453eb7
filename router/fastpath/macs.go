package fastpath

import (
	"maps"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/mac"
)

// The MAC table of package mac has the place of each MAC address, and the kernel's map
// has a copy. What lanes learn is written to the map. What the kernel sees is reported by
// events and learned here. Both record when an address was last used; syncMACs compares
// them periodically.

// handleEvent handles an event: the kernel saw a MAC address in another place than its map has.
func (c *Controller) handleEvent(e kernel.Event) {
	m := ethernet.MAC(e.Addr)
	at := c.self
	if e.Peer != c.shortID {
		if at = c.names[e.Peer]; at.IsZero() {
			return
		}
	}
	if !m.IsUnicast() {
		return
	}
	switch c.macs.Learn(m, at, c.since()) {
	case mac.Full, mac.Bound:
		return
	}
	switch {
	case at != c.self:
		delete(c.vethOf, m)
	case e.Ifindex != 0 && c.containers[int(e.Ifindex)]:
		c.vethOf[m] = int(e.Ifindex)
	}
	c.copyMAC(m)
}

// placeOf returns the short id of the peer that a MAC address is behind; 0 if the
// table does not have the address, or the peer has no short id.
func (c *Controller) placeOf(m ethernet.MAC) uint16 {
	at, ok := c.macs.Lookup(m, c.since())
	switch {
	case !ok:
		return 0
	case at == c.self:
		return c.shortID
	}
	return c.ids[at]
}

// copyMAC copies the entry of a MAC address from the table to the kernel's map.
func (c *Controller) copyMAC(m ethernet.MAC) {
	id := c.placeOf(m)
	var err error
	if id == 0 {
		if _, known := c.macs.Lookup(m, c.since()); known && c.adopting(time.Now()) {
			return // the routes that have the peer's id come soon, and then all are compared
		}
		delete(c.vethOf, m)
		err = c.kernel.DeleteMAC(m)
	} else {
		e := kernel.MACEntry{Peer: id}
		if id != c.shortID {
			delete(c.vethOf, m)
		} else if i := c.vethOf[m]; i != 0 {
			e.Ifindex, e.Flags = uint32(i), kernel.MACExpress
		}
		err = c.kernel.PutMAC(m, e)
	}
	if err != nil {
		c.log.Debug("cannot copy a MAC address to the kernel", "mac", m, "err", err)
	}
}

// removeMAC forgets a MAC address of this host whose interface left.
func (c *Controller) removeMAC(m ethernet.MAC) {
	delete(c.vethOf, m)
	if at, ok := c.macs.Lookup(m, c.since()); ok && at == c.self {
		c.macs.Remove(m)
	}
	c.copyMAC(m)
}

// syncMACs makes the table and the kernel's map agree.
func (c *Controller) syncMACs() {
	if !c.attached {
		return
	}
	inKernel := make(map[ethernet.MAC]kernel.MACEntry)
	err := c.kernel.MACs(func(m [6]byte, e kernel.MACEntry) bool { inKernel[m] = e; return true })
	if err != nil {
		c.log.Warn("cannot read the MAC addresses of the kernel", "err", err)
		return
	}
	for _, m := range c.compareMACs(inKernel, c.sys.BootTime()) {
		c.copyMAC(m)
	}
}

// compareMACs updates the table from the kernel's map, and returns the addresses
// whose entries in the map are wrong. The later time of last use wins. The table
// decides about places, and what it forgets leaves the kernel. Entries of an earlier
// process are learned from the map. boot is the time since boot.
func (c *Controller) compareMACs(inKernel map[ethernet.MAC]kernel.MACEntry, boot time.Duration) (wrong []ethernet.MAC) {
	now := c.since()
	adopting := c.adopting(time.Now())
	peerOf := func(e kernel.MACEntry) peer.Name {
		if e.Peer == c.shortID {
			return c.self
		}
		return c.names[e.Peer]
	}
	for m, e := range inKernel {
		at, age := peerOf(e), max(0, boot-time.Duration(e.Seen))
		if at.IsZero() {
			continue
		}
		if _, known := c.macs.Lookup(m, now); adopting && !known && age < mac.MaxAge {
			c.macs.Learn(m, at, now-age) // unless it is bound elsewhere meanwhile
			if i := int(e.Ifindex); c.containers[i] {
				c.vethOf[m] = i
			}
			continue
		}
		c.macs.Touch(m, at, now-age)
	}
	c.macs.Expire(now)
	// Also addresses that are in neither table any more: a container may invent many.
	maps.DeleteFunc(c.vethOf, func(m ethernet.MAC, _ int) bool {
		at, ok := c.macs.Lookup(m, now)
		return !ok || at != c.self
	})
	for m, e := range inKernel {
		id := c.placeOf(m)
		unconfirmed := adopting && id == 0 && peerOf(e).IsZero()
		bypasses := c.rateLimited[int(e.Ifindex)] // express bypasses a queueing discipline
		if id != e.Peer && !unconfirmed || bypasses {
			wrong = append(wrong, m)
		}
	}
	for _, e := range c.macs.Entries(now) {
		if _, ok := inKernel[e.MAC]; !ok && c.placeOf(e.MAC) != 0 {
			wrong = append(wrong, e.MAC)
		}
	}
	return wrong
}
