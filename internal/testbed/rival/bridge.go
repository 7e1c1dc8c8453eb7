package rival

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/testbed"
)

const plainBridge = "plain0"

// Bridge joins two containers of the first host by a bridge of the kernel: the
// reference for containers of one host.
func Bridge(lab *testbed.Lab) (*Network, error) {
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 253, 2, byte(i + 1)}) }
	n := &Network{From: testbed.Place{Host: 1, Container: "br1"}, To: testbed.Place{Host: 1, Container: "br2"}, Addr: addr(1)}
	wrap := func(err error) error { return fmt.Errorf("make bridge %s on %s: %w", plainBridge, hosts[0], err) }
	attrs := func(name string) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Name, a.MTU = name, VXLANMTU
		return a
	}
	err := netdev.Do(lab.Netns(hosts[0]), func() error {
		b := &netlink.Bridge{LinkAttrs: attrs(plainBridge)}
		if err := netlink.LinkAdd(b); err != nil {
			return err
		}
		return netlink.LinkSetUp(b)
	})
	if err != nil {
		return nil, wrap(err)
	}
	for i, p := range [...]testbed.Place{n.From, n.To} {
		if err := lab.AddNamespace(p); err != nil {
			return nil, err
		}
		err := netdev.Do(lab.Netns(hosts[0]), func() error {
			ns, err := netns.GetFromPath(lab.Netns(p))
			if err != nil {
				return err
			}
			defer ns.Close()
			b, err := netlink.LinkByName(plainBridge)
			if err != nil {
				return err
			}
			a := attrs(fmt.Sprint("plain", i+1))
			a.MasterIndex = b.Attrs().Index
			veth := netlink.NewVeth(a)
			veth.PeerName, veth.PeerMTU, veth.PeerNamespace = testbed.HostInterface, VXLANMTU, netlink.NsFd(int(ns))
			if err := netlink.LinkAdd(veth); err != nil {
				return err
			}
			return netlink.LinkSetUp(veth)
		})
		if err != nil {
			return nil, wrap(err)
		}
		if err := setUp(lab, p, testbed.HostInterface, netip.PrefixFrom(addr(i), 24)); err != nil {
			return nil, err
		}
	}
	return n, nil
}
