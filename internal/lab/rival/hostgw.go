package rival

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

const (
	routedBridge = "hgb"
	routedPort   = "hgc"
)

// HostGW connects a container on each host as Flannel's backend host-gw does: each host has a bridge with a
// network of its own, and routes to those of the others by their addresses. Nothing is encapsulated.
func HostGW(lab *testbed.Lab) (*Network, error) {
	n := &Network{From: testbed.Place{Host: 1, Container: "hg"}, To: testbed.Place{Host: 2, Container: "hg"}, Addr: routedAddr(1, 2)}
	for i, p := range [...]testbed.Place{n.From, n.To} {
		if err := lab.AddNamespace(p); err != nil {
			return nil, err
		}
		if err := netdev.Do(lab.Netns(hosts[i]), func() error { return makeRouted(i, lab.Netns(p)) }); err != nil {
			return nil, fmt.Errorf("make routes on %s: %w", hosts[i], err)
		}
		if err := setUp(lab, p, testbed.HostInterface, netip.PrefixFrom(routedAddr(i, 2), 24)); err != nil {
			return nil, err
		}
		err := netdev.Do(lab.Netns(p), func() error {
			return netlink.RouteAdd(&netlink.Route{Gw: routedAddr(i, 1).AsSlice()})
		})
		if err != nil {
			return nil, fmt.Errorf("add the default route of %s: %w", p, err)
		}
	}
	return n, nil
}

// routedAddr returns an address of the network of hosts[i]: 1 is its bridge, and 2 the container.
func routedAddr(i int, n byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 253, byte(10 + i), n}) }

// makeRouted makes the bridge of hosts[i], its routes, and the container's interface. The calling thread is in
// the host's namespace.
func makeRouted(i int, container string) error {
	if err := os.WriteFile(netdev.ProcSys.Path("net", "ipv4", "ip_forward"), []byte("1"), 0); err != nil {
		return err
	}
	if err := makeBridge(routedBridge); err != nil {
		return err
	}
	bridge, err := netlink.LinkByName(routedBridge)
	if err != nil {
		return err
	}
	own, err := netlink.ParseAddr(netip.PrefixFrom(routedAddr(i, 1), 24).String())
	if err == nil {
		err = netlink.AddrAdd(bridge, own)
	}
	if err != nil {
		return fmt.Errorf("add the address of %s: %w", routedBridge, err)
	}
	if err := addContainer(routedBridge, routedPort, container, nil); err != nil {
		return err
	}
	far := 1 - i
	to := &net.IPNet{IP: routedAddr(far, 0).AsSlice(), Mask: net.CIDRMask(24, 32)}
	if err := netlink.RouteAdd(&netlink.Route{Dst: to, Gw: testbed.Addr4(hosts[far].Host).AsSlice()}); err != nil {
		return fmt.Errorf("add the route to %s: %w", to, err)
	}
	return nil
}
