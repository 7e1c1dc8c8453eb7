package netdev

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// MakePort makes a veth pair. The end port is on the bridge. The end inside has that MAC
// address and stays in the same namespace until the caller moves it into a container and
// adds addresses. Both have the MTU, in bytes of IP packet. An existing pair of the
// port's name is replaced. The port's name must begin with HostPrefix.
func MakePort(bridge, port, inside string, mac net.HardwareAddr, mtu int, sysctls Sysctls) (err error) {
	wrap := func(what string, cause error) error {
		return fmt.Errorf("make port %s of bridge %s: %s: %w", port, bridge, what, cause)
	}
	h, err := here()
	if err != nil {
		return wrap("connect", err)
	}
	defer h.Close()
	b, err := h.requireLink(bridge)
	if err != nil {
		return wrap("look up bridge", err)
	}
	if old, ok, err := h.link(port); err != nil {
		return wrap("look up", err)
	} else if ok {
		if err := h.delete(old); err != nil {
			return wrap("replace", err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = port, mtu, b.Attrs().Index
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerMTU, pair.PeerHardwareAddr = inside, uint32(mtu), mac
	if err := h.LinkAdd(pair); err != nil {
		return wrap("create", err)
	}
	l, err := h.requireLink(port)
	if err != nil {
		return wrap("look up the new port", err)
	}
	defer func() {
		if err != nil {
			_ = h.delete(l)
		}
	}()
	if err := disableIPv6(sysctls, port); err != nil {
		return wrap("disable ipv6", err)
	}
	if err := h.LinkSetUp(l); err != nil {
		return wrap("set up", err)
	}
	return nil
}

// DeletePort removes a port with its other end, in whatever namespace that is. A missing
// port is no error.
func DeletePort(name string) error { return deleteLink(name) }

// AnnounceAt announces, to all containers on a bridge and on other hosts, that addresses
// are at the MAC address of a container that is about to be connected to the bridge.
func AnnounceAt(bridge string, mac net.HardwareAddr, addrs []netip.Addr) error {
	h, err := here()
	if err != nil {
		return fmt.Errorf("announce at bridge %s: %w", bridge, err)
	}
	defer h.Close()
	l, err := h.requireLink(bridge)
	if err != nil {
		return fmt.Errorf("announce at bridge %s: %w", bridge, err)
	}
	ps := make([]netip.Prefix, len(addrs))
	for i, a := range addrs {
		ps[i] = netip.PrefixFrom(a, a.BitLen())
	}
	return announce(currentNS, l.Attrs().Index, mac, ps)
}
