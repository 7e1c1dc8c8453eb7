package netdev_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

func view(t *testing.T, ns string) (v *netdev.View) {
	t.Helper()
	do(t, ns, func() (err error) { v, err = netdev.ReadView(); return err })
	return v
}

// Whatever is changed on a bridge is named, and Ensure brings it back.
func TestBridgeFaults(t *testing.T) {
	host := nstest.New(t, "h")
	b := netdev.Bridge{Name: "weft", MAC: mac, MTU: 1376}
	link := func(f func(netlink.Link) error) func() error {
		return func() error {
			l, err := netlink.LinkByName("weft")
			if err != nil {
				return err
			}
			return f(l)
		}
	}
	for _, c := range []struct {
		want   string
		damage func() error
	}{
		{"it does not exist", func() error { return nil }},
		{"it is down", link(netlink.LinkSetDown)},
		{"its MTU is 1300, not 1376", link(func(l netlink.Link) error { return netlink.LinkSetMTU(l, 1300) })},
		{"its MAC address is 02:00:00:00:00:09, not " + mac.String(), link(func(l netlink.Link) error {
			return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0, 9})
		})},
		{"it snoops multicast", link(func(l netlink.Link) error {
			// BridgeSetMcastSnoop of netlink sends the name along, which before Linux 6.2 the kernel
			// refuses while the interface is up.
			return netdev.SetBridgeFlags(l, map[int][]byte{nl.IFLA_BR_MCAST_SNOOPING: {1}})
		})},
		{"it does not exist", link(netlink.LinkDel)},
	} {
		t.Run(c.want, func(t *testing.T) {
			do(t, host, c.damage)
			if got := strings.Join(b.Faults(view(t, host)), ", "); got != c.want {
				t.Errorf("faults %q, want %q", got, c.want)
			}
			do(t, host, b.Ensure)
			if got := b.Faults(view(t, host)); len(got) > 0 {
				t.Errorf("after a repair: %q", got)
			}
		})
	}
}

// IP rules see bridged frames if the sysctl says so or the bridge's own flag, and weft sets
// only the latter, which is not lost when others change the sysctl.
func TestShownByTheBridgeItself(t *testing.T) {
	host := nstest.New(t, "host")
	w := newWatch(t, host)
	sysctl := func(value string) {
		t.Helper()
		do(t, host, func() error {
			for _, key := range []string{"iptables", "ip6tables"} {
				if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+key, []byte(value), 0); err != nil {
					return err
				}
			}
			c, err := nftables.New()
			if err != nil {
				return err
			}
			tb := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "docker"})
			c.AddChain(&nftables.Chain{Name: "c", Table: tb, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
			return c.Flush()
		})
	}
	want := func(words string) {
		t.Helper()
		f, err := w.Filtered("weft")
		if err != nil || (f == netdev.Filter{}) != (words == "") || !strings.Contains(f.String(), words) {
			t.Errorf("filtered by %q, want %q; %v", f, words, err)
		}
	}
	sysctl("0")
	b := netdev.Bridge{Name: "weft", MAC: mac, MTU: 1376}
	do(t, host, b.Ensure)
	want("")
	b.Filtered = true
	if got := b.Faults(view(t, host)); len(got) != 2 {
		t.Errorf("faults %q", got)
	}
	do(t, host, b.Ensure)
	want("flag nf_call_iptables of bridge weft is set")
	do(t, host, func() error {
		if got, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-iptables"); err != nil || string(got) != "0\n" {
			t.Errorf("the sysctl of all bridges is %q, %v", got, err)
		}
		return netdev.ShowBridged("weft") // again
	})
	do(t, host, func() error { return netdev.DeleteBridge("weft") })
	want("")
	do(t, host, func() error { return netdev.ShowBridged("weft") }) // there is none
	sysctl("1")
	want("net.bridge.bridge-nf-call-iptables is set")
}

// A container gets its frames at once although the bridge has seen its MAC address at the
// router's port: Docker makes the MAC address from the IP address, so an address that moves
// from another host comes with its MAC address.
func TestPortTakesItsMACAddress(t *testing.T) {
	at := func(host string) (ports []string) { // one for each VLAN where the kernel has VLAN filtering
		do(t, host, func() error {
			entries, err := netlink.NeighList(0, unix.AF_BRIDGE)
			for _, e := range entries {
				if e.HardwareAddr.String() == "02:42:0a:20:00:05" {
					l, err := netlink.LinkByIndex(e.LinkIndex)
					if err != nil {
						return err
					}
					ports = append(ports, l.Attrs().Name)
				}
			}
			return err
		})
		return ports
	}
	moved := net.HardwareAddr{2, 0x42, 10, 32, 0, 5}
	for name, plug := range map[string]func(host, c string) error{
		"attached": func(_, c string) error {
			_, err := netdev.Attach(netdev.Attachment{NS: c, Iface: "ethwe", Bridge: "weft", MTU: 1376, MAC: moved, Addrs: []netip.Prefix{pfx("10.32.0.5/12")}})
			return err
		},
		"by Docker": func(string, string) error {
			return netdev.MakePort("weft", "vethwe01", "vethwe01c", moved, 1376, netdev.PortUser{}, "", nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			host, c := nstest.New(t, "h"), nstest.New(t, "c")
			bridge(t, host)
			do(t, host, func() error {
				attrs := netlink.NewLinkAttrs()
				attrs.Name = netdev.PortName
				v := netlink.NewVeth(attrs)
				v.PeerName = netdev.PortPeerName
				if err := netlink.LinkAdd(v); err != nil {
					return err
				}
				peer, err := netlink.LinkByName(netdev.PortPeerName)
				if err != nil {
					return err
				}
				if err := netlink.LinkSetUp(peer); err != nil {
					return err
				}
				if err := (netdev.BridgePort{Name: netdev.PortName, Bridge: "weft", MTU: 1376}).Ensure(); err != nil {
					return err
				}
				port, err := netlink.LinkByName(netdev.PortName)
				if err != nil {
					return err
				}
				return netlink.NeighSet(&netlink.Neigh{LinkIndex: port.Attrs().Index, Family: unix.AF_BRIDGE,
					State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER, HardwareAddr: moved})
			})
			if got := slices.Compact(at(host)); !slices.Equal(got, []string{netdev.PortName}) {
				t.Fatalf("the entry is at %q", got)
			}
			do(t, host, func() error { return plug(host, c) })
			for _, port := range at(host) {
				if port == netdev.PortName {
					t.Errorf("the bridge still sends frames to another host")
				}
			}
		})
	}
}

// A port says itself how it must be, so that it can be restored whoever made it.
func TestContainerPortFaults(t *testing.T) {
	host, c := nstest.New(t, "h"), nstest.New(t, "c")
	bridge(t, host)
	attach(t, host, netdev.Attachment{NS: c, Iface: "ethwe", Bridge: "weft", MTU: 1376, Hairpin: true, Addrs: []netip.Prefix{pfx("10.32.0.5/12")}})
	ports := netdev.ContainerPorts(view(t, host), "weft", "")
	if len(ports) != 1 || ports[0].MTU != 1376 || !ports[0].Hairpin {
		t.Fatalf("ports %+v", ports)
	}
	p := ports[0]
	for _, broken := range []struct {
		want   string
		damage func(netlink.Link) error
	}{
		{"", func(netlink.Link) error { return nil }},
		{"it is down", netlink.LinkSetDown},
		{"it is not a port of bridge weft, its flag hairpin is off", netlink.LinkSetNoMaster},
		{"its MTU is 1300, not 1376", func(l netlink.Link) error { return netlink.LinkSetMTU(l, 1300) }},
		{"its flag hairpin is off", func(l netlink.Link) error { return netlink.LinkSetHairpin(l, false) }},
	} {
		do(t, host, func() error {
			l, err := netlink.LinkByName(p.Name)
			if err != nil {
				return err
			}
			return broken.damage(l)
		})
		if got := strings.Join(p.Faults(view(t, host)), ", "); got != broken.want {
			t.Errorf("faults %q, want %q", got, broken.want)
		}
		do(t, host, p.Ensure)
		if got := p.Faults(view(t, host)); len(got) > 0 {
			t.Errorf("after a repair of %q: %q", broken.want, got)
		}
	}
}

// The route of an address comes back with the address, or alone.
func TestBridgeAddressHasARoute(t *testing.T) {
	host := nstest.New(t, "h")
	bridge(t, host)
	for _, p := range []string{"10.32.0.1/12", "fd00::1/64", "10.99.0.1/32"} {
		a := netdev.BridgeAddress{Bridge: "weft", Addr: pfx(p)}
		faults := func() (got []string) {
			do(t, host, func() (err error) { got, err = a.RouteFaults(); return err })
			return got
		}
		do(t, host, a.Ensure)
		if got := faults(); len(got) > 0 {
			t.Errorf("%s: faults %q", p, got)
		}
		do(t, host, func() error {
			l, err := netlink.LinkByName("weft")
			if err != nil {
				return err
			}
			routes, err := netlink.RouteList(l, netlink.FAMILY_ALL)
			for _, r := range routes {
				err = errors.Join(err, netlink.RouteDel(&r))
			}
			return err
		})
		if got := faults(); len(got) != 1 && !a.Addr.IsSingleIP() {
			t.Errorf("%s without route: faults %q", p, got)
		}
		for range 2 {
			do(t, host, a.Ensure)
		}
		if got := faults(); len(got) > 0 {
			t.Errorf("%s with a new route: faults %q", p, got)
		}
	}
}

// FuzzPortAlias reads aliases of interfaces, which anybody may write.
func FuzzPortAlias(f *testing.F) {
	f.Add("weft port mtu 1376 hairpin")
	f.Add("weft port mtu 1376")
	f.Add("weft port mtu -1")
	f.Fuzz(func(t *testing.T, alias string) {
		v := &netdev.View{Links: map[string]*netdev.Link{"p": {Name: "p", Kind: "veth", Alias: alias}}}
		for _, p := range netdev.ContainerPorts(v, "weft", "") {
			if p.MTU < 68 || p.MTU > 65535 || !strings.HasPrefix(alias, "weft port mtu ") {
				t.Errorf("%q: %+v", alias, p)
			}
		}
	})
}
