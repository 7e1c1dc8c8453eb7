package rival

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

const plainBridge = "plain0"

// Bridge connects two containers of the first host with a plain Linux bridge: the
// reference for containers on one host.
func Bridge(lab *testbed.Lab) (*Network, error) {
	n := &Network{From: testbed.Place{Host: 1, Container: "br1"}, To: testbed.Place{Host: 1, Container: "br2"}, Addr: plainAddr(1)}
	host := lab.Netns(hosts[0])
	if err := netdev.Do(host, func() error { return makeBridge(plainBridge) }); err != nil {
		return nil, fmt.Errorf("make a bridge on %s: %w", hosts[0], err)
	}
	for i, p := range [...]testbed.Place{n.From, n.To} {
		if err := lab.AddNamespace(p); err != nil {
			return nil, err
		}
		add := func() error { return addContainer(plainBridge, fmt.Sprint("plain", i+1), lab.Netns(p), nil) }
		if err := netdev.Do(host, add); err != nil {
			return nil, fmt.Errorf("connect %s to a bridge: %w", p, err)
		}
		if err := setUp(lab, p, testbed.HostInterface, netip.PrefixFrom(plainAddr(i), 24)); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// plainAddr returns the address of container i on the bridge.
func plainAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 253, 2, byte(i + 1)}) }

func attrs(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU = name, VXLANMTU
	return a
}

// makeBridge makes a bridge with new ports in the calling thread's namespace.
func makeBridge(name string, ports ...netlink.Link) error {
	bridge := &netlink.Bridge{LinkAttrs: attrs(name)}
	for _, l := range append([]netlink.Link{bridge}, ports...) {
		if l != netlink.Link(bridge) {
			l.Attrs().MasterIndex = bridge.Index
		}
		if err := addUp(l); err != nil {
			return err
		}
	}
	return nil
}

// addContainer makes a port of a bridge in the calling thread's namespace, with its other
// end in the container. If mac is nil the kernel chooses the MAC address.
func addContainer(bridge, port, container string, mac net.HardwareAddr) error {
	b, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find %s: %w", bridge, err)
	}
	ns, err := netns.GetFromPath(container)
	if err != nil {
		return fmt.Errorf("open %s: %w", container, err)
	}
	defer ns.Close()
	veth := netlink.NewVeth(attrs(port))
	veth.MasterIndex = b.Attrs().Index
	veth.PeerName, veth.PeerMTU, veth.PeerNamespace, veth.PeerHardwareAddr = testbed.HostInterface, VXLANMTU, netlink.NsFd(int(ns)), mac
	return addUp(veth)
}

func addUp(l netlink.Link) error {
	if err := netlink.LinkAdd(l); err != nil {
		return fmt.Errorf("add %s: %w", l.Attrs().Name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set %s up: %w", l.Attrs().Name, err)
	}
	return nil
}
