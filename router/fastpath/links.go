package fastpath

import (
	"errors"
	"net/netip"
	"time"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/fastpath/plan"
	"github.com/weft-net/weft/router/liveness"
	"github.com/weft-net/weft/router/wire"
)

// otherPeer is why a path ends whose address is not its peer's any more.
const otherPeer = "another peer has its address now"

// beginSession begins the fast path to a neighbour, or continues it if only the
// neighbour's router was away.
func (c *Controller) beginSession(n peer.Name, s Session, now time.Time) {
	for other, l := range c.sessionless {
		if other != n && l.Addr() == s.Addr.Unmap() {
			c.endKept(other, otherPeer)
		}
	}
	c.dropAdopted(otherPeer, func(remote netip.Addr, r plan.Remote) bool { return remote == s.Addr.Unmap() && r.Key != s.Key })
	secret := tunnelSecret(s.Secret)
	if l, ok := c.sessionless[n]; ok && l.key == s.Key && (l.Addr() == s.Addr.Unmap() || !s.Addr.IsValid()) {
		// Of a relayed session the address is found out later.
		c.setSessionless(n, nil)
		c.bound.putOff(n, now.Add(returnIn))
		l.sessionEnded, l.secret = time.Time{}, secret
		c.links[n] = l
		c.apply(l, now, l.Renew(now, c.offerTo(l)))
		return
	}
	c.endKept(n, "the peer has another key or another address now")
	c.setUse(n, unused)
	l := &link{peer: n, key: s.Key, secret: secret}
	var effects []plan.Effect
	l.Link, effects = plan.NewLink(plan.Config{
		MTU: c.cfg.MTU, Epoch: c.cfg.Epoch, Nonce: newNonce, Own: c.offer(s.Addr), Addr: s.Addr,
		Pace: func() time.Duration { return liveness.Pace(c.busy) }, Unread: c.host.Backlog,
		Links: func() int { return len(c.links) }, Carries: func() bool { return c.host.Carries(n) },
		Ends:   func(f plan.Family) (own, peers netip.Addr) { return c.bound.ends(c.self, n, f, time.Now()) },
		Cannot: func(e plan.Encap, f plan.Family) error { return c.cannotSend(l, e, f) },
	}, now)
	c.links[n] = l
	c.apply(l, now, effects)
	c.findHop(l)
}

// endSession ends the session of a neighbour. Its kernel may still answer, or answer again soon: a
// busy host loses probes, and the router of the neighbour may be gone by then. So a link that was up
// is probed further.
func (c *Controller) endSession(n peer.Name, now time.Time) {
	l, ok := c.links[n]
	if !ok {
		return
	}
	delete(c.links, n)
	c.mu.Lock()
	delete(c.shown, n)
	c.mu.Unlock()
	if l.sessionEnded = now; l.wasUp {
		l.use = c.useOf(l, now)
		c.setSessionless(n, l)
		c.setUse(n, l.use)
	} else {
		c.setUse(n, unused)
	}
	c.stale = true
}

// use is what frames a path carries.
type use int

const (
	unused use = iota
	// lastResort: the kernel of the neighbour was silent too long, but not for lastResortTimeout.
	// On a busy host that is no proof that the path is dead. Where frames have another way, they
	// take it. Where they have none, nothing is gained by dropping them.
	lastResort
	used
)

// useOf returns what frames a path may carry.
func (c *Controller) useOf(l *link, now time.Time) use {
	switch heard := l.Heard(); {
	case l.Up(), l.Plain():
		return used
	case !heard.IsZero() && now.Sub(heard) < lastResortTimeout:
		return lastResort
	}
	return unused
}

// carries reports whether frames go straight to a neighbour: its kernel answers, or they have no
// other way.
func (c *Controller) carries(l *link) bool {
	_, reached := c.routes.Unicast[l.peer]
	return l.use == used || l.use == lastResort && !reached
}

// works is what goes by a path. It is comparable.
type works struct {
	vxlan   bool
	encaps  [2]plan.Encap // of each family
	accepts bool          // plain packets may come
}

func (l *link) works() works {
	return works{l.Up(), [2]plan.Encap{plan.V4: l.Encap(plan.V4), plan.V6: l.Encap(plan.V6)}, l.Accepts()}
}

// updateUses publishes what frames the paths carry, also those whose sessions ended.
func (c *Controller) updateUses(now time.Time) {
	for _, set := range []map[peer.Name]*link{c.links, c.sessionless} {
		for n, l := range set {
			was := l.planned
			if l.planned = l.works(); l.planned != was {
				c.stale = true
			}
			if e := l.planned.encaps; e != was.encaps {
				c.log.Info("encapsulation changed", "peer", n, "addr", l.Addr(), "ipv4", e[plan.V4], "ipv6", e[plan.V6])
			}
			if u := c.useOf(l, now); u != l.use {
				l.use, c.stale = u, true
				c.setUse(n, u)
				if !l.sessionEnded.IsZero() {
					c.setSessionless(n, l)
					c.log.Info("fast path to a peer without a session", "peer", n, "addr", l.Addr(), "works", u == used, "reason", l.Reason(now))
				}
			}
		}
	}
}

// setSessionless makes l, which has no session, the path to a neighbour; nil ends it.
func (c *Controller) setSessionless(n peer.Name, l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l == nil {
		delete(c.sessionless, n)
		delete(c.keptPaths, n)
		return
	}
	c.sessionless[n] = l
	if l.use == used {
		c.keptPaths[n] = KeptPath{Addr: l.Addr(), Until: l.sessionEnded.Add(sessionlessTimeout)}
	} else {
		delete(c.keptPaths, n)
	}
}

// endSessionless ends paths to neighbours that have had no session for too long.
func (c *Controller) endSessionless(now time.Time) {
	for n, l := range c.sessionless {
		if now.Sub(l.sessionEnded) >= sessionlessTimeout {
			c.setSessionless(n, nil)
			c.setUse(n, unused)
			c.stale = true
		}
	}
}

// pathChanged handles a new address of the neighbour's end, or a new MTU of the path to it.
func (c *Controller) pathChanged(n peer.Name, p path, now time.Time) {
	l := c.links[n]
	if l == nil {
		return
	}
	if p.mtu != 0 && l.pathMTU != p.mtu {
		l.pathMTU = p.mtu
		c.apply(l, now, l.SetPath(now, p.mtu))
	}
	if l.Addr() == p.addr.Unmap() {
		return
	}
	c.apply(l, now, l.SetAddr(now, p.addr))
	c.findHop(l)
	c.apply(l, now, l.SetOwn(now, c.offerTo(l)))
}

// control handles the offer of a neighbour.
func (c *Controller) control(from peer.Name, m wire.Control, now time.Time) {
	if l, ok := c.links[from]; ok {
		c.apply(l, now, l.Control(now, m))
		c.findHop(l)
		if errors.Is(l.Reason(now), plan.ErrUnwilling) {
			c.dropAdopted("an end is not willing any more", func(remote netip.Addr, r plan.Remote) bool {
				return remote == l.Addr() || r.Peer == l.PeerID()
			})
		}
	}
}

// echoed handles a probe that came back.
func (c *Controller) echoed(e Echo, now time.Time) {
	for _, set := range []map[peer.Name]*link{c.links, c.sessionless} {
		for _, l := range set {
			if l.Remote() == e.From {
				c.apply(l, now, l.Echoed(now, e.Nonce, e.Summed))
			}
		}
	}
	if l := c.adopted.paths[e.From]; l != nil {
		c.probe(l.Echoed(now, e.Nonce, e.Summed))
	}
}

// apply carries out the effects of a link and publishes its state.
func (c *Controller) apply(l *link, now time.Time, effects []plan.Effect) {
	c.probe(effects)
	for _, e := range effects {
		switch e := e.(type) {
		case plan.Send:
			c.host.Send(l.peer, e.Msg)
		case plan.SumInSoftware:
			c.sumInSoftware(l)
		case plan.Suspect:
			c.host.Check(l.peer)
		}
	}
	c.show(l, now)
}

// show publishes the state of a link for status.
func (c *Controller) show(l *link, now time.Time) {
	if c.links[l.peer] != l {
		return
	}
	s := LinkStatus{Up: l.Up(), Encrypted: l.Encrypted(), RTT: l.RTT(), Encaps: l.works().encaps}
	if s.Up || s.Plain() {
		s.EncapReason = l.EncapReason(now)
	}
	l.wasUp = l.wasUp || s.Up || s.Plain()
	switch {
	case s.Up:
		s.MTU = c.cfg.MTU
		s.Mode, s.Reason = c.linkMode(l)
	case s.Plain():
		s.MTU = c.cfg.MTU
		s.Mode, _ = c.linkMode(l)
		s.Reason = l.Reason(now)
	case l.keyConflict && s.Encrypted:
		s.Mode, s.Reason = Disabled, because(ErrEncryption, "the peer claims the tunnel key of another peer")
	default:
		s.Mode, s.Reason = Disabled, l.Reason(now)
	}
	c.mu.Lock()
	old, known := c.shown[l.peer]
	c.shown[l.peer] = s
	c.mu.Unlock()
	if !known || old.Up != s.Up {
		c.stale = true
		l.use = c.useOf(l, now)
		c.setUse(l.peer, l.use)
		c.host.SetFast(l.peer, s.Up)
		if s.Up {
			c.log.Info("fast path in use", "peer", l.peer, "addr", l.Addr(), "encrypted", s.Encrypted, "rtt", s.RTT)
		} else if known {
			c.log.Info("fast path out of use", "peer", l.peer, "addr", l.Addr(), "reason", s.Reason)
		}
	}
	if l.id != l.PeerID() {
		l.id, c.stale = l.PeerID(), true
	}
	if t := l.tunnelPeer(); t != l.tunnel {
		l.tunnel, c.stale = t, true
	}
}

// sumInSoftware makes the kernel compute the checksums inside VXLAN, because the card
// towards a peer computes wrong ones.
func (c *Controller) sumInSoftware(l *link) {
	c.log.Warn("the card computes wrong checksums inside VXLAN: the kernel computes them from now on", "peer", l.peer, "ifindex", l.hop.Ifindex, "iface", netdev.VXLANName)
	if err := c.kernel.SumInSoftware(); err != nil {
		c.log.Warn("cannot compute checksums in software", "err", err)
	}
	c.badChecksums[l.hop.Ifindex] = true
	c.offerAgain()
}

// offerAgain works out the offers to all neighbours again, and sends those that are others now.
func (c *Controller) offerAgain() {
	c.stale = true
	now := time.Now()
	for _, l := range c.links {
		c.apply(l, now, l.SetOwn(now, c.offerTo(l)))
	}
}

// underlay returns the properties of the interface towards a peer. If netfilter sees
// the packets that leave by it, it would apply what it knows about the inner frame
// from weft's bridge, such as a translation of addresses, to the outer packet.
// Without an Ethernet header, from_underlay would read addresses at the wrong
// offset.
func (c *Controller) underlay(ifindex int) netdev.Underlay {
	u, known := c.underlayCache[ifindex]
	if !known {
		u = c.watch.Underlay(ifindex)
		c.underlayCache[ifindex] = u
	}
	return u
}
