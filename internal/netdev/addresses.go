package netdev

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// InterfaceAddresses returns the addresses of an interface that programs can listen
// on, sorted, and whether the interface exists. It omits link-local addresses and
// those in duplicate address detection.
func InterfaceAddresses(iface string) (addrs []netip.Addr, there bool, err error) {
	h, err := here()
	if err != nil {
		return nil, false, err
	}
	defer h.Close()
	l, there, err := h.link(iface)
	if err != nil || !there {
		return nil, false, err
	}
	list, err := h.addrs(l)
	if err != nil {
		return nil, true, fmt.Errorf("list the addresses of interface %s: %w", iface, err)
	}
	return usableAddrs(list), true, nil
}

// HostAddresses returns the addresses of all interfaces of the host, as
// InterfaceAddresses does.
func HostAddresses() ([]netip.Addr, error) {
	h, err := here()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	list, err := h.addrs(nil)
	if err != nil {
		return nil, fmt.Errorf("list the addresses of the host: %w", err)
	}
	return usableAddrs(list), nil
}

func usableAddrs(list []netlink.Addr) (addrs []netip.Addr) {
	for _, a := range list {
		p, ok := fromIPNet(a.IPNet)
		if ok && !p.Addr().IsLinkLocalUnicast() && a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0 {
			addrs = append(addrs, p.Addr())
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}
