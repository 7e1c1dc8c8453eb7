package fastpath

import (
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/mac"
)

// The MAC table of package mac says where each MAC address is. The kernel's map has
// a copy: what lanes learn is written there; what the kernel sees is told by
// events and learned here; when a MAC address was last used is kept by both, and
// compared now and then.

// seen takes in that the kernel saw a MAC address where its map did not have
// it.
func (c *Controller) seen(e kernel.Event) {
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
	if c.macs.Learn(m, at, c.since()) == mac.Full {
		c.cfg.Refused()
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

// placeOf returns the short id of the peer that the table has a MAC address behind; 0 if
// it knows none, or the peer has none.
func (c *Controller) placeOf(m ethernet.MAC) uint16 {
	at, ok := c.macs.Lookup(m, c.since())
	switch {
	case !ok:
		return 0
	case at == c.self:
		return c.shortID
	}
	return c.routes.ShortIDs[at]
}

// copyMAC writes what the table says of a MAC address into the kernel's map.
func (c *Controller) copyMAC(m ethernet.MAC) {
	id := c.placeOf(m)
	var err error
	if id == 0 {
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
		c.log.Debug("copy a MAC address to the kernel", "mac", m, "err", err)
	}
}

// removeMAC forgets a MAC address of this host whose interface is gone.
func (c *Controller) removeMAC(m ethernet.MAC) {
	delete(c.vethOf, m)
	if at, ok := c.macs.Lookup(m, c.since()); ok && at == c.self {
		c.macs.Remove(m)
	}
	c.copyMAC(m)
}

// syncMACs has the table and the kernel's map agree.
func (c *Controller) syncMACs() {
	if !c.attached {
		return
	}
	inKernel := make(map[ethernet.MAC]kernel.MACEntry)
	err := c.kernel.MACs(func(m [6]byte, e kernel.MACEntry) bool { inKernel[m] = e; return true })
	if err != nil {
		c.log.Warn("read the kernel's MAC addresses", "err", err)
		return
	}
	for _, m := range c.compareMACs(inKernel, c.sys.BootTime()) {
		c.copyMAC(m)
	}
}

// compareMACs brings the table up to date by what the kernel's map has, and
// returns what the map has wrongly: last use goes to the later of the two, places are
// as the table has them, and what the table forgets leaves the kernel. What an
// earlier process left in the kernel is learned from it. The time is that since boot.
func (c *Controller) compareMACs(inKernel map[ethernet.MAC]kernel.MACEntry, boot time.Duration) (wrong []ethernet.MAC) {
	now := c.since()
	adopting := time.Since(c.opened) < adoptTimeout
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
			c.macs.Learn(m, at, now-age)
			if i := int(e.Ifindex); i != 0 && !c.rateLimited[i] {
				c.vethOf[m] = i
			}
			continue
		}
		c.macs.Touch(m, at, now-age)
	}
	c.macs.Expire(now)
	for m, e := range inKernel {
		id := c.placeOf(m)
		unconfirmed := adopting && id == 0 && peerOf(e).IsZero()
		passesBy := c.rateLimited[int(e.Ifindex)] // by express, what holds its frames back
		if id != e.Peer && !unconfirmed || passesBy {
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
