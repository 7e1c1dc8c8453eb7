package fastpath

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/router/fastpath/plan"
)

// rulesReport is a result of watchRules.
type rulesReport struct {
	filter        filter
	ipsecPrefixes []netip.Prefix
	ipsecErr      error // then ipsecPrefixes are not known
}

// watchRules reads netfilter's rules when changed says so, and periodically, because
// iptables-legacy reports no changes. It has a goroutine of its own, as reading many rules
// takes long, and it never waits for the controller's goroutine, which may be slow for
// other reasons.
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
		r := rulesReport{filter: c.readFilter()}
		if r.ipsecPrefixes, r.ipsecErr = c.watch.IPsecPrefixes(); r.ipsecErr != nil {
			c.log.Warn("cannot read the policies of IPsec", "err", r.ipsecErr)
		}
		took := time.Since(began)
		select {
		case <-c.rules: // an older report that nobody handled
		default:
		}
		c.rules <- r // has space, as nothing else sends to it
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(max(rulesPause, rulesShare*took), rulesMaxPause)):
		}
	}
}

// takeRules handles a result of watchRules.
func (c *Controller) takeRules(r rulesReport) {
	c.setFilter(r.filter)
	if r.ipsecErr == nil && !slices.Equal(r.ipsecPrefixes, c.ipsecPrefixes) {
		c.ipsecPrefixes = r.ipsecPrefixes
		c.offerAgain()
	}
	if c.containersErr != nil {
		c.refreshContainers()
	}
	if c.tablesErr != nil {
		c.stale = true // what could not be written is tried again
	}
}

// guard installs the rules that guard the port. It reports whether they were missing.
func (c *Controller) guard() (rebuilt bool, err error) { return c.watch.Guard(c.guarded()) }

// guarded says which ports must be guarded.
func (c *Controller) guarded() netdev.Guarded {
	g := netdev.Guarded{Port: uint16(c.cfg.Port), Sleeve: c.cfg.SleevePort, Bridge: c.cfg.Bridge, IPIP: c.cfg.plain()}
	if c.tunnel != nil {
		g.Tunnel, g.Sealed = uint16(c.cfg.TunnelPort), plan.TunnelPrefix
	}
	return g
}

// filter is what filters bridged frames. It is comparable, as its error is text.
type filter struct {
	netdev.Filter
	unreadable string // why the rules cannot be read, which counts as a filter
}

// readFilter reads the rules of the host.
func (c *Controller) readFilter() filter {
	f, err := c.watch.Filtered(c.cfg.Bridge)
	if err != nil {
		return filter{unreadable: err.Error()}
	}
	return filter{Filter: f}
}

// reason says why frames must cross the bridge, nil if they need not.
func (f filter) reason() error {
	switch {
	case f.unreadable != "":
		return because(ErrFiltered, f.unreadable)
	case f.Filter != netdev.Filter{}:
		return because(ErrFiltered, f.String())
	}
	return nil
}

// setFilter makes frames cross the bridge if rules filter them there, and bypass it if
// none does. If the kernel refuses, the next report of watchRules tries again.
func (c *Controller) setFilter(f filter) {
	if f == c.filter {
		return
	}
	express := c.expressWith(f)
	if err := c.kernel.SetExpress(express); err != nil {
		c.log.Warn("cannot switch express", "on", express, "filter", text(f.reason()), "err", err)
		return
	}
	c.filter, c.stale = f, true
	c.log.Info("the rules for bridged frames changed", "mode", c.publishMode(), "filter", text(f.reason()))
}

// refresh reads interfaces and routes again.
func (c *Controller) refresh() {
	clear(c.underlayCache)
	c.refreshContainers()
	for _, l := range c.links {
		c.findHop(l)
	}
	for _, l := range c.sessionless {
		c.findHop(l)
	}
	c.offerAgain() // properties of an interface may be others, too
}

// refreshContainers attaches programs to the interfaces of containers that came, and
// forgets those that left. If they cannot be listed, the next report of watchRules tries
// again.
func (c *Controller) refreshContainers() {
	ports, err := c.watch.Containers(c.cfg.Bridge, netdev.PortName)
	if c.containersErr = err; err != nil {
		c.log.Warn("cannot list the interfaces of containers", "err", err)
		return
	}
	there, limited := make(map[int]bool, len(ports)), make(map[int]bool)
	for _, p := range ports {
		there[p.Ifindex] = true
		if p.RateLimited {
			limited[p.Ifindex] = true
			continue
		}
		if c.containers[p.Ifindex] || c.expressErr != nil || c.unsupported != nil {
			continue
		}
		if err := c.kernel.AttachContainer(p.Ifindex); err != nil {
			c.log.Warn("no express mode for a container", "iface", p.Name, "err", err)
			continue
		}
		c.containers[p.Ifindex] = true
	}
	for i := range c.containers {
		if !there[i] || limited[i] {
			delete(c.containers, i)
			if err := c.kernel.DetachContainer(i); err != nil {
				c.log.Warn("cannot end express mode of a container", "ifindex", i, "err", err)
			}
		}
	}
	c.rateLimited = limited
	for m, i := range c.vethOf {
		switch {
		case !there[i]:
			c.removeMAC(m)
		case limited[i]:
			delete(c.vethOf, m)
			c.copyMAC(m)
		}
	}
}

// sourceTo returns the address from which packets to a peer must come, the zero Addr if the
// route decides: the peer only knows the address on which this router was told to listen.
func (c *Controller) sourceTo(l *link) netip.Addr {
	if h := c.cfg.Host; h.IsValid() && l.Remote() == l.Addr() && h.Is4() == l.Addr().Is4() {
		return h
	}
	return netip.Addr{}
}

// findHop looks up the route to a peer.
func (c *Controller) findHop(l *link) {
	if !c.attached {
		return
	}
	var hop, outer netdev.Hop
	if a := l.Remote(); a.IsValid() {
		hop = c.hopTo(l, a, c.sourceTo(l))
		if a != l.Addr() {
			outer = c.hopTo(l, l.Addr(), netip.Addr{})
		}
	}
	if hop != l.hop || outer != l.outer {
		l.hop, l.outer, c.stale = hop, outer, true
		now := time.Now()
		c.apply(l, now, l.SetOwn(now, c.offerTo(l)))
	}
}

// hopTo looks up the route to an address of a peer; the zero Hop if there is none.
func (c *Controller) hopTo(l *link, to, from netip.Addr) netdev.Hop {
	hop, err := c.watch.Hop(to, from)
	if err != nil {
		c.log.Debug("no route to the peer", "peer", l.peer, "addr", to, "err", err)
	}
	return hop
}
