package fastpath

import (
	"maps"
	"net/netip"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/mesh/peer"
)

// ownRoutes are the routes of VXLAN packets to neighbours, also while only probes go there,
// and of the packets of the tunnel that has them inside.
func (c *Controller) ownRoutes() netdev.OwnRoutes {
	o := netdev.OwnRoutes{VXLAN: uint16(c.cfg.Port), Hops: make(map[netip.Addr]netdev.OwnHop)}
	if c.tunnel != nil {
		o.Tunnel = uint16(c.cfg.TunnelPort)
	}
	if c.cfg.Off || c.unsupported != nil {
		return o
	}
	for _, p := range c.adopted.Peers {
		c.addOwnRoute(&o, p.Remote, netdev.Hop{Ifindex: p.Ifindex, Local: p.Local, Gateway: p.Gateway})
	}
	for _, set := range []map[peer.Name]*link{c.sessionless, c.links} {
		for _, l := range set {
			c.addOwnRoute(&o, l.Remote(), l.hop)
			c.addOwnRoute(&o, l.Addr(), l.outer)
		}
	}
	return o
}

func (c *Controller) addOwnRoute(o *netdev.OwnRoutes, to netip.Addr, hop netdev.Hop) {
	if hop.Ifindex == 0 || !to.IsValid() {
		return
	}
	if mtu := c.underlay(hop.Ifindex).MTU; mtu != 0 {
		o.Hops[to] = netdev.OwnHop{Hop: hop, MTU: mtu}
	}
}

// setOwnRoutes writes the routes if they changed. If that fails the routes of the host apply,
// so a log line is enough: the keeper tries again.
func (c *Controller) setOwnRoutes() {
	o := c.ownRoutes()
	if maps.Equal(o.Hops, c.routed) {
		return
	}
	if err := c.watch.SetOwnRoutes(o); err != nil {
		c.log.Warn("cannot set the routes to other hosts: what containers do may make the path MTU smaller", "err", err)
	}
	c.routed = o.Hops
}

// lookAtOwnRoutes compares the routes with those of the host as they are now.
func (c *Controller) lookAtOwnRoutes(*netdev.View) (faults []string, err error) {
	err = c.ask(func() (err error) {
		for _, set := range []map[peer.Name]*link{c.sessionless, c.links} {
			for _, l := range set {
				c.findHop(l)
			}
		}
		c.setOwnRoutes()
		faults, err = c.watch.OwnRouteFaults(c.ownRoutes())
		return err
	})
	return faults, err
}

// removeOwnRoutes removes what an earlier router left.
func (c *Controller) removeOwnRoutes() {
	if err := c.watch.SetOwnRoutes(netdev.OwnRoutes{}); err != nil {
		c.log.Warn("cannot remove the routes to other hosts of an earlier router", "err", err)
	}
}
