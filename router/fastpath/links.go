package fastpath

import (
	"net/netip"
	"time"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/plan"
	"github.com/weft-net/weft/router/wire"
)

// Up begins the fast path to a neighbour whose end of the underlay is addr, or
// continues it if only the peer's router was away. The secret is the session's.
func (c *Controller) Up(n peer.Name, secret [32]byte, addr netip.Addr) {
	if c.off {
		return
	}
	now, key := time.Now(), tunnelSecret(secret)
	if l, ok := c.sessionless[n]; ok && l.Addr() == addr {
		delete(c.sessionless, n)
		l.sessionEnded, l.secret = time.Time{}, key
		c.links[n] = l
		c.apply(l, now, l.Renew(now, c.offer(addr)))
		return
	}
	delete(c.sessionless, n)
	l := &link{peer: n, secret: key}
	var effects []plan.Effect
	l.Link, effects = plan.NewLink(plan.Config{MTU: c.cfg.MTU, Epoch: c.cfg.Epoch, Nonce: newNonce, Own: c.offer(addr), Addr: addr}, now)
	c.links[n] = l
	c.apply(l, now, effects)
	c.findHop(l)
}

// Down ends it, unless the peer's kernel still answers.
func (c *Controller) Down(n peer.Name) {
	l, ok := c.links[n]
	if !ok {
		return
	}
	delete(c.links, n)
	c.mu.Lock()
	delete(c.shown, n)
	c.mu.Unlock()
	if l.sessionEnded = time.Now(); l.Up() {
		c.sessionless[n] = l
	}
	c.stale = true
}

// Path follows the address of the peer's end and the MTU of the path to it, in bytes of
// IP packet; 0 if not known.
func (c *Controller) Path(n peer.Name, addr netip.Addr, mtu int) {
	l, now := c.links[n], time.Now()
	if l == nil {
		return
	}
	if mtu != 0 && l.pathMTU != mtu {
		l.pathMTU = mtu
		c.apply(l, now, l.SetPath(now, l.pathMTU))
	}
	if l.Addr() == addr {
		return
	}
	c.apply(l, now, l.SetAddr(now, addr))
	c.apply(l, now, l.SetOwn(now, c.offer(addr)))
	c.findHop(l)
}

// Control takes in what a neighbour says about its fast path.
func (c *Controller) Control(from peer.Name, m wire.Control) {
	if l, ok := c.links[from]; ok {
		now := time.Now()
		c.apply(l, now, l.Control(now, m))
		c.findHop(l)
	}
}

// Echoed takes in a probe that came back.
func (c *Controller) Echoed(e Echo) {
	now := time.Now()
	for _, set := range []map[peer.Name]*link{c.links, c.sessionless} {
		for _, l := range set {
			if l.Remote() == e.From {
				c.apply(l, now, l.Echoed(now, e.Nonce, e.Summed))
			}
		}
	}
}

// apply carries out what a link wants, and shows how it is now.
func (c *Controller) apply(l *link, now time.Time, effects []plan.Effect) {
	for _, e := range effects {
		switch e := e.(type) {
		case plan.Send:
			c.host.Send(l.peer, e.Msg)
		case plan.Probe:
			if c.attached {
				probe := kernel.Probe{Src: e.Src, Dst: e.Dst, To: e.To, Nonce: e.Nonce}
				c.host.Inject(kernel.ProbeHeader, kernel.AppendProbe(nil, probe, ethernet.HeaderLen+e.Size))
			}
		case plan.Summing:
			c.sumInSoftware(l)
		}
	}
	c.show(l, now)
}

// show publishes a link's state for status.
func (c *Controller) show(l *link, now time.Time) {
	if c.links[l.peer] != l {
		return
	}
	s := LinkStatus{Up: l.Up(), Encrypted: l.Sealed(), Reason: l.Reason(now), RTT: l.RTT()}
	if l.keyConflict && s.Encrypted && !s.Up {
		s.Reason = "the peer says it has the tunnel key of another peer"
	}
	if s.Up {
		s.MTU = c.cfg.MTU
		s.Reason = c.whyNotExpress(l)
		s.Express = s.Reason == ""
	}
	c.mu.Lock()
	old, known := c.shown[l.peer]
	c.shown[l.peer] = s
	c.mu.Unlock()
	if !known || old.Up != s.Up {
		c.stale = true
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

// sumInSoftware has the kernel make the checksums of what goes into VXLAN, as the
// card by which a peer is reached makes wrong ones.
func (c *Controller) sumInSoftware(l *link) {
	c.log.Warn("wrong checksums inside VXLAN: they are made in software from now on", "peer", l.peer, "ifindex", l.hop.Ifindex, "interface", netdev.VXLANName)
	if err := c.kernel.SumInSoftware(); err != nil {
		c.log.Warn("make checksums in software", "err", err)
	}
	c.badChecksums[l.hop.Ifindex], c.stale = true, true
}

// whyNotExpress says in words why frames to a peer that is fast cross the
// bridge, "" if they pass by it.
func (c *Controller) whyNotExpress(l *link) string {
	switch {
	case c.noExpress != "":
		return c.noExpress
	case within(l.Addr(), c.cfg.NoExpressTo):
		return "switched off by --no-express-to"
	case l.Sealed():
		return "frames are encrypted by WireGuard"
	case within(l.Addr(), c.ipsecPrefixes):
		return "IPsec of the host applies to packets to the peer"
	case c.judged != "":
		return c.judged
	case c.badChecksums[l.hop.Ifindex]:
		return "the card towards the peer makes wrong checksums inside VXLAN, so the kernel makes them"
	case !c.expressable(l):
		return "the underlay is not IPv4 over Ethernet"
	}
	return ""
}

// underlay is what the interface is by which a peer is reached. Where netfilter sees
// what leaves by it, it would take what it knows of a frame from weft's bridge, like a
// translation of its addresses, for the packet's that the frame is in. Without an
// Ethernet header from_underlay would look for addresses in the wrong place.
func (c *Controller) underlay(ifindex int) netdev.Underlay {
	u, known := c.underlayCache[ifindex]
	if !known {
		u = c.watch.Underlay(ifindex)
		c.underlayCache[ifindex] = u
	}
	return u
}

// expressable tells whether what goes to a peer can be put into VXLAN by hand:
// over IPv4 and Ethernet, by an interface that is known.
func (c *Controller) expressable(l *link) bool {
	return c.noExpress == "" && !l.Sealed() && !c.badChecksums[l.hop.Ifindex] && !within(l.Addr(), c.cfg.NoExpressTo) && !within(l.Addr(), c.ipsecPrefixes) &&
		l.hop.Ifindex != 0 && l.hop.Local.Is4() && l.Addr().Is4() && l.hop.Gateway.Is4() && c.underlay(l.hop.Ifindex).Ethernet
}
