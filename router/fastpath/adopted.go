package fastpath

import (
	"errors"
	"maps"
	"net/netip"
	"time"

	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/plan"
	"github.com/weft-net/weft/router/wire"
)

// adopted is what an earlier process left in the kernel and this one cannot confirm yet.
type adopted struct {
	plan.Tables
	// paths are the neighbours that frames go straight to, by outer address. They are
	// probed as links are, so that what broke while no router ran does not stay.
	paths map[netip.Addr]*plan.Link
}

func (a *adopted) empty() bool { return len(a.Peers)+len(a.Remotes) == 0 }

// adopting reports whether entries of an earlier process may still be in the kernel.
func (c *Controller) adopting(now time.Time) bool { return now.Sub(c.opened) < adoptTimeout }

// adopt reads what an earlier process left in the kernel. Entries end at once if the
// settings no longer allow clear text to or from their addresses.
func (c *Controller) adopt() error {
	c.installed = plan.Tables{Peers: make(map[uint16]plan.Peer), Remotes: make(map[netip.Addr]plan.Remote)}
	var refused []uint16
	err := c.kernel.Peers(func(id uint16, e kernel.PeerEntry) bool {
		p := kernel.PeerOf(e)
		if p.Next != 0 && (c.cfg.Off || !c.allowed(p.Remote)) {
			refused = append(refused, id)
			p = plan.Peer{From: p.From, FromAny: p.FromAny}
		}
		c.installed.Peers[id] = p
		return true
	})
	for _, id := range refused {
		err = errors.Join(err, c.kernel.PutPeer(id, kernel.PeerEntry{Flags: kernel.PeerKnown}))
	}
	if err != nil {
		return err
	}
	var untrusted []netip.Addr
	err = c.kernel.Remotes(func(a netip.Addr, e kernel.Remote) bool {
		if c.cfg.Off || !c.allowed(a) {
			untrusted = append(untrusted, a)
		} else {
			c.installed.Remotes[a] = plan.Remote{Peer: e.Peer, Local: kernel.ToAddr(e.Local), Key: e.Key}
		}
		return true
	})
	for _, a := range untrusted {
		err = errors.Join(err, c.kernel.DeleteRemote(a))
	}
	err = errors.Join(err, c.adoptNeighbours())
	for _, i := range c.kernel.Underlays() {
		c.underlays[i] = true
	}
	for _, i := range c.kernel.Containers() {
		c.containers[i] = true
	}
	c.adopted = adopted{Tables: plan.Tables{Peers: maps.Clone(c.installed.Peers), Remotes: maps.Clone(c.installed.Remotes)}}
	if c.kernel.Adopted() {
		// Frames of this host have its last short id. The mesh confirms it or gives another.
		c.shortID = c.kernel.Self()
		c.setTunnelAddr(c.shortID)
	}
	return err
}

// adoptPaths begins to probe the neighbours that frames go straight to. It is called when
// probes can be sent: the start of a router may take longer than a path may be silent.
func (c *Controller) adoptPaths() {
	c.adopted.paths = make(map[netip.Addr]*plan.Link)
	if c.shortID == 0 {
		return // this host can send no probe
	}
	inTunnel := make(map[netip.Addr]wire.Tunnel)
	endpoints := make(map[netip.Addr]netip.Addr)
	if c.tunnel != nil {
		for a, p := range c.tunnel.Peers() {
			inTunnel[a], endpoints[a] = wire.Tunnel{Port: p.Endpoint.Port(), Key: p.Key}, p.Endpoint.Addr()
		}
	}
	for a, r := range c.adopted.Remotes {
		if p := c.adopted.Peers[r.Peer]; p.Next != r.Peer || p.Remote != a {
			continue
		}
		own := plan.Offer{Verdict: wire.FastWilling, ShortID: c.shortID, Port: uint16(c.cfg.Port)}
		far, addr := plan.Offer{Verdict: wire.FastWilling, ShortID: r.Peer, Port: uint16(c.cfg.Port)}, a
		if plan.TunnelPrefix.Contains(a) {
			own.Verdict, own.Tunnel = wire.FastEncrypted, wire.Tunnel{Port: uint16(c.cfg.TunnelPort), Key: c.tunnel.Key()}
			far.Tunnel, addr = inTunnel[a], endpoints[a]
		}
		c.adopted.paths[a] = plan.ContinueLink(plan.Config{MTU: c.cfg.MTU, Epoch: c.cfg.Epoch, Nonce: newNonce, Own: own, Addr: addr}, far, time.Now())
	}
}

// tickAdopted sends the probes that are due, and ends what no longer answers if frames have
// another way.
func (c *Controller) tickAdopted(now time.Time) {
	for a, l := range c.adopted.paths {
		if next := l.Next(); !next.IsZero() && !now.Before(next) {
			c.probe(l.Tick(now))
		}
		if _, reached := c.routes.Unicast[c.routes.ByShortID[l.PeerID()]]; reached && !l.Up() {
			c.dropAdopted("no echo", func(remote netip.Addr, _ plan.Remote) bool { return remote == a })
		}
	}
	if !c.adopting(now) {
		c.dropUnconfirmed(now)
		c.stale = c.stale || !c.adopted.empty() // removes what nobody confirmed
	}
}

// probe sends the probes among the effects of a link.
func (c *Controller) probe(effects []plan.Effect) {
	for _, e := range effects {
		if !c.attached {
			return
		}
		switch e := e.(type) {
		case plan.Probe:
			probe := kernel.Probe{Src: e.Src, Dst: e.Dst, To: e.To, Nonce: e.Nonce}
			c.host.Inject(kernel.ProbeHeader, kernel.AppendProbe(nil, probe, ethernet.HeaderLen+e.Size))
		case plan.PlainProbe:
			frame, h := kernel.AppendPlainProbe(nil, kernel.PlainProbe{
				Src: e.Src, Dst: e.Dst, Encap: kernel.Encap(e.Encap), From: e.From, To: e.To, Port: uint16(c.cfg.Port), Nonce: e.Nonce,
			}, e.Size)
			c.host.Inject(h, frame)
		}
	}
}

// dropAdopted ends what an earlier process left for some neighbours, in both directions.
// match gets the outer address of each.
func (c *Controller) dropAdopted(why string, match func(remote netip.Addr, r plan.Remote) bool) {
	for a, r := range c.adopted.Remotes {
		if !match(a, r) {
			continue
		}
		c.log.Info("fast path of an earlier router ended", "addr", a, "reason", why)
		delete(c.adopted.Remotes, a)
		delete(c.adopted.paths, a)
		maps.DeleteFunc(c.adopted.Peers, func(_ uint16, p plan.Peer) bool { return p.Remote == a })
		c.stale = true
	}
}

// keepAdopted keeps adopted entries that nothing contradicts: peers that this process does
// not reach yet, over neighbours to which clear text or the tunnel is allowed. Frames keep
// going straight to a neighbour whose kernel answers although routes lead over another peer,
// as they do until its session begins.
func (c *Controller) keepAdopted(want *plan.Tables) {
	if c.cfg.Off || c.unsupported != nil {
		return
	}
	for id, p := range c.adopted.Peers {
		known := want.Peers[id]
		direct := p.Next == id && c.adopted.paths[p.Remote] != nil
		switch r := c.adopted.Remotes[p.Remote]; {
		case known.Carries() && (known.Next == p.Next || !direct): // this process knows the peer now
			delete(c.adopted.Peers, id)
			if direct {
				delete(c.adopted.paths, p.Remote)
			}
		case p.Next != 0 && c.allowed(p.Remote) && r.Peer == p.Next:
			if c.expressErr != nil || within(p.Remote, c.cfg.NoExpressTo) {
				p.Express, p.Direct, p.Encaps, p.Accepts = false, false, [2]plan.Encap{}, false
			}
			// The peer may not know yet that this host wants others, so what it sends is taken.
			p.Encaps = c.cfg.allow(p.Encaps, p.Remote)
			if known.Carries() {
				p.From, p.FromAny = known.From, known.FromAny
			}
			want.Peers[id] = p
		}
	}
	for a, e := range c.adopted.Remotes {
		if _, ok := want.Remotes[a]; !ok && c.allowed(a) {
			want.Remotes[a] = e
		}
	}
}
