package fastpath

import (
	"maps"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/plan"
)

// replan works out what the kernel's maps are to hold and writes what differs.
func (c *Controller) replan() {
	if !c.stale {
		return
	}
	c.stale = false
	now := time.Now()
	c.takeIDs(now)
	c.applyTunnels(now)
	want := c.wantTables()
	if now.Sub(c.opened) < adoptTimeout {
		c.keepAdopted(&want)
	} else {
		c.adopted = plan.Tables{}
	}
	c.writeTables(want)
}

// wantTables works out what the kernel's maps are to hold of what this process knows.
func (c *Controller) wantTables() plan.Tables {
	hops, next, ids := make(map[peer.Name]plan.Hop), c.routes.Unicast, c.routes.ShortIDs
	add := func(l *link) {
		if l.hop.Ifindex == 0 || l.PeerID() == 0 || !c.allowed(l.Remote()) || c.cfg.Off || c.unsupported != nil {
			return
		}
		if l.Encrypted() && (l.keyConflict || l.hop.Ifindex != c.tunnel.Index() || !c.hasID(l)) {
			return // it would leave in clear, or to another
		}
		hops[l.peer] = plan.Hop{
			Remote: l.Remote(), Local: l.hop.Local, Gateway: l.hop.Gateway, Ifindex: l.hop.Ifindex, MTU: c.cfg.MTU,
			Up: l.Up() && ids[l.peer] == l.PeerID(), Express: c.expressLinkErr(l) == nil,
		}
		if h := hops[l.peer]; h.Express && !c.underlay(h.Ifindex).Netfilter {
			h.Direct = true
			hops[l.peer] = h
		}
	}
	unrouted := maps.Clone(c.sessionless) // routes may not say that these are reached
	for n, l := range c.links {
		if _, reached := next[n]; reached {
			l.resumed = false
		}
		if l.resumed {
			unrouted[n] = l
		}
		add(l)
	}
	if len(unrouted) > 0 {
		next, ids = maps.Clone(next), maps.Clone(ids)
	}
	for n, l := range unrouted {
		if via, reached := next[n]; reached && via != n {
			continue // over another peer; that the peer itself is reached the routes said before
		}
		if _, known := ids[n]; !known && c.routes.ByShortID[l.id].IsZero() {
			ids[n] = l.id
		}
		next[n] = n
		add(l)
	}
	return plan.Plan(c.self, ids, next, hops)
}

// takeIDs takes in the short ids of the routes.
func (c *Controller) takeIDs(now time.Time) {
	if self := c.routes.ShortIDs[c.self]; self != c.shortID {
		c.shortID = self
		if err := c.kernel.SetSelf(self); err != nil {
			c.log.Warn("tell the kernel the own short id", "id", self, "err", err)
		}
		c.setTunnelAddr(self)
		for _, l := range c.links {
			c.apply(l, now, l.SetOwn(now, c.offer(l.Addr())))
		}
		c.resync = true
	}
	if !maps.Equal(c.names, c.routes.ByShortID) {
		c.names, c.resync = c.routes.ByShortID, true
	}
}

// writeTables brings the kernel's maps to want. What could not be written is
// tried again with the next change.
func (c *Controller) writeTables(want plan.Tables) {
	under := make(map[int]bool)
	for _, p := range want.Peers {
		if p.Express {
			under[p.Ifindex] = true
		}
	}
	c.attachUnderlays(under)
	if err := want.Apply(c.installed, kernel.Maps{Tables: c.kernel}); err != nil {
		c.log.Warn("change the fast datapath", "err", err)
	}
}

// attachUnderlays has the programs on the interfaces by which peers are reached.
func (c *Controller) attachUnderlays(want map[int]bool) {
	for i := range want {
		if c.underlays[i] || c.expressErr != nil {
			continue
		}
		if err := c.kernel.AttachUnderlay(i); err != nil {
			c.log.Warn("no express path", "ifindex", i, "err", err)
			continue
		}
		c.underlays[i] = true
	}
	for i := range c.underlays {
		if want[i] {
			continue
		}
		delete(c.underlays, i)
		if err := c.kernel.DetachUnderlay(i); err != nil {
			c.log.Warn("express path", "ifindex", i, "err", err)
		}
	}
}
