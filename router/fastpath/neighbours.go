package fastpath

import (
	"net/netip"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/plan"
	"github.com/weft-net/weft/router/resolve"
)

const (
	// maxNeighbours is how many IP addresses one round of the loop writes to the kernel. When a router
	// starts it hears of all addresses of the mesh at once, and echoes must not wait for them.
	maxNeighbours = 256
	// knownFor is how long an address must have been known before a probe by plain packets uses it, as
	// the programs have it for other packets: then its binding is known at the other end, too.
	knownFor = 3 * time.Second
	// leaveAfter is how long an address that a peer no longer binds stays, unless it is bound elsewhere. If
	// only the router of the peer is away, its bindings end, and its kernel sends on: then its addresses
	// stay as long as the path to it, and at least returnIn after its router came back.
	leaveAfter = 2 * time.Second
	returnIn   = 5 * time.Second
)

// bound is where the IP addresses are that are bound to containers.
type bound struct {
	of map[peer.Name]map[netip.Addr]place
	at map[netip.Addr]peer.Name
	// unconfirmed are what an earlier process left in the kernel and this one has not heard of yet.
	unconfirmed map[netip.Addr]kernel.Neighbour
	leaving     map[netip.Addr]time.Time     // when addresses that no peer binds leave
	leaves      time.Time                    // no address leaves before
	probed      map[peer.Name]*[2]netip.Addr // by family: those that probes use
	self        uint16                       // short id of this host when its addresses were written
}

type place struct {
	mac   ethernet.MAC
	since time.Time
}

func newBound() bound {
	return bound{
		of: make(map[peer.Name]map[netip.Addr]place), at: make(map[netip.Addr]peer.Name),
		unconfirmed: make(map[netip.Addr]kernel.Neighbour), leaving: make(map[netip.Addr]time.Time), probed: make(map[peer.Name]*[2]netip.Addr),
	}
}

// set says where an address is, nowhere if p is zero.
func (b *bound) set(a netip.Addr, p resolve.Place, now time.Time) {
	if was, ok := b.at[a]; ok {
		if was == p.At && b.of[was][a].mac == p.MAC {
			return
		}
		delete(b.of[was], a)
		if len(b.of[was]) == 0 {
			delete(b.of, was)
			delete(b.probed, was)
		}
		delete(b.at, a)
	}
	if p.IsZero() {
		return
	}
	if b.of[p.At] == nil {
		b.of[p.At] = make(map[netip.Addr]place)
	}
	b.of[p.At][a], b.at[a] = place{p.MAC, now}, p.At
}

// ends returns addresses of two peers for probes.
func (b *bound) ends(self, n peer.Name, f plan.Family, now time.Time) (own, peers netip.Addr) {
	return b.probe(self, f, now), b.probe(n, f, now)
}

// probe returns the address of a peer for probes: always the same while it is bound. The kernel of the peer
// answers for no address that it does not have any more. So one that leaves is used only if all do, as
// they do when the router of the peer is away.
func (b *bound) probe(n peer.Name, f plan.Family, now time.Time) (found netip.Addr) {
	last := b.probed[n]
	if last != nil {
		if _, there := b.of[n][last[f]]; there {
			found = last[f]
		}
	}
	stays := func(a netip.Addr) bool { _, leaves := b.leaving[a]; return !leaves }
	if found.IsValid() && stays(found) {
		return found
	}
	for a, p := range b.of[n] {
		if plan.FamilyOf(a) != f || now.Sub(p.since) <= knownFor || found.IsValid() && !stays(a) {
			continue
		}
		if found = a; stays(a) {
			break
		}
	}
	if !found.IsValid() {
		return found
	}
	if last == nil {
		last = new([2]netip.Addr)
		b.probed[n] = last
	}
	last[f] = found
	return found
}

// putOff lets the addresses of a peer that leave do so at a time.
func (b *bound) putOff(n peer.Name, to time.Time) {
	for a := range b.of[n] {
		if _, leaves := b.leaving[a]; leaves {
			b.leave(a, to)
		}
	}
}

// Moved reports changes of where IP addresses are, in order. The kernel answers requests for the MAC
// addresses of those to which it forwards frames, and sends plain packets between them.
func (c *Controller) Moved(list []resolve.Change) {
	if !c.attached || len(list) == 0 {
		return
	}
	c.mu.Lock()
	for _, ch := range list {
		c.in.neighbours[ch.Addr] = ch.New
	}
	c.mu.Unlock()
	c.in.signal()
}

// takeNeighbours returns some of the changed addresses with their places, zero for those that are
// nowhere. mu is held.
func (in *inbox) takeNeighbours() map[netip.Addr]resolve.Place {
	if len(in.neighbours) <= maxNeighbours {
		all := in.neighbours
		in.neighbours = make(map[netip.Addr]resolve.Place)
		return all
	}
	some := make(map[netip.Addr]resolve.Place, maxNeighbours)
	for a, m := range in.neighbours {
		if len(some) == maxNeighbours {
			break
		}
		some[a] = m
		delete(in.neighbours, a)
	}
	in.signal()
	return some
}

// writeNeighbours writes changed addresses to the kernel.
func (c *Controller) writeNeighbours(list map[netip.Addr]resolve.Place, now time.Time) {
	for a, p := range list {
		delete(c.bound.leaving, a)
		if at, known := c.bound.at[a]; known && p.IsZero() && at != c.self {
			c.bound.leave(a, now.Add(leaveAfter))
			continue
		}
		c.bound.set(a, p, now)
		c.writeNeighbour(a, now)
	}
}

// leave says when an address leaves.
func (b *bound) leave(a netip.Addr, at time.Time) {
	if len(b.leaving) == 0 || at.Before(b.leaves) {
		b.leaves = at
	}
	b.leaving[a] = at
}

// endLeaving removes addresses whose time has come, a few at a time.
func (c *Controller) endLeaving(now time.Time) {
	b := &c.bound
	if len(b.leaving) == 0 || now.Before(b.leaves) {
		return
	}
	gone, next := 0, now.Add(returnIn)
	for a, at := range b.leaving {
		switch {
		case now.Before(at):
			next = earliest(next, at)
		case c.sessionless[b.at[a]] != nil:
			b.leaving[a] = now.Add(returnIn)
		case gone == maxNeighbours:
			next = now
		default:
			gone++
			delete(b.leaving, a)
			b.set(a, resolve.Place{}, now)
			c.writeNeighbour(a, now)
		}
	}
	b.leaves = next
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// nextLeaving returns when endLeaving must be called at the latest; zero for never.
func (c *Controller) nextLeaving() (next time.Time) {
	if len(c.bound.leaving) == 0 {
		return time.Time{}
	}
	return c.bound.leaves
}

// writeNeighbour writes an address to the kernel. One that cannot be written is not there: then the router
// answers, and packets go by VXLAN.
func (c *Controller) writeNeighbour(a netip.Addr, now time.Time) {
	var err error
	at, known := c.bound.at[a]
	if known {
		n := kernel.Neighbour{MAC: c.bound.of[at][a].mac, Peer: c.idOf(at)}
		if was, ok := c.bound.unconfirmed[a]; ok && n.Peer == 0 && was.MAC == n.MAC && c.adopting(now) {
			return // the routes that have the peer's id come soon
		}
		delete(c.bound.unconfirmed, a)
		err = c.kernel.PutNeighbour(a, n)
	}
	if !known || err != nil {
		delete(c.bound.unconfirmed, a)
		if e := c.kernel.DeleteNeighbour(a); e != nil {
			err = e
		}
	}
	if err != nil {
		c.log.Debug("cannot copy the place of an IP address to the kernel", "addr", a, "err", err)
	}
}

// idOf returns the short id of a peer, 0 if it has none.
func (c *Controller) idOf(n peer.Name) uint16 {
	if n == c.self {
		return c.shortID
	}
	return c.ids[n]
}

// moveNeighbours lets the next rounds of the loop write the addresses of peers that have other short ids than in
// old. When a router starts those are all.
func (c *Controller) moveNeighbours(old map[peer.Name]uint16) {
	self := c.bound.self
	c.bound.self = c.shortID
	var moved []peer.Name
	for n := range c.bound.of {
		if n == c.self && c.shortID != self || n != c.self && c.ids[n] != old[n] {
			moved = append(moved, n)
		}
	}
	if len(moved) == 0 {
		return
	}
	c.mu.Lock()
	for _, n := range moved {
		for a, p := range c.bound.of[n] {
			_, newer := c.in.neighbours[a]
			_, leaves := c.bound.leaving[a]
			if !newer && !leaves {
				c.in.neighbours[a] = resolve.Place{MAC: p.mac, At: n}
			}
		}
	}
	c.mu.Unlock()
	c.in.signal()
}

// adoptNeighbours reads the addresses that an earlier process left in the kernel.
func (c *Controller) adoptNeighbours() error {
	return c.kernel.Neighbours(func(a netip.Addr, n kernel.Neighbour) bool { c.bound.unconfirmed[a] = n; return true })
}

// dropUnconfirmed deletes addresses of an earlier process that this one has not heard of, a few at a time.
func (c *Controller) dropUnconfirmed(now time.Time) {
	gone := 0
	for a := range c.bound.unconfirmed {
		if gone++; gone > maxNeighbours {
			c.in.signal()
			return
		}
		c.writeNeighbour(a, now)
	}
}

// Requests returns what the kernel did with requests for MAC addresses.
func (c *Controller) Requests() (r kernel.Requests) {
	if !c.attached {
		return r
	}
	c.closing.RLock()
	defer c.closing.RUnlock()
	if c.closed {
		return r
	}
	return c.kernel.Requests()
}
