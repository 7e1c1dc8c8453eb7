package fastpath

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/plan"
)

// open opens the tunnel and the kernel's part, and takes over what an earlier router
// left. It returns an error only if the router cannot work without the fast path
// either.
func (c *Controller) open() error {
	o := kernel.Options{
		PinDir: c.cfg.PinDir, Bridge: c.cfg.Bridge, Port: netdev.PortName, PortPeer: netdev.PortPeerName, TAP: c.cfg.TAP,
		VXLAN: netdev.VXLANName, VXLANPort: c.cfg.Port, MTU: c.cfg.MTU, Sysctls: c.cfg.Sysctls, Log: c.log,
		Binding: c.cfg.Binding,
	}
	c.openTunnel()
	if c.cfg.Encrypt && len(c.cfg.Trusted) == 0 && c.tunnel == nil {
		return c.leaveAllToSleeve(o)
	}
	if _, err := c.guard(); err != nil {
		// Without the rules, containers could send frames as this host.
		err = fmt.Errorf("keep containers from UDP %d: %w", c.cfg.Port, err)
		c.unsupported = plan.Because(ErrUnsupported, err)
		c.log.Warn("no fast path", "err", err)
		if err := c.sys.RemoveKernel(o); err != nil {
			return err
		}
		c.removeTunnel()
		return nil
	}
	if c.openKernel(o); !c.attached {
		return nil
	}
	if err := c.adopt(); err != nil {
		return fmt.Errorf("take over the fast path of an earlier router: %w", err)
	}
	if !c.kernel.Adopted() {
		if err := c.emptyTunnel(); err != nil {
			return fmt.Errorf("end the tunnels of an earlier router: %w", err)
		}
	}
	c.removeTunnel()
	return c.keep()
}

// leaveAllToSleeve removes what an earlier router left, because no link can use the
// fast path. Nothing may leave in clear text any more. Without the programs, frames
// save a twentieth of an idle round trip.
func (c *Controller) leaveAllToSleeve(o kernel.Options) error {
	if err := c.sys.RemoveKernel(o); err != nil {
		return err
	}
	c.removeTunnel()
	if _, err := c.watch.Guard(netdev.Guarded{}); err != nil {
		c.log.Warn("cannot remove the rules that guarded the fast path", "err", err)
	}
	return nil
}

// openKernel opens the kernel's part, or records why there is none and why frames
// must cross the bridge.
func (c *Controller) openKernel(o kernel.Options) {
	if c.cfg.NoExpress {
		c.expressErr = because(ErrDisabled, "switched off by --no-express")
	}
	c.filter = c.readFilter()
	var err error
	if c.ipsecPrefixes, err = c.watch.IPsecPrefixes(); err != nil {
		c.expressErr = plan.Because(ErrUnderlay, err)
		c.log.Warn("no express mode", "err", err)
	}
	o.Express = c.express()
	k, err := c.sys.OpenKernel(o)
	if err != nil {
		c.unsupported = plan.Because(ErrUnsupported, err)
		c.log.Warn("no fast path", "err", err)
		return
	}
	c.kernel, c.attached = k, true
	if err := k.Fast(); err != nil {
		c.unsupported = plan.Because(ErrUnsupported, err)
		c.log.Warn("no fast path", "err", err)
	} else if err := k.Express(); err != nil {
		c.expressErr = plan.Because(ErrUnsupported, err)
		c.log.Warn("no express mode", "err", err)
	}
}

// adopt reads what an earlier process left in the kernel. Entries end at once if the
// settings no longer allow clear text to or from their addresses.
func (c *Controller) adopt() error {
	c.installed = plan.Tables{Peers: make(map[uint16]plan.Peer), Remotes: make(map[netip.Addr]plan.Remote)}
	var refused []uint16
	err := c.kernel.Peers(func(id uint16, e kernel.PeerEntry) bool {
		p := plan.Peer{From: e.From, FromAny: e.Flags&kernel.PeerAny != 0}
		if e.Flags&kernel.PeerFast != 0 && (c.cfg.Off || !c.allowed(kernel.ToAddr(e.Remote))) {
			refused = append(refused, id)
		} else if e.Flags&kernel.PeerFast != 0 {
			p.Next = e.Next
			p.Hop = plan.Hop{
				Remote: kernel.ToAddr(e.Remote), Local: kernel.ToAddr(e.Local), Gateway: kernel.ToAddr(e.Gateway),
				Ifindex: int(e.Ifindex), MTU: int(e.MTU), Up: true, Express: e.Flags&kernel.PeerExpress != 0, Direct: e.Flags&kernel.PeerDirect != 0,
			}
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
			c.installed.Remotes[a] = plan.Remote{Peer: e.Peer, Local: kernel.ToAddr(e.Local)}
		}
		return true
	})
	for _, a := range untrusted {
		err = errors.Join(err, c.kernel.DeleteRemote(a))
	}
	for _, i := range c.kernel.Underlays() {
		c.underlays[i] = true
	}
	for _, i := range c.kernel.Containers() {
		c.containers[i] = true
	}
	c.adopted = plan.Tables{Peers: maps.Clone(c.installed.Peers), Remotes: maps.Clone(c.installed.Remotes)}
	return err
}

// dropAdopted ends what an earlier process left for some neighbours, in both directions.
// match gets the outer address and the short id of a neighbour.
func (c *Controller) dropAdopted(match func(remote netip.Addr, id uint16) bool) {
	for a, r := range c.adopted.Remotes {
		if !match(a, r.Peer) {
			continue
		}
		c.log.Info("fast path of an earlier router ended: one of the two hosts does not want the other", "addr", a)
		delete(c.adopted.Remotes, a)
		maps.DeleteFunc(c.adopted.Peers, func(_ uint16, p plan.Peer) bool { return p.Remote == a })
		c.stale = true
	}
}

// keepAdopted keeps adopted entries that nothing contradicts: peers that this
// process does not reach yet, over neighbours to which clear text or the tunnel is
// allowed.
func (c *Controller) keepAdopted(want *plan.Tables) {
	if c.cfg.Off || c.unsupported != nil {
		return
	}
	for id, p := range c.adopted.Peers {
		switch r := c.adopted.Remotes[p.Remote]; {
		case want.Peers[id].Next != 0: // this process knows the peer now
			delete(c.adopted.Peers, id)
		case p.Next != 0 && c.allowed(p.Remote) && r.Peer == p.Next:
			if c.expressErr != nil || within(p.Remote, c.cfg.NoExpressTo) {
				p.Express, p.Direct = false, false
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
