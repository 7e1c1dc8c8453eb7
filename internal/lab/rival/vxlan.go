package rival

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

const (
	vxlanID     = 4242
	vxlanPort   = 4789
	vxlanBridge = "vxb"
	vxlanDevice = "vx0"
	vxlanPortIf = "vxc"
	// VXLANMTU is the MTU of its containers: that of Ethernet minus the VXLAN headers.
	VXLANMTU = 1450
)

// VXLAN connects a container on each host with a bridge and the kernel's VXLAN device,
// with static FDB entries and without encryption. It is the upper bound for overlays that
// carry Ethernet.
func VXLAN(lab *testbed.Lab) (*Network, error) {
	n := &Network{From: testbed.Place{Host: 1, Container: "vx"}, To: testbed.Place{Host: 2, Container: "vx"}, Addr: vxlanAddr(1)}
	for i, p := range [...]testbed.Place{n.From, n.To} {
		if err := lab.AddNamespace(p); err != nil {
			return nil, err
		}
		if err := netdev.Do(lab.Netns(hosts[i]), func() error { return makeVXLAN(i, lab.Netns(p)) }); err != nil {
			return nil, fmt.Errorf("make VXLAN on %s: %w", hosts[i], err)
		}
		if err := setUp(lab, p, testbed.HostInterface, netip.PrefixFrom(vxlanAddr(i), 24)); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// vxlanAddr and vxlanMAC return the addresses of the container on hosts[i].
func vxlanAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 253, 1, byte(i + 1)}) }

func vxlanMAC(i int) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 1, byte(i + 1)} }

// makeVXLAN makes the devices of hosts[i] and the container's interface. The calling
// thread is in the host's namespace.
func makeVXLAN(i int, container string) error {
	eth, err := netlink.LinkByName(testbed.HostInterface)
	if err != nil {
		return err
	}
	device := &netlink.Vxlan{LinkAttrs: attrs(vxlanDevice), VxlanId: vxlanID, Port: vxlanPort,
		VtepDevIndex: eth.Attrs().Index, SrcAddr: testbed.Addr4(hosts[i].Host).AsSlice()}
	if err := makeBridge(vxlanBridge, device); err != nil {
		return err
	}
	if err := addContainer(vxlanBridge, vxlanPortIf, container, vxlanMAC(i)); err != nil {
		return err
	}
	far := 1 - i
	// Broadcasts go to the other host too.
	for _, mac := range []net.HardwareAddr{vxlanMAC(far), make(net.HardwareAddr, 6)} {
		entry := &netlink.Neigh{LinkIndex: device.Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
			HardwareAddr: mac, IP: testbed.Addr4(hosts[far].Host).AsSlice()}
		if err := netlink.NeighAppend(entry); err != nil {
			return fmt.Errorf("add FDB entry %s: %w", mac, err)
		}
	}
	return nil
}
