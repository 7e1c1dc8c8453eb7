package fastpath

import (
	"maps"
	"slices"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/plan"
)

// replan computes the contents of the kernel's maps and writes what differs.
func (c *Controller) replan() {
	if !c.stale {
		return
	}
	c.stale = false
	now := time.Now()
	c.fromEnds = c.from.Next(c.since())
	c.takeIDs(now)
	c.applyTunnels(now)
	c.setOwnRoutes()
	want := c.wantTables()
	if c.adopting(now) {
		c.keepAdopted(&want)
	} else {
		c.adopted = adopted{}
	}
	c.writeTables(want)
}

// wantTables computes the contents of the kernel's maps from what this process knows.
func (c *Controller) wantTables() plan.Tables {
	hops, next := make(map[peer.Name]plan.Hop), c.routes.Unicast
	add := func(l *link) {
		if l.hop.Ifindex == 0 || l.PeerID() == 0 || !c.allowed(l.Remote()) || c.cfg.Off || c.unsupported != nil {
			return
		}
		if l.Encrypted() && (l.keyConflict || l.hop.Ifindex != c.tunnel.Index() || !c.hasID(l)) {
			return // it would leave in clear text, or reach another peer
		}
		hops[l.peer] = plan.Hop{
			Remote: l.Remote(), Local: l.hop.Local, Gateway: l.hop.Gateway, Ifindex: l.hop.Ifindex, MTU: c.cfg.MTU,
		}
		h := hops[l.peer]
		carries := c.carries(l) && c.ids[l.peer] == l.PeerID()
		h.Up, h.Express = carries && (l.Up() || !l.Plain()), c.expressLinkErr(l) == nil
		if h.Express {
			h.Direct, h.Accepts = !c.underlay(h.Ifindex).Netfilter, l.Accepts() && c.plainErr(l) == nil
		}
		if h.Accepts && carries {
			h.Encaps = l.works().encaps
		}
		hops[l.peer] = h
	}
	c.mu.Lock()
	lost := maps.Clone(c.lost)
	c.mu.Unlock()
	near := make(map[peer.Name]*link)
	for _, set := range []map[peer.Name]*link{c.sessionless, c.links} {
		for n, l := range set {
			if add(l); c.carries(l) {
				near[n] = l
			}
		}
	}
	// The kernel of these neighbours answers, or nothing else leads to them, so frames go straight
	// to them. When the router of a neighbour ends or comes back, routes lead over another peer, or
	// nowhere, and the neighbour's kernel, which hears of no routes, would refuse frames from there.
	if len(near)+len(lost) > 0 {
		next = cloneOf(next)
	}
	for n, l := range lost {
		next[n] = l.via
	}
	for n, l := range near {
		next[n] = n
		add(l)
	}
	from := func(n peer.Name) []peer.Name {
		if l, ok := lost[n]; ok {
			return l.from
		}
		return c.from.From(n, c.since())
	}
	if c.cfg.Encrypt {
		// Relays must not read frames, so the router seals them for the peer at the end.
		next = maps.Clone(next)
		maps.DeleteFunc(next, func(n, via peer.Name) bool { return n != via })
		from = func(peer.Name) []peer.Name { return nil }
	}
	t := plan.Plan(c.self, c.ids, next, hops, from)
	for _, set := range []map[peer.Name]*link{c.sessionless, c.links} {
		for _, l := range set {
			if r, ok := t.Remotes[l.Remote()]; ok && r.Peer == l.PeerID() {
				r.Key = l.key
				t.Remotes[l.Remote()] = r
			}
		}
	}
	return t
}

// takeIDs handles changes of short ids.
func (c *Controller) takeIDs(now time.Time) {
	if self := c.routes.ShortIDs[c.self]; self != c.shortID && (self != 0 || !c.adopting(now)) {
		c.shortID = self
		if err := c.kernel.SetSelf(self); err != nil {
			c.log.Warn("cannot set the short id of this host in the kernel", "id", self, "err", err)
		}
		c.setTunnelAddr(self)
		for _, l := range c.links {
			c.apply(l, now, l.SetOwn(now, c.offerTo(l)))
		}
		c.resync = true
	}
	for _, l := range c.links {
		if id := l.PeerID(); c.routes.ByShortID[id] == l.peer {
			l.provedID = id
		}
	}
	ids, names := c.knownIDs()
	if !maps.Equal(c.names, names) {
		c.resync = true
	}
	old := c.ids
	c.ids, c.names = ids, names
	c.moveNeighbours(old)
}

// knownIDs returns the short ids of peers. The mesh forgets those of a peer whose router is
// away long before the path to it ends.
func (c *Controller) knownIDs() (map[peer.Name]uint16, map[uint16]peer.Name) {
	ids, names := c.routes.ShortIDs, c.routes.ByShortID
	cloned := false
	for _, set := range []map[peer.Name]*link{c.sessionless, c.links} {
		for n, l := range set {
			if _, known := c.routes.ShortIDs[n]; known || !c.hasID(l) {
				continue
			}
			if !cloned {
				ids, names, cloned = cloneOf(ids), cloneOf(names), true
			}
			ids[n], names[l.PeerID()] = l.PeerID(), n
		}
	}
	return ids, names
}

// cloneOf is maps.Clone, but never nil.
func cloneOf[K comparable, V any](m map[K]V) map[K]V {
	c := make(map[K]V, len(m))
	maps.Copy(c, m)
	return c
}

// writeTables writes want to the kernel's maps. What failed is written again with the next
// change, or with the next report of rules, at most rulesInterval later.
func (c *Controller) writeTables(want plan.Tables) {
	under := make(map[int]bool)
	for _, p := range want.Peers {
		if p.Express {
			under[p.Ifindex] = true
		}
	}
	c.attachUnderlays(under)
	plain := slices.ContainsFunc(slices.Collect(maps.Values(want.Peers)), func(p plan.Peer) bool { return p.Accepts })
	if err := c.kernel.SetPlain(plain); err != nil {
		c.log.Warn("cannot switch plain packets", "on", plain, "err", err)
	}
	c.tablesErr = want.Apply(c.installed, kernel.Maps{Tables: c.kernel})
	if c.tablesErr != nil {
		c.log.Warn("cannot write the tables of the fast path", "err", c.tablesErr)
	}
}

// attachUnderlays attaches programs to the interfaces towards peers, and detaches them
// from others.
func (c *Controller) attachUnderlays(want map[int]bool) {
	for i := range want {
		if c.underlays[i] || c.expressErr != nil {
			continue
		}
		if err := c.kernel.AttachUnderlay(i); err != nil {
			c.log.Warn("no express mode on an interface of the underlay", "ifindex", i, "err", err)
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
			c.log.Warn("cannot end express mode on an interface of the underlay", "ifindex", i, "err", err)
		}
	}
}
