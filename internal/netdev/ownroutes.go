package netdev

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/count"
)

// OwnRoutes are routes that only weft's own packets between hosts use. They do not obey the
// path MTU that the kernel remembers for an address, which anybody can make it remember: an
// ICMP message from a container is enough, and so is a large answer to a container whose
// address this host translates. Then no full-size packet would leave by the VXLAN device for
// ten minutes, and WireGuard would send fragments. Probes find out what the path carries.
//
// The kernel remembers such an MTU with a route (fib_nh_exception in net/ipv4/route.c,
// rt6_exception in net/ipv6/route.c), and looks that route up without ports. So weft has
// copies of the routes to its peers in a table of its own, to which rules for its ports lead.
// The MTU, that of the interface, makes the copies differ from the host's own routes, with
// which they would otherwise share what is remembered (fib_find_info). It is not locked:
// then the kernel would send fragments, and probes would not find out what fits.
//
//	ip rule  add pref 6784 ipproto udp dport VXLAN  lookup 6784
//	ip rule  add pref 6784 ipproto udp sport TUNNEL lookup 6784
//	ip route add PEER [via GATEWAY onlink] dev IFACE src LOCAL mtu MTU table 6784
//
// If one is missing, the routes of the host apply. Without routes there are no rules.
type OwnRoutes struct {
	// VXLAN is the UDP port to which packets go, Tunnel that of this host from which
	// WireGuard's packets come, 0 if there is none.
	VXLAN, Tunnel uint16
	// Hops are how packets to addresses leave the host.
	Hops map[netip.Addr]OwnHop
}

// OwnHop is a Hop with the MTU of its interface, in bytes of IP packet.
type OwnHop struct {
	Hop
	MTU int
}

// ownTable is the table of OwnRoutes, and the priority of the rules that lead there.
const ownTable = 6784

var families = [2]int{netlink.FAMILY_V4, netlink.FAMILY_V6}

// SetOwnRoutes makes rules and routes those of o, in the watched namespace.
func (w *Watch) SetOwnRoutes(o OwnRoutes) error { return o.ensure(w.h) }

// OwnRouteFaults returns how the rules and routes differ from o, in words.
func (w *Watch) OwnRouteFaults(o OwnRoutes) (faults []string, err error) {
	d, err := o.diff(w.h)
	if err != nil {
		return nil, err
	}
	if n := len(d.addRules) + len(d.deleteRules); n > 0 {
		faults = append(faults, fmt.Sprintf("%s with priority %d %s missing or wrong", count.Of(n, "routing rule", "routing rules"), ownTable, count.Form(n, "is", "are")))
	}
	if n := len(d.putRoutes) + len(d.deleteRoutes); n > 0 {
		faults = append(faults, fmt.Sprintf("%s of table %d %s missing or wrong", count.Of(n, "route", "routes"), ownTable, count.Form(n, "is", "are")))
	}
	return faults, nil
}

// RemoveOwnRoutes removes what OwnRoutes made in the calling thread's namespace.
func RemoveOwnRoutes() error {
	h, err := here()
	if err != nil {
		return err
	}
	defer h.Close()
	return OwnRoutes{}.ensure(h)
}

// ownDiff is what must change.
type ownDiff struct {
	addRules, deleteRules   []*netlink.Rule
	putRoutes, deleteRoutes []*netlink.Route
}

func (o OwnRoutes) ensure(h handle) error {
	d, err := o.diff(h)
	errs := []error{err}
	done := func(what string, on any, err error, fine error) {
		if err != nil && !errors.Is(err, fine) {
			errs = append(errs, fmt.Errorf("%s %v: %w", what, on, err))
		}
	}
	for _, r := range d.deleteRules {
		done("delete routing rule", r, h.RuleDel(r), unix.ENOENT)
	}
	for _, r := range d.deleteRoutes {
		done("delete route to", r.Dst, h.RouteDel(r), unix.ESRCH)
	}
	for _, r := range d.putRoutes {
		done("set route to", r.Dst, h.RouteReplace(r), nil)
	}
	for _, r := range d.addRules {
		done("add routing rule", r, h.RuleAdd(r), unix.EEXIST)
	}
	return errors.Join(errs...)
}

// diff returns what must change. If there is an error, d is without the families it is of.
func (o OwnRoutes) diff(h handle) (d ownDiff, err error) {
	for _, family := range families {
		err = errors.Join(err, o.diffFamily(h, family, &d))
	}
	return d, err
}

// diffFamily adds to d what must change in a family. A kernel without the family has no rules
// of it (ipv6.disable=1), and needs no routes.
func (o OwnRoutes) diffFamily(h handle, family int, d *ownDiff) error {
	have, err := Dump(func() ([]netlink.Rule, error) {
		return h.RuleListFiltered(family, &netlink.Rule{Table: ownTable}, netlink.RT_FILTER_TABLE)
	})
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil // a dump of its routes would be one of another family
	}
	if err != nil {
		return fmt.Errorf("list routing rules: %w", err)
	}
	routes, err := Dump(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(family, &netlink.Route{Table: ownTable}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	want := o.routes(family)
	rules := make(map[ownRule]bool)
	if len(want) > 0 {
		rules[ownRule{dport: o.VXLAN}] = true
		if o.Tunnel != 0 {
			rules[ownRule{sport: o.Tunnel}] = true
		}
	}
	for _, r := range have {
		if k, ok := ownRuleOf(r); ok && rules[k] {
			delete(rules, k)
			continue
		}
		r.Family = family
		d.deleteRules = append(d.deleteRules, &r)
	}
	for k := range rules {
		d.addRules = append(d.addRules, k.rule(family))
	}
	for _, r := range routes {
		p, ok := fromIPNet(r.Dst)
		w := want[p.Addr()]
		if ok && p.IsSingleIP() && w != nil && w.LinkIndex == r.LinkIndex && w.Gw.Equal(r.Gw) && w.Src.Equal(r.Src) && w.MTU == r.MTU && !r.MTULock {
			delete(want, p.Addr())
		} else if w == nil || !ok || !p.IsSingleIP() {
			d.deleteRoutes = append(d.deleteRoutes, &r)
		}
	}
	for _, r := range want {
		d.putRoutes = append(d.putRoutes, r)
	}
	return nil
}

// routes returns the routes of a family by destination.
func (o OwnRoutes) routes(family int) map[netip.Addr]*netlink.Route {
	routes := make(map[netip.Addr]*netlink.Route)
	for to, hop := range o.Hops {
		if to.Is4() != (family == netlink.FAMILY_V4) {
			continue
		}
		r := &netlink.Route{
			Table: ownTable, LinkIndex: hop.Ifindex, Dst: toIPNet(netip.PrefixFrom(to, to.BitLen())), MTU: hop.MTU,
			Protocol: unix.RTPROT_STATIC, Family: family,
		}
		// Else the kernel would take an address of the interface, although the host's route may
		// name another one.
		if hop.Local.IsValid() && hop.Local.Is4() == to.Is4() {
			r.Src = hop.Local.AsSlice()
		}
		switch {
		case hop.Gateway.IsValid() && hop.Gateway != to:
			r.Gw = hop.Gateway.AsSlice()
			r.Flags = int(netlink.FLAG_ONLINK)
		case to.Is4():
			r.Scope = netlink.SCOPE_LINK
		}
		routes[to] = r
	}
	return routes
}

// ownRule is what distinguishes the rules of one family.
type ownRule struct{ dport, sport uint16 }

func (k ownRule) rule(family int) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Table, r.Priority, r.IPProto = family, ownTable, ownTable, unix.IPPROTO_UDP
	if k.dport != 0 {
		r.Dport = netlink.NewRulePortRange(k.dport, k.dport)
	}
	if k.sport != 0 {
		r.Sport = netlink.NewRulePortRange(k.sport, k.sport)
	}
	return r
}

// ownRuleOf is the inverse of rule; false if r is another rule to the same table.
func ownRuleOf(r netlink.Rule) (k ownRule, ok bool) {
	port := func(p *netlink.RulePortRange) (uint16, bool) {
		if p == nil {
			return 0, true
		}
		return p.Start, p.Start == p.End
	}
	var single [2]bool
	k.dport, single[0] = port(r.Dport)
	k.sport, single[1] = port(r.Sport)
	return k, single == [2]bool{true, true} && r.Priority == ownTable && r.IPProto == unix.IPPROTO_UDP && r.Src == nil && r.Dst == nil &&
		r.Mark == 0 && r.IifName == "" && r.OifName == "" && !r.Invert
}
