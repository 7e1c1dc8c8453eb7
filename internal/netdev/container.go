package netdev

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// MTU returns the MTU of an interface of the calling thread's namespace.
func MTU(name string) (int, error) {
	h, err := here()
	if err != nil {
		return 0, err
	}
	defer h.Close()
	l, err := h.requireLink(name)
	if err != nil {
		return 0, fmt.Errorf("look up %s: %w", name, err)
	}
	return l.Attrs().MTU, nil
}

// AllowIPv6 enables IPv6 on all interfaces of the namespace at path if wanted is set.
// Some runtimes disable it.
func AllowIPv6(path string, wanted bool) error {
	if !wanted {
		return nil
	}
	return Do(path, func() error {
		for _, dev := range []string{"all", "default"} {
			file := "/proc/sys/net/ipv6/conf/" + dev + "/disable_ipv6"
			if b, err := os.ReadFile(file); err == nil && len(b) > 0 && b[0] == '0' {
				continue
			}
			if err := os.WriteFile(file, []byte("0"), 0o644); err != nil {
				return fmt.Errorf("enable ipv6 in %s: %w", path, err)
			}
		}
		return nil
	})
}

// enableIPv6 enables IPv6 on an interface of the namespace at path if it is to get one of the
// addresses. Docker and others disable it where they give no IPv6 address themselves.
func enableIPv6(path, iface string, addrs []netip.Prefix) error {
	if !slices.ContainsFunc(addrs, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		return nil
	}
	return Do(path, func() error {
		file := "/proc/sys/net/ipv6/conf/" + iface + "/disable_ipv6"
		if b, err := os.ReadFile(file); err == nil && len(b) > 0 && b[0] == '0' {
			return nil
		}
		if err := os.WriteFile(file, []byte("0"), 0o644); err != nil {
			return fmt.Errorf("enable IPv6 on %s, where the container has it off: %w", iface, err)
		}
		return nil
	})
}

// ContainerRoute is a route of a container.
type ContainerRoute struct {
	Dst     netip.Prefix
	Gateway netip.Addr // invalid for a route to the link itself
	MTU     int        // 0 for the MTU of the interface
}

func (r ContainerRoute) forLink(l netlink.Link) *netlink.Route {
	rt := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: toIPNet(r.Dst.Masked()), MTU: r.MTU}
	if r.Gateway.IsValid() {
		rt.Gw = r.Gateway.AsSlice()
	} else {
		rt.Scope = netlink.SCOPE_LINK
	}
	return rt
}

// AddRoutes adds missing routes to an interface of the namespace at path.
func AddRoutes(path, iface string, routes []ContainerRoute) error {
	return withIface(path, iface, func(in handle, l netlink.Link) error {
		for _, r := range routes {
			if err := in.RouteAdd(r.forLink(l)); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("add route to %s via %s: %w", r.Dst, r.Gateway, err)
			}
		}
		return nil
	})
}

// MissingRoutes returns those of the routes that the interface does not have.
func MissingRoutes(path, iface string, routes []ContainerRoute) (missing []ContainerRoute, err error) {
	err = withIface(path, iface, func(in handle, l netlink.Link) error {
		have := make(map[netip.Prefix]bool)
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			all, err := in.routes(family)
			if err != nil {
				return err
			}
			for _, r := range all {
				if p, ok := routeDst(r, family); ok && r.LinkIndex == l.Attrs().Index {
					have[p] = true
				}
			}
		}
		for _, r := range routes {
			if !have[r.Dst.Masked()] {
				missing = append(missing, r)
			}
		}
		return nil
	})
	return missing, err
}

// routeDst returns the destination of a route, 0.0.0.0/0 or ::/0 for a default route.
func routeDst(r netlink.Route, family int) (netip.Prefix, bool) {
	switch {
	case r.Dst != nil:
		return fromIPNet(r.Dst)
	case family == netlink.FAMILY_V4:
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0), true
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0), true
}

func withIface(path, iface string, f func(in handle, l netlink.Link) error) error {
	wrap := func(cause error) error { return fmt.Errorf("routes of %s in %s: %w", iface, path, cause) }
	in, err := at(path)
	if err != nil {
		return wrap(err)
	}
	defer in.Close()
	l, err := in.requireLink(iface)
	if err != nil {
		return wrap(err)
	}
	if err := f(in, l); err != nil {
		return wrap(err)
	}
	return nil
}
