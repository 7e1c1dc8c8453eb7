package netdev

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
)

// DefaultInterface returns the interface of the default route of IPv4, or else of IPv6, and its MTU in bytes.
func DefaultInterface() (name string, mtu int, err error) {
	for _, far := range []net.IP{net.IPv4(1, 1, 1, 1), net.ParseIP("2606:4700:4700::1111")} {
		routes, err := netlink.RouteGet(far)
		if err != nil || len(routes) == 0 {
			continue
		}
		link, err := netlink.LinkByIndex(routes[0].LinkIndex)
		if err != nil {
			return "", 0, fmt.Errorf("look up the interface of the default route: %w", err)
		}
		return link.Attrs().Name, link.Attrs().MTU, nil
	}
	return "", 0, errors.New("this host has no default route, so the MTU towards its peers is not known")
}
