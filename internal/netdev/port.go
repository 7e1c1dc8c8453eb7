package netdev

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// MakePort makes a veth pair. The end port is on the bridge. The end inside has that MAC
// address and stays in the same namespace until the caller moves it into a container and
// adds addresses. Both have the MTU, in bytes of IP packet. An existing pair of the
// port's name is replaced. The port's name must begin with HostPrefix. User is written down
// in the kernel, see UsedPorts. Guard is that of Attachment.
func MakePort(bridge, port, inside string, mac net.HardwareAddr, mtu int, user PortUser, sysctls Sysctls, guard func(GivenPort) error) (err error) {
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
	l, err := h.makePair(pair{port: port, inside: inside, bridge: b, mtu: mtu, mac: mac, user: user, sysctls: sysctls})
	if err != nil {
		return wrap("create", err)
	}
	defer func() {
		if err != nil {
			_ = h.delete(l)
		}
	}()
	if guard != nil {
		if err := guard(givenPort(l.Attrs(), portAlias{mac: mac, user: user})); err != nil {
			return wrap("guard", err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return wrap("set up", err)
	}
	if err := h.placeMAC(l, mac); err != nil {
		return wrap("place the MAC address", err)
	}
	return nil
}

// pair is a veth pair that connects a container to a bridge.
type pair struct {
	bridge       netlink.Link
	port, inside string
	ns           *netns.NsHandle  // of the end inside; nil for this namespace
	mtu          int              // bytes of IP packet
	mac          net.HardwareAddr // of the end inside; nil for a random one
	hairpin      bool
	rateLimited  bool
	user         PortUser
	sysctls      Sysctls
}

// makePair makes both ends of a pair in one request, so that a crash leaves either nothing
// or a pair that can be found, and returns the port. All ways to connect a container use
// it. The port is down.
func (h handle) makePair(p pair) (port netlink.Link, err error) {
	if p.bridge.Attrs().Flags&net.FlagUp == 0 {
		return nil, fmt.Errorf("bridge %s is down: no frame would pass", p.bridge.Attrs().Name)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = p.port, p.mtu, p.bridge.Attrs().Index
	if p.rateLimited {
		attrs.Group = rateLimitedGroup
	}
	veth := netlink.NewVeth(attrs)
	if p.mac == nil {
		p.mac = randomMAC() // it is written down below
	}
	veth.PeerName, veth.PeerMTU, veth.PeerHardwareAddr = p.inside, uint32(p.mtu), p.mac
	if p.ns != nil {
		veth.PeerNamespace = netlink.NsFd(int(*p.ns))
	}
	if err := h.LinkAdd(veth); err != nil {
		return nil, err
	}
	if port, err = h.requireLink(p.port); err != nil {
		return nil, fmt.Errorf("look up the new port %s: %w", p.port, err)
	}
	// The kernel ignores the alias in a request that makes a link (rtnl_create_link).
	if err := h.writePortAlias(port, portAlias{p.mtu, p.hairpin, p.mac, p.user}); err != nil {
		_ = h.delete(port)
		return nil, err
	}
	if err := ipv6Off(p.sysctls, p.port).Ensure(); err != nil {
		_ = h.delete(port)
		return nil, fmt.Errorf("disable ipv6 on %s: %w", p.port, err)
	}
	return port, nil
}

// placeMAC makes the bridge send frames for a MAC address to a port. The bridge may have
// seen the address at the router's port, on another host, and would drop frames that come
// in there for minutes. The bridge's own announcements do not teach it.
func (h handle) placeMAC(port netlink.Link, mac net.HardwareAddr) error {
	entry := netlink.Neigh{
		LinkIndex: port.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_REACHABLE, Flags: netlink.NTF_MASTER, HardwareAddr: mac,
	}
	err := h.NeighSet(&entry)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	// A port without carrier learns nothing yet. Without the old entry, the bridge sends
	// frames to all ports.
	for _, name := range []string{PortName, TAPName} {
		l, ok, err := h.link(name)
		if err != nil {
			return err
		}
		if !ok || l.Attrs().MasterIndex == 0 {
			continue
		}
		entry.LinkIndex = l.Attrs().Index
		if err := h.NeighDel(&entry); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// DeletePort removes a port with its other end, in whatever namespace that is. A missing
// port is no error.
func DeletePort(name string) error { return deleteLink(name) }

// AnnounceFar announces to other hosts the addresses of containers, which are listed by the
// names of the ports. Containers on the bridge do not see that. A port that is gone is no error.
func AnnounceFar(bridge string, addrs map[string][]netip.Addr) error {
	wrap := func(cause error) error {
		return fmt.Errorf("announce from bridge %s to other hosts: %w", bridge, cause)
	}
	h, err := here()
	if err != nil {
		return wrap(err)
	}
	defer h.Close()
	for _, name := range []string{PortName, TAPName} {
		l, ok, err := h.link(name)
		if err != nil {
			return wrap(err)
		}
		if !ok || l.Attrs().MasterIndex == 0 {
			continue
		}
		macs, err := PortMACs(bridge)
		if err != nil {
			return wrap(err)
		}
		for port, as := range addrs {
			mac, ok := macs[port]
			if !ok {
				continue
			}
			if err := announce(currentNS, l.Attrs().Index, mac, hostPrefixes(as)); err != nil {
				return wrap(err)
			}
		}
		return nil
	}
	return wrap(errors.New("no port of it leads to other hosts"))
}

func hostPrefixes(addrs []netip.Addr) []netip.Prefix {
	ps := make([]netip.Prefix, len(addrs))
	for i, a := range addrs {
		ps[i] = netip.PrefixFrom(a, a.BitLen())
	}
	return ps
}

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
	return announce(currentNS, l.Attrs().Index, mac, hostPrefixes(addrs))
}
