package fastpath

import (
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fastpath/plan"
	"github.com/weft-net/weft/router/origin"
	"github.com/weft-net/weft/router/resolve"
	"github.com/weft-net/weft/router/wire"
)

// inbox holds what the router reported and the controller's goroutine has not handled
// yet. There is one record for each neighbour, in which a newer value replaces an older
// one that was not handled, as only the newest counts. So the inbox is bounded by the
// number of neighbours, nothing is dropped, and the router never waits.
type inbox struct {
	wake    chan struct{} // of capacity 1: there is something to handle
	pending map[peer.Name]*report
	routes  *topology.Routes // the newest, also after they were handled
	changed bool             // routes were not handled
	// banned reports whether the peer with a key is banned, as the router reported last;
	// nil for never. Set bansChanged if it was not handled.
	banned      func(peer.Key) bool
	bansChanged bool
	// refused are the hosts with which a handshake failed, and whether this host dialled.
	refused map[netip.Addr]bool
	// neighbours are IP addresses that moved, with their places, zero for those that are
	// nowhere. There are no more than the mesh has.
	neighbours map[netip.Addr]resolve.Place
}

// maxRefused bounds inbox.refused, which strangers can make grow. What does not fit is
// lost: then probes show that the path is gone.
const maxRefused = 1024

// report is what happened to one neighbour and is not handled yet, in the order of the
// fields.
type report struct {
	down bool // the session ended that the controller knows
	// rejected: a session ended, and one of the two peers does not want the other.
	rejected bool
	up       *Session
	path     *path
	offer    *wire.Control // of the neighbour, about its fast path
}

// lostPeer is a peer that routes no longer reach, although the mesh still knows it, behind a
// neighbour whose kernel echoes: the router of the peer, or that of a host on the way, is
// being replaced. The kernels on the way still forward frames, so they continue to go there,
// until the mesh forgets the peer, which takes a minute, or bans it.
type lostPeer struct {
	via  peer.Name   // its last next hop
	from []peer.Name // the neighbours over which its frames came
}

// Session is a session with a neighbour.
type Session struct {
	Secret [32]byte   // known to both ends and to nobody else
	Key    peer.Key   // identity that the neighbour proved
	Addr   netip.Addr // its end of the underlay; invalid if not known
}

// path is the path to a neighbour.
type path struct {
	addr netip.Addr
	mtu  int // in bytes of IP packet; 0 if not known
}

// Up reports a session with a neighbour. If only the neighbour's router was away, the
// fast path continues.
func (c *Controller) Up(n peer.Name, now Session) {
	c.report(n, func(p *report) { p.up, p.path, p.offer = &now, nil, nil })
}

// Down reports that the session with a neighbour ended because its router is away. The
// fast path continues as long as the neighbour's kernel answers, but not for ever.
func (c *Controller) Down(n peer.Name) { c.end(n, false) }

// Reject reports that the session with a neighbour ended because one of the two does not
// want the other. The fast path ends.
func (c *Controller) Reject(n peer.Name) { c.end(n, true) }

func (c *Controller) end(n peer.Name, rejected bool) {
	c.report(n, func(p *report) { *p = report{down: true, rejected: p.rejected || rejected} })
}

// Refused reports that a handshake with a host failed because one of the two does not
// want the other. doc.go says what follows from that.
func (c *Controller) Refused(a netip.Addr, dialled bool) {
	if c.off != nil {
		return
	}
	a = a.Unmap()
	c.mu.Lock()
	if was, known := c.in.refused[a]; known || len(c.in.refused) < maxRefused {
		c.in.refused[a] = was || dialled
	}
	c.mu.Unlock()
	c.in.signal()
}

// PeersBanned reports that other peers are banned, and which. The paths to them end that
// outlived their sessions. banned may be called from any goroutine until the next call.
func (c *Controller) PeersBanned(banned func(peer.Key) bool) {
	if c.off != nil {
		return
	}
	c.mu.Lock()
	c.in.banned, c.in.bansChanged = banned, true
	c.mu.Unlock()
	c.in.signal()
}

// Path reports the address of a neighbour's end of the underlay, and the MTU of the
// path to it in bytes of IP packet, 0 if not known.
func (c *Controller) Path(n peer.Name, addr netip.Addr, mtu int) {
	c.report(n, func(p *report) { p.path = &path{addr, mtu} })
}

// Control reports the offer of a neighbour about its fast path.
func (c *Controller) Control(from peer.Name, m wire.Control) {
	c.report(from, func(p *report) { p.offer = &m })
}

// Routes reports new routes. They must not be changed any more.
func (c *Controller) Routes(r *topology.Routes) {
	if c.off != nil {
		return
	}
	c.mu.Lock()
	old := c.in.routes
	c.in.routes, c.in.changed = r, true
	for n, via := range old.Unicast {
		if _, reached := r.Unicast[n]; !reached && n != via && !c.cfg.Encrypt {
			c.lost[n] = lostPeer{via, old.From[n]}
		}
	}
	forgotten := c.checkLost()
	c.mu.Unlock()
	for _, n := range forgotten {
		c.macs.Forget(n)
	}
	c.in.signal()
}

// checkLost removes the peers from lost that are not to be kept, and returns those that routes
// do not reach. mu is held.
func (c *Controller) checkLost() (gone []peer.Name) {
	for n, l := range c.lost {
		_, known := c.in.routes.ShortIDs[n]
		_, reached := c.in.routes.Unicast[n]
		_, viaReached := c.in.routes.Unicast[l.via]
		via := c.uses[l.via]
		if known && !reached && (via == used || via == lastResort && !viaReached) {
			continue
		}
		delete(c.lost, n)
		if !reached && c.uses[n] == unused {
			gone = append(gone, n)
		}
	}
	return gone
}

// Keeps reports whether the MAC addresses behind a peer must be kept although no route
// leads to it: the kernel forwards frames to it nevertheless. When that ends the controller
// removes them from the table, unless routes lead to the peer again.
func (c *Controller) Keeps(n peer.Name) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, lost := c.lost[n]
	return c.uses[n] != unused || lost
}

// Learned reports that the table has a new place for a MAC address. If the queue is
// full, the next comparison with the kernel's map finds it.
func (c *Controller) Learned(m ethernet.MAC) {
	if !c.attached {
		return
	}
	select {
	case c.learned <- m:
	default:
		c.overflows.Add(1)
		c.overflow.Store(true)
	}
}

// Echoed reports a probe that came back. It is false if the queue is full and the echo
// is dropped, which the caller counts.
func (c *Controller) Echoed(e Echo) bool {
	select {
	case c.echoes <- e:
		return true
	default:
		return false
	}
}

// report changes what is pending for a neighbour.
func (c *Controller) report(n peer.Name, change func(*report)) {
	if c.off != nil {
		return
	}
	c.mu.Lock()
	p := c.in.pending[n]
	if p == nil {
		p = new(report)
		c.in.pending[n] = p
	}
	change(p)
	c.mu.Unlock()
	c.in.signal()
}

func (b *inbox) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// receive handles the inbox.
func (c *Controller) receive(now time.Time) {
	c.mu.Lock()
	pending, changed, refused := c.in.pending, c.in.changed, c.in.refused
	banned := c.in.banned
	if !c.in.bansChanged {
		banned = nil
	}
	if len(pending) == 0 && !changed && len(refused) == 0 && banned == nil && len(c.in.neighbours) == 0 {
		c.mu.Unlock()
		return
	}
	neighbours := c.in.takeNeighbours()
	c.in.pending, c.in.changed, c.in.refused, c.in.bansChanged = make(map[peer.Name]*report), false, make(map[netip.Addr]bool), false
	if changed {
		c.routes, c.stale = c.in.routes, true
		c.from = origin.New(c.routes.From, c.from, c.since())
	}
	c.mu.Unlock()
	c.writeNeighbours(neighbours, now)
	for n, p := range pending {
		l := c.links[n]
		if p.down {
			c.endSession(n, now)
		}
		if p.rejected {
			c.reject(n, l)
		}
	}
	// After the sessions that ended, before those that begin: a handshake is refused
	// only while there is no session.
	for a, dialled := range refused {
		c.refused(a, dialled)
	}
	if banned != nil {
		c.endBanned(banned)
	}
	for n, p := range pending {
		if p.up != nil {
			c.beginSession(n, *p.up, now)
		}
		if p.path != nil {
			c.pathChanged(n, *p.path, now)
		}
		if p.offer != nil {
			c.control(n, *p.offer, now)
		}
	}
}

// refused ends the paths in clear text to a host that does not want this host, or that
// this host does not want, unless a session proves the opposite. doc.go has the reasons.
func (c *Controller) refused(a netip.Addr, dialled bool) {
	if dialled {
		for n, l := range c.sessionless {
			if l.Addr() == a && !l.Encrypted() {
				c.endKept(n, "a handshake with its host was refused")
			}
		}
	}
	c.dropAdopted(unwanted, func(remote netip.Addr, _ plan.Remote) bool { return remote == a })
}

// unwanted is why a path ends that a session or a handshake ended.
const unwanted = "one of the two hosts does not want the other"

// endBanned ends the paths to banned peers that have no session. The mesh ends the sessions
// of the others.
func (c *Controller) endBanned(banned func(peer.Key) bool) {
	const why = "the peer is banned"
	for n, l := range c.sessionless {
		if banned(l.key) {
			c.endKept(n, why)
		}
	}
	c.dropAdopted(why, func(_ netip.Addr, r plan.Remote) bool { return banned(r.Key) })
}

// reject ends the path to a neighbour whose session has ended. l is its link, nil if there
// was none.
func (c *Controller) reject(n peer.Name, l *link) {
	var addr netip.Addr
	ids := []uint16{c.routes.ShortIDs[n]}
	if l != nil {
		addr, ids = l.Addr(), append(ids, l.PeerID())
	}
	c.endKept(n, unwanted)
	c.dropAdopted(unwanted, func(remote netip.Addr, r plan.Remote) bool { return remote == addr || slices.Contains(ids, r.Peer) })
}

// endKept ends the path to a neighbour whose session ended, if there is one.
func (c *Controller) endKept(n peer.Name, why string) {
	l, ok := c.sessionless[n]
	if !ok {
		return
	}
	c.log.Info("fast path ended", "peer", n, "addr", l.Addr(), "reason", why)
	c.setSessionless(n, nil)
	c.stale = true
	c.setUse(n, unused)
}

// setUse records what frames to a neighbour use the fast path. If none do any more, and routes
// do not lead to the neighbour, it removes the MAC addresses behind it.
func (c *Controller) setUse(n peer.Name, u use) {
	c.mu.Lock()
	was := c.uses[n]
	if u != unused {
		c.uses[n] = u
	} else {
		delete(c.uses, n)
	}
	_, reached := c.in.routes.Unicast[n]
	gone := c.checkLost()
	c.mu.Unlock()
	if was != unused && u == unused && !reached {
		gone = append(gone, n)
	}
	for _, n := range gone {
		c.macs.Forget(n)
	}
}
