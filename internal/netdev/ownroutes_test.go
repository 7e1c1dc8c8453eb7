package netdev_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

// ownTable is the table of netdev.OwnRoutes, and the priority of its rules.
const ownTable = 6784

// ownRoutes returns the routes of the table with their MTU, and how many rules lead there.
func ownRoutes(t *testing.T, ns string) (routes []string, rules int) {
	t.Helper()
	do(t, ns, func() error {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			list, err := netlink.RouteListFiltered(family, &netlink.Route{Table: ownTable}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return err
			}
			for _, r := range list {
				s := r.Dst.String()
				if r.Gw != nil {
					s += " via " + r.Gw.String()
				}
				if r.Src != nil {
					s += " src " + r.Src.String()
				}
				if r.MTULock {
					s += " locked" // the kernel would send fragments
				}
				routes = append(routes, s)
			}
			all, err := netlink.RuleListFiltered(family, &netlink.Rule{Table: ownTable}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return err
			}
			rules += len(all)
		}
		return nil
	})
	slices.Sort(routes)
	return routes, rules
}

func TestOwnRoutes(t *testing.T) {
	host, far := nstest.New(t, "host"), nstest.New(t, "far")
	nstest.Veth(t, 1500, host, "up", pfx("192.0.2.1/24"), far, "up", pfx("192.0.2.2/24"))
	nstest.Veth(t, 1400, host, "up6", pfx("2001:db8::1/64"), far, "up6", pfx("2001:db8::2/64"))
	do(t, host, func() error {
		l, err := netlink.LinkByName("up")
		if err != nil {
			return err
		}
		return errors.Join(
			netlink.AddrAdd(l, &netlink.Addr{IPNet: netlink.NewIPNet(netip.MustParseAddr("203.0.113.1").AsSlice())}),
			netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: netip.MustParseAddr("192.0.2.2").AsSlice()}),
			netlink.RouteAdd(&netlink.Route{
				LinkIndex: l.Attrs().Index, Gw: netip.MustParseAddr("192.0.2.2").AsSlice(), Src: netip.MustParseAddr("203.0.113.1").AsSlice(),
				Dst: netlink.NewIPNet(netip.MustParseAddr("198.51.100.8").AsSlice()),
			}))
	})
	w := newWatch(t, host)
	o := netdev.OwnRoutes{VXLAN: 6784, Tunnel: 6785, Hops: make(map[netip.Addr]netdev.OwnHop)}
	for _, s := range []string{"192.0.2.2", "198.51.100.7", "198.51.100.8", "2001:db8::2"} {
		a := netip.MustParseAddr(s)
		hop, err := w.Hop(a, netip.Addr{})
		if err != nil {
			t.Fatal(err)
		}
		o.Hops[a] = netdev.OwnHop{Hop: hop, MTU: w.Underlay(hop.Ifindex).MTU}
	}
	whole := []string{
		"192.0.2.2/32 src 192.0.2.1", "198.51.100.7/32 via 192.0.2.2 src 192.0.2.1",
		"198.51.100.8/32 via 192.0.2.2 src 203.0.113.1", "2001:db8::2/128 src 2001:db8::1",
	}
	check := func(what string, want []string, wantRules int) {
		t.Helper()
		if err := w.SetOwnRoutes(o); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if routes, rules := ownRoutes(t, host); !slices.Equal(routes, want) || rules != wantRules {
			t.Errorf("%s: routes %q and %d rules, want %q and %d", what, routes, rules, want, wantRules)
		}
		if faults, err := w.OwnRouteFaults(o); err != nil || len(faults) > 0 {
			t.Errorf("%s: faults %q, %v", what, faults, err)
		}
	}
	check("at first", whole, 4)
	check("again", whole, 4)
	damaged := func(what string, f func() error) {
		t.Helper()
		do(t, host, f)
		if faults, err := w.OwnRouteFaults(o); err != nil || len(faults) != 1 || !strings.Contains(faults[0], what) {
			t.Errorf("faults %q, %v, want of %s", faults, err, what)
		}
		check("repaired", whole, 4)
	}
	damaged("1 route of table 6784 is ", func() error {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: ownTable}, netlink.RT_FILTER_TABLE)
		return errors.Join(err, netlink.RouteDel(&routes[0]))
	})
	damaged("1 route of table 6784 is ", func() error {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: ownTable}, netlink.RT_FILTER_TABLE)
		routes[0].Src = netip.MustParseAddr("203.0.113.1").AsSlice()
		return errors.Join(err, netlink.RouteReplace(&routes[0]))
	})
	damaged("1 routing rule with priority 6784 is ", func() error {
		rules, err := netlink.RuleListFiltered(netlink.FAMILY_V6, &netlink.Rule{Table: ownTable}, netlink.RT_FILTER_TABLE)
		return errors.Join(err, netlink.RuleDel(&rules[0]))
	})
	damaged("1 routing rule with priority 6784 is ", func() error {
		r := netlink.NewRule()
		r.Table, r.Priority, r.Mark = ownTable, ownTable, 7
		return netlink.RuleAdd(r)
	})
	o.Tunnel = 0
	delete(o.Hops, netip.MustParseAddr("2001:db8::2"))
	check("fewer", whole[:3], 1)
	o.Hops = nil
	check("none", nil, 0)
	do(t, host, netdev.RemoveOwnRoutes)
}
