package fastpath

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/router/fastpath/plan"
)

// watchRules looks at netfilter's rules when they change, and every now and then: the
// iptables of old tell nobody of changes. What guards the port is written anew if others have
// removed it, and what judges bridged frames turns express off.
func (c *Controller) watchRules(ctx context.Context, changed <-chan struct{}) {
	tick := time.NewTicker(rulesInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-changed:
		}
		began := time.Now()
		switch again, err := c.guard(); {
		case err != nil:
			c.log.Warn("guard the fast datapath's port", "port", c.cfg.Port, "err", err)
		case again:
			c.log.Warn("others removed the rules that guard the fast datapath's port", "port", c.cfg.Port)
		}
		judged := c.watch.Judged()
		ipsecPrefixes, err := c.watch.Secured()
		if err != nil {
			c.log.Warn("look for IPsec", "err", err)
		}
		c.host.Do(func() {
			c.setJudged(judged)
			if err == nil && !slices.Equal(ipsecPrefixes, c.ipsecPrefixes) {
				c.ipsecPrefixes, c.stale = ipsecPrefixes, true
			}
			if c.noTunnel != "" {
				c.mendTunnel() // it may be possible now
			}
		})
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(rulesPause, rulesShare*time.Since(began))):
		}
	}
}

// guard writes the rules that guard the port, if they are not there.
func (c *Controller) guard() (again bool, err error) {
	var sealed netip.Prefix
	if c.tunnel != nil {
		sealed = plan.TunnelPrefix
	}
	return c.watch.Guard(uint16(c.cfg.Port), sealed)
}

// setJudged takes in what judges bridged frames, "" if nothing does.
func (c *Controller) setJudged(judged string) {
	if judged == c.judged {
		return
	}
	c.log.Info("express path", "on", judged == "" && c.noExpress == "", "reason", judged)
	c.judged, c.stale = judged, true
	if err := c.kernel.SetExpress(c.express()); err != nil {
		c.log.Warn("switch the express path", "on", c.express(), "err", err)
	}
}

// mendKernel brings back what others removed of the kernel's part.
func (c *Controller) mendKernel() {
	mended, err := c.kernel.Mend()
	switch {
	case err != nil:
		c.log.Warn("others changed the fast datapath", "err", err)
	case mended:
		c.log.Warn("others changed the fast datapath, it is as it was again", "interfaces", []string{netdev.PortName, netdev.VXLANName})
		if len(c.badChecksums) > 0 {
			if err := c.kernel.SumInSoftware(); err != nil {
				c.log.Warn("make checksums in software", "err", err)
			}
		}
	}
}

// refresh looks at interfaces and routes again.
func (c *Controller) refresh() {
	c.mendKernel()
	c.mendTunnel()
	clear(c.underlayCache)
	ports, err := c.watch.Containers(c.cfg.Bridge, netdev.PortName)
	if err != nil {
		c.log.Warn("containers' interfaces", "err", err)
		return
	}
	there, shaped := make(map[int]bool, len(ports)), make(map[int]bool)
	for _, p := range ports {
		there[p.Ifindex] = true
		if p.Shaped {
			shaped[p.Ifindex] = true
			continue
		}
		if c.containers[p.Ifindex] || c.noExpress != "" || c.why != "" {
			continue
		}
		if err := c.kernel.AttachContainer(p.Ifindex); err != nil {
			c.log.Warn("no express path", "interface", p.Name, "err", err)
			continue
		}
		c.containers[p.Ifindex] = true
	}
	for i := range c.containers {
		if !there[i] || shaped[i] {
			delete(c.containers, i)
			if err := c.kernel.DetachContainer(i); err != nil {
				c.log.Warn("express path of a container that left, or is limited", "ifindex", i, "err", err)
			}
		}
	}
	c.rateLimited = shaped
	for m, i := range c.vethOf {
		switch {
		case !there[i]:
			c.removeMAC(m)
		case shaped[i]:
			delete(c.vethOf, m)
			c.CopyMAC(m)
		}
	}
	for _, l := range c.links {
		c.findHop(l)
	}
	for _, l := range c.sessionless {
		c.findHop(l)
	}
	c.stale = true
}

// findHop asks the routes for the way to a peer.
func (c *Controller) findHop(l *link) {
	if !c.attached {
		return
	}
	hop := netdev.Hop{}
	if a := l.Remote(); a.IsValid() {
		var err error
		if hop, err = c.watch.Hop(a); err != nil {
			c.log.Debug("no route for the fast datapath", "peer", l.peer, "err", err)
		}
	}
	if hop != l.hop {
		l.hop, c.stale = hop, true
	}
}
