package testbed

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
)

const (
	underlayBridge = "under0"
	// HostInterface is a host's interface on the underlay.
	HostInterface = "eth0"
	defaultMTU    = 1500
)

// makeUnderlay makes the namespaces of the hosts and connects them with a bridge in a
// namespace of its own.
func (l *Lab) makeUnderlay() error {
	name := "weft-" + l.Name + "-" + underlayNS
	if err := netdev.NewNS(name); err != nil {
		return err
	}
	for n := 1; n <= l.Hosts; n++ {
		if err := newNamespace(Place{Host: n}.namespace(l.Name)); err != nil {
			return err
		}
	}
	return netdev.Do(netdev.NSByName(name), func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = underlayBridge, l.underlayMTU()
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(bridge); err != nil {
			return fmt.Errorf("add bridge %s: %w", underlayBridge, err)
		}
		if err := netlink.LinkSetUp(bridge); err != nil {
			return fmt.Errorf("set bridge %s up: %w", underlayBridge, err)
		}
		for n := 1; n <= l.Hosts; n++ {
			if err := l.plug(bridge, n); err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *Lab) underlayMTU() int {
	if l.UnderlayMTU == 0 {
		return defaultMTU
	}
	return l.UnderlayMTU
}

// newNamespace makes a namespace with its loopback interface up.
func newNamespace(name string) error {
	if err := netdev.NewNS(name); err != nil {
		return err
	}
	return netdev.Do(netdev.NSByName(name), func() error {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			return fmt.Errorf("set lo of namespace %s up: %w", name, err)
		}
		return nil
	})
}

// plug connects host n to the bridge with a veth pair between the two namespaces. The
// calling thread is in the namespace of the underlay.
func (l *Lab) plug(bridge netlink.Link, n int) error {
	path := l.Netns(Place{Host: n})
	host, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer host.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = hostName(n), l.underlayMTU()
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerMTU, veth.PeerNamespace = HostInterface, uint32(l.underlayMTU()), netlink.NsFd(int(host))
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth pair for %s: %w", hostName(n), err)
	}
	if err := netlink.LinkSetMaster(veth, bridge); err != nil {
		return fmt.Errorf("make %s a port of %s: %w", hostName(n), underlayBridge, err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return fmt.Errorf("set port %s up: %w", hostName(n), err)
	}
	return netdev.Do(path, func() error {
		eth, err := netlink.LinkByName(HostInterface)
		if err != nil {
			return fmt.Errorf("find %s of %s: %w", HostInterface, hostName(n), err)
		}
		for _, p := range []netip.Prefix{netip.PrefixFrom(Addr4(n), 24), netip.PrefixFrom(Addr6(n), 64)} {
			if err := addAddress(eth, p); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetUp(eth); err != nil {
			return fmt.Errorf("set %s of %s up: %w", HostInterface, hostName(n), err)
		}
		return nil
	})
}

// Narrow makes the underlay drop packets from and to a host that are larger than mtu bytes of
// IP packet. The host's own interface keeps its MTU, and nobody sends an ICMP message.
func (l *Lab) Narrow(host, mtu int) error {
	if err := l.CheckPlace(Place{Host: host}); err != nil {
		return err
	}
	return netdev.Do(l.underlay(), func() error {
		port, err := netlink.LinkByName(hostName(host))
		if err == nil {
			err = netlink.LinkSetMTU(port, mtu)
		}
		if err != nil {
			return fmt.Errorf("narrow the underlay of %s in lab %s to %d bytes: %w", hostName(host), l.Name, mtu, err)
		}
		return nil
	})
}

func addAddress(link netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: &net.IPNet{
		IP:   p.Addr().AsSlice(),
		Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // usable at once; addresses are unique here
	}
	if err := netlink.AddrAdd(link, a); err != nil {
		return fmt.Errorf("add address %s to %s: %w", p, link.Attrs().Name, err)
	}
	return nil
}
