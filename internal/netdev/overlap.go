package netdev

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// Route is a route of the host.
type Route struct {
	Dst netip.Prefix
	Dev string
}

// String returns the route as `ip route` prints it: "10.0.0.0/8 dev eth0".
func (r Route) String() string { return r.Dst.String() + " dev " + r.Dev }

// Overlap returns a route of the host that shares addresses with p, nil if there is
// none. It ignores default routes and routes over the devices in ours.
func Overlap(p netip.Prefix, ours ...string) (*Route, error) {
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
	routes, err := h.routes(family)
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
	for _, r := range routes {
		dst, ok := fromIPNet(r.Dst)
		dev := names[r.LinkIndex]
		if !ok || dst.Bits() == 0 || !dst.Overlaps(p) || slices.Contains(ours, dev) {
			continue
		}
		return &Route{Dst: dst, Dev: dev}, nil
	}
	return nil, nil
}
