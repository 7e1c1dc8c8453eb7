package cmd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/testbed"
)

// within runs f in the network namespace of a host or container.
func within(t *testing.T, lab *testbed.Lab, place testbed.Place, f func() error) {
	t.Helper()
	if err := netdev.Do(lab.Netns(place), f); err != nil {
		t.Fatal(err)
	}
}

// judgeBridged has a rule of the bridge family see what crosses a host's bridges, or
// takes it away again.
func judgeBridged(on bool) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: "lab-judge", Family: nftables.TableFamilyBridge}
	if !on {
		c.DelTable(table)
		return c.Flush()
	}
	chain := c.AddChain(&nftables.Chain{
		Name: "forward", Table: c.AddTable(table), Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Counter{}}})
	return c.Flush()
}

// showBridged has rules of IP see what crosses a host's bridges.
func showBridged() error {
	return os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("1"), 0)
}

// crossed counts what has crossed a host's VXLAN device.
func crossed(t *testing.T, lab *testbed.Lab, host int) (n uint64) {
	t.Helper()
	within(t, lab, at(host, ""), func() error {
		l, err := netlink.LinkByName(netdev.VXLANName)
		if err == nil {
			n = l.Attrs().Statistics.RxPackets + l.Attrs().Statistics.TxPackets
		}
		return err
	})
	return n
}

// echoes answers all TCP connections to a place's port 80 with what they send.
func echoes(t *testing.T, lab *testbed.Lab, place testbed.Place, addr netip.Addr) {
	t.Helper()
	var ln net.Listener
	within(t, lab, place, func() (err error) { ln, err = net.Listen("tcp", net.JoinHostPort(addr.String(), "80")); return err })
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
}

// echoed sends n bytes from a place to port 80 of an address and wants them back.
func echoed(t *testing.T, lab *testbed.Lab, from testbed.Place, to netip.Addr, n int) {
	t.Helper()
	within(t, lab, from, func() error {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(to.String(), "80"), patience)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		go c.Write(make([]byte, n))
		if got, err := io.ReadFull(c, make([]byte, n)); err != nil {
			return fmt.Errorf("from %s to %s: %d of %d bytes came back: %w", from, to, got, n, err)
		}
		return nil
	})
}

// virtual is an address that a host translates.
var virtual = netip.MustParseAddr("10.96.0.1")

// translateFrom has a host translate virtual to an address, also for what crosses its
// bridges, and a container of its send there by the host.
func translateFrom(t *testing.T, lab *testbed.Lab, host int, container string, to netip.Addr) {
	t.Helper()
	gateway := netip.MustParsePrefix(strings.TrimSpace(on(t, lab, host, "expose")) + "/12").Addr()
	within(t, lab, at(host, ""), func() error { return errors.Join(showBridged(), sendElsewhere(virtual, to)) })
	within(t, lab, at(host, container), func() error { return routeTo(virtual, gateway) })
}

func routeTo(to, gateway netip.Addr) error {
	return netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: to.AsSlice(), Mask: net.CIDRMask(32, 32)}, Gw: gateway.AsSlice()})
}

// bridgeUnderlay puts a host's interface of the underlay on a bridge, and its
// addresses there, as hosts of virtual machines have it.
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

// Site, "Express and netfilter": what the host knows of a frame that crossed weft's
// bridge, such as a translation of its addresses, must not be applied to the packet
// around it where that crosses another bridge.
func TestTranslatedFlowsOverAFastDatapathOnABridge(t *testing.T) {
	t.Parallel()
	for name, later := range map[string]bool{"from the start": false, "at run time": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := newLab(t, testbed.Config{Hosts: 2})
			if !later {
				within(t, lab, at(1, ""), func() error { return bridgeUnderlay(1) })
			}
			launch(t, lab, 1)
			launch(t, lab, 2, testbed.Addr4(1).String())
			converge(t, lab)
			b := addContainer(t, lab, 2, "b")[0].Addr()
			addContainer(t, lab, 1, "a")
			fastBetween(t, lab, 1, 2)
			echoes(t, lab, at(2, "b"), b)
			translateFrom(t, lab, 1, "a", b)
			if later {
				within(t, lab, at(1, ""), func() error { return bridgeUnderlay(1) })
			}
			eventually(t, "h1 says that express is off, and why", func() bool {
				k := link(t, lab, 1, "h2")
				return k.Kind == "fastdp" && !k.Express && strings.Contains(k.Info, "table lab-nat")
			})
			for range 3 {
				echoed(t, lab, at(1, "a"), virtual, 1<<20)
				echoed(t, lab, at(1, "a"), b, 1<<20)
				echoed(t, lab, at(1, ""), b, 1<<20)
			}
			if n := carried(t, lab, 1, "h2").TxPackets; n < 1000 {
				t.Errorf("the kernel carried %d frames", n)
			}
		})
	}
}

// Issue 4, item 10: rules come and go under an open connection, which loses nothing.
func TestFastDatapathIsJudgedUnderAConnection(t *testing.T) {
	t.Parallel()
	lab, s, _, b := upFast(t)
	p, err := testbed.NewPinger(lab.Netns(at(1, "a")), b)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, hosts := range [][]int{{1}, {2}, {1, 2}} {
		for _, judged := range []bool{true, false} {
			for _, h := range hosts {
				within(t, lab, at(h, ""), func() error { return judgeBridged(judged) })
			}
			for _, h := range hosts {
				eventually(t, "the ways change", func() bool {
					if _, err := p.Once(500, 5*time.Second); err != nil {
						t.Fatalf("judged %v on %v: %v", judged, hosts, err)
					}
					return link(t, lab, h, at(3-h, "").String()).Express == !judged
				})
			}
			s.flows(t)
		}
	}
	s.whole(t)
}

// Issue 4, item 10: where frames must cross the bridge they leave out the VXLAN
// device only.
func TestFastDatapathIsJudgedPastTheDevice(t *testing.T) {
	t.Parallel()
	lab, s, _, _ := upFast(t)
	for h := 1; h <= 2; h++ {
		within(t, lab, at(h, ""), func() error { return judgeBridged(true) })
	}
	for h := 1; h <= 2; h++ {
		eventually(t, "frames are judged", func() bool { return strings.Contains(link(t, lab, h, at(3-h, "").String()).Info, "lab-judge") })
	}
	before, frames := crossed(t, lab, 1), carried(t, lab, 1, "h2").TxPackets
	s.flows(t)
	s.whole(t)
	if n, f := crossed(t, lab, 1)-before, carried(t, lab, 1, "h2").TxPackets-frames; n > 50 || f < n {
		t.Errorf("%d frames crossed the VXLAN device, the kernel carried %d", n, f)
	}
}

// Issue 4, item 6, and site, "Flags": both routers end at once, and one comes back
// alone. What goes by the kernel goes on, with --no-express by bridge and device
// only.
func TestFastDatapathOutlivesBothRouters(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string][]string{
		"as it was":     nil,
		"no express":    {"--no-express"},
		"no express to": {"--no-express-to", "192.168.77.0/24"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab, s, _, _ := upFast(t)
			eventually(t, "the stream goes by the kernel", func() bool { return carried(t, lab, 1, "h2").TxPackets > 10 })
			for h := 1; h <= 2; h++ {
				if err := lab.Kill(h); err != nil {
					t.Fatal(err)
				}
			}
			s.flows(t)
			launch(t, lab, 1, flags...)
			eventually(t, "frames go the way that h1 was told", func() bool {
				before := crossed(t, lab, 1)
				s.flows(t)
				return crossed(t, lab, 1) > before+10 == (flags != nil)
			})
			launch(t, lab, 2, testbed.Addr4(1).String())
			fastBetween(t, lab, 1, 2)
			s.flows(t)
			s.whole(t)
			eventually(t, "h1 says which way they go", func() bool { return link(t, lab, 1, "h2").Express == (flags == nil) })
		})
	}
}

// Issue 4, item 10: the next hop gets another hardware address.
func TestFastDatapathFollowsTheNeighbour(t *testing.T) {
	t.Parallel()
	lab, s, _, _ := upFast(t)
	within(t, lab, at(2, ""), func() error {
		eth, err := netlink.LinkByName(testbed.HostInterface)
		if err != nil {
			return err
		}
		return netlink.LinkSetHardwareAddr(eth, net.HardwareAddr{2, 0xaa, 0, 0, 0, 2})
	})
	for range 20 {
		s.flows(t)
	}
	fastBetween(t, lab, 1, 2)
	s.whole(t)
}
