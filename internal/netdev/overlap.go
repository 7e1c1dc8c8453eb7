package netdev

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Route is a route of the host that is in force.
type Route struct {
	Dst  netip.Prefix
	Dev  string // "" if it leads nowhere
	Type string // "" for unicast, else for example "blackhole"
	// OnLink is set if hosts with these addresses are on the network of Dev.
	OnLink bool
	Table  int // of the routing tables; 254 is the main one
}

// String returns the route as `ip route` prints it: "10.0.0.0/8 dev eth0 table 52".
func (r Route) String() string {
	s := r.Dst.String()
	if r.Type != "" {
		s = r.Type + " " + s
	}
	if r.Dev != "" {
		s += " dev " + r.Dev
	}
	if r.Table != unix.RT_TABLE_MAIN {
		s += fmt.Sprintf(" table %d", r.Table)
	}
	return s
}

// Hides reports whether the route wins over one to p for some of its addresses. A wider one,
// such as the halves of the Internet that VPNs add, does not.
func (r Route) Hides(p netip.Prefix) bool { return r.Dst.Overlaps(p) && r.Dst.Bits() >= p.Bits() }

// Overlapping returns the routes of the host that share addresses with p, the longest first. It
// leaves out default routes, routes over the devices in ours, and tables to which no rule leads
// that is for the packets of containers.
func Overlapping(p netip.Prefix, ours ...string) ([]Route, error) {
	wrap := func(cause error) error { return fmt.Errorf("check %s against the host's routes: %w", p, cause) }
	h, err := here()
	if err != nil {
		return nil, wrap(err)
	}
	defer h.Close()
	family := netlink.FAMILY_V4
	if p.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := h.allRoutes(family)
	if err != nil {
		return nil, wrap(err)
	}
	tables, err := h.tables(family)
	if err != nil {
		return nil, wrap(err)
	}
	links, err := h.links()
	if err != nil {
		return nil, wrap(err)
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var found []Route
	for _, r := range routes {
		dst, ok := fromIPNet(r.Dst)
		dev := names[r.LinkIndex]
		if !ok || dst.Bits() == 0 || !dst.Overlaps(p) || slices.Contains(ours, dev) || !tables[r.Table] {
			continue
		}
		out := Route{Dst: dst, Dev: dev, Table: r.Table}
		switch r.Type {
		case unix.RTN_UNICAST:
			out.OnLink = len(r.Gw) == 0 && r.Via == nil && len(r.MultiPath) == 0
		case unix.RTN_BLACKHOLE:
			out.Type, out.Dev = "blackhole", ""
		case unix.RTN_UNREACHABLE:
			out.Type, out.Dev = "unreachable", ""
		case unix.RTN_PROHIBIT:
			out.Type, out.Dev = "prohibit", ""
		default: // those of the host's own addresses, for which there is a unicast route too
			continue
		}
		found = append(found, out)
	}
	slices.SortFunc(found, func(a, b Route) int {
		return cmp.Or(cmp.Compare(b.Dst.Bits(), a.Dst.Bits()), a.Dst.Addr().Compare(b.Dst.Addr()), cmp.Compare(a.Table, b.Table))
	})
	return found, nil
}

// allRoutes returns the routes of all tables.
func (h handle) allRoutes(family int) ([]netlink.Route, error) {
	return Dump(func() ([]netlink.Route, error) {
		return h.Handle.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
}

// tables returns the routing tables that can decide on packets of containers: those to which a
// rule leads that asks for no mark.
func (h handle) tables(family int) (map[int]bool, error) {
	rules, err := Dump(func() ([]netlink.Rule, error) { return h.Handle.RuleList(family) })
	if err != nil {
		return nil, err
	}
	tables := map[int]bool{unix.RT_TABLE_MAIN: true}
	for _, r := range rules {
		if r.Mark == 0 || r.Invert {
			tables[r.Table] = true
		}
	}
	delete(tables, unix.RT_TABLE_LOCAL)
	return tables, nil
}
