package datapath

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

// showBridged shows bridged packets to the host's IP rules.
func showBridged() error {
	return os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("1"), 0)
}

// virtual is an address that a host translates.
var virtual = netip.MustParseAddr("10.96.0.1")

// translateFrom makes a host translate virtual to an address, also for bridged packets. It
// makes a container of that host send packets for virtual through the host, whose address
// it returns.
func translateFrom(t *testing.T, lab *testbed.Lab, host int, container string, to netip.Addr) (gateway netip.Addr) {
	t.Helper()
	gateway = netip.MustParsePrefix(strings.TrimSpace(harness.Weft(t, lab, host, "expose")) + "/12").Addr()
	harness.Within(t, lab, harness.At(host, ""), func() error { return errors.Join(showBridged(), sendElsewhere(virtual, to)) })
	harness.Within(t, lab, harness.At(host, container), func() error { return routeTo(virtual, gateway) })
	return gateway
}

func routeTo(to, gateway netip.Addr) error {
	return netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: to.AsSlice(), Mask: net.CIDRMask(32, 32)}, Gw: gateway.AsSlice()})
}

// sendElsewhere makes the calling thread's host send packets for one address to another,
// as for a published port.
func sendElsewhere(from, to netip.Addr) error {
	const destination = 16 // its offset in the IPv4 header
	return addNAT(&nftables.Chain{
		Table: &nftables.Table{Name: "lab-nat"}, Name: "prerouting", Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	}, destination, from.AsSlice(), expr.NATTypeDestNAT, to)
}

// hideBehind makes the calling thread's host translate the source of packets from one
// address to another to its own address, also of bridged packets.
func hideBehind(own, from, to netip.Addr) error {
	const source = 12 // its offset in the IPv4 header; the destination follows
	return addNAT(&nftables.Chain{
		Table: &nftables.Table{Name: "lab-source"}, Name: "postrouting", Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	}, source, append(from.AsSlice(), to.AsSlice()...), expr.NATTypeSourceNAT, own)
}

// addNAT adds a chain, in a table of its own, that translates packets with the given bytes
// at an offset of their IPv4 header.
func addNAT(chain *nftables.Chain, offset uint32, match []byte, which expr.NATType, to netip.Addr) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	chain.Type, chain.Table.Family = nftables.ChainTypeNAT, nftables.TableFamilyIPv4
	c.AddTable(chain.Table)
	c.AddChain(chain)
	c.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(match))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: match},
		&expr.Immediate{Register: 1, Data: to.AsSlice()},
		&expr.NAT{Type: which, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	}})
	return c.Flush()
}

// A reply that the host must translate back does not bypass it: a container reaches another
// host's container through an address that its own host translates.
func TestTranslatedFlowsCrossTheBridge(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 2})
	b := harness.AddContainer(t, lab, 2, "b")[0].Addr()
	harness.AddContainer(t, lab, 1, "a")
	harness.FastdpBetween(t, lab, 1, 2)
	translateFrom(t, lab, 1, "a", b)
	harness.Eventually(t, "h1 says that express is off, and why", func() bool {
		k := harness.Link(t, lab, 1, "h2")
		return k.Kind == "fastdp" && !k.Express && strings.Contains(k.Info, "table lab-nat")
	})
	harness.Echo(t, lab, harness.At(2, "b"), b)
	for range 3 {
		harness.Echoed(t, lab, harness.At(1, "a"), virtual, 5)
	}
	harness.Reach(t, lab, harness.At(1, "a"), b)
}

// bridgeUnderlay puts a host's underlay interface on a bridge and moves its addresses
// there, as on hosts of virtual machines.
func bridgeUnderlay(host int) error {
	eth, err := netlink.LinkByName(testbed.HostInterface)
	if err != nil {
		return err
	}
	addrs, err := netdev.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(eth, netlink.FAMILY_V4) })
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = "br0", eth.Attrs().HardwareAddr
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(bridge); err != nil {
		return err
	}
	if err := errors.Join(netlink.LinkSetMaster(eth, bridge), netlink.LinkSetUp(bridge)); err != nil {
		return err
	}
	for _, a := range addrs {
		if err := errors.Join(netlink.AddrDel(eth, &netlink.Addr{IPNet: a.IPNet}), netlink.AddrAdd(bridge, &netlink.Addr{IPNet: a.IPNet})); err != nil {
			return err
		}
	}
	return nil
}

// Site, "Express and netfilter": the host's connection tracking state of a frame that
// crossed weft's bridge, such as a translation, must not be applied to the VXLAN packet
// around it if that crosses another bridge.
func TestTranslatedFlowsOverAFastDatapathOnABridge(t *testing.T) {
	t.Parallel()
	for name, later := range map[string]bool{"from the start": false, "at run time": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := harness.New(t, testbed.Config{Hosts: 2})
			if !later {
				harness.Within(t, lab, harness.At(1, ""), func() error { return bridgeUnderlay(1) })
			}
			// The card of a host of the lab is a veth pair, so its bridge looks like one of
			// containers.
			harness.Launch(t, lab, 1, "--allow-peers-from", netip.PrefixFrom(testbed.Addr4(1), 24).Masked().String())
			harness.Launch(t, lab, 2, testbed.Addr4(1).String())
			harness.Converge(t, lab)
			b := harness.AddContainer(t, lab, 2, "b")[0].Addr()
			a := harness.AddContainer(t, lab, 1, "a")[0].Addr()
			harness.FastdpBetween(t, lab, 1, 2)
			harness.Echo(t, lab, harness.At(2, "b"), b)
			gateway := translateFrom(t, lab, 1, "a", b)
			harness.Within(t, lab, harness.At(1, ""), func() error { return hideBehind(gateway, a, b) })
			if later {
				harness.Within(t, lab, harness.At(1, ""), func() error { return bridgeUnderlay(1) })
			}
			harness.Eventually(t, "h1 says that express is off, and why", func() bool {
				k := harness.Link(t, lab, 1, "h2")
				return k.Kind == "fastdp" && !k.Express && strings.Contains(k.Info, "table lab-nat")
			})
			for range 3 {
				harness.Echoed(t, lab, harness.At(1, "a"), virtual, 1<<20)
				harness.Echoed(t, lab, harness.At(1, "a"), b, 1<<20)
				harness.Echoed(t, lab, harness.At(1, ""), b, 1<<20)
			}
			if n := carried(t, lab, 1, "h2").TxPackets; n < 1000 {
				t.Errorf("the kernel carried %d frames", n)
			}
		})
	}
}
