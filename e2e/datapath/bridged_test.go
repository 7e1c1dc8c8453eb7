package datapath

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

// crossed counts the packets that crossed a host's VXLAN device.
func crossed(t *testing.T, lab *testbed.Lab, host int) (n uint64) {
	t.Helper()
	harness.Within(t, lab, harness.At(host, ""), func() error {
		l, err := netlink.LinkByName(netdev.VXLANName)
		if err == nil {
			n = l.Attrs().Statistics.RxPackets + l.Attrs().Statistics.TxPackets
		}
		return err
	})
	return n
}

// Rules for bridged frames come and go during a connection, which loses nothing.
func TestModeChangesUnderAConnection(t *testing.T) {
	t.Parallel()
	lab, s, _, b := upFastdp(t)
	p, err := testbed.NewPinger(lab.Netns(harness.At(1, "a")), b)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, hosts := range [][]int{{1}, {2}, {1, 2}} {
		for _, filtered := range []bool{true, false} {
			change := testbed.UnfilterBridged
			if filtered {
				change = testbed.FilterBridged
			}
			for _, h := range hosts {
				harness.Within(t, lab, harness.At(h, ""), change)
			}
			for _, h := range hosts {
				harness.Eventually(t, "the ways change", func() bool {
					if err := harness.Answered(t, p, 500); err != nil {
						t.Fatalf("filtered %v on %v: %v", filtered, hosts, err)
					}
					return harness.Link(t, lab, h, harness.At(3-h, "").String()).Express == !filtered
				})
			}
			s.Flows(t)
		}
	}
	s.Whole(t)
}

// In bridged mode frames bypass only the VXLAN device.
func TestBridgedModeBypassesTheDevice(t *testing.T) {
	t.Parallel()
	lab, s, _, _ := upFastdp(t)
	for h := 1; h <= 2; h++ {
		harness.Within(t, lab, harness.At(h, ""), testbed.FilterBridged)
	}
	for h := 1; h <= 2; h++ {
		harness.Eventually(t, "frames are filtered", func() bool {
			return strings.Contains(harness.Link(t, lab, h, harness.At(3-h, "").String()).Info, testbed.FilterTable)
		})
	}
	before, frames := crossed(t, lab, 1), carried(t, lab, 1, "h2").TxPackets
	s.Flows(t)
	s.Whole(t)
	if n, f := crossed(t, lab, 1)-before, carried(t, lab, 1, "h2").TxPackets-frames; n > 50 || f < n {
		t.Errorf("%d frames crossed the VXLAN device, the kernel carried %d", n, f)
	}
}

// Both routers end at the same time, and one returns alone. Known flows continue in the
// kernel, with --no-express in device mode only.
func TestFastDatapathOutlivesBothRouters(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string][]string{
		"as it was":     nil,
		"no express":    {"--no-express"},
		"no express to": {"--no-express-to", "192.168.77.0/24"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab, s, _, _ := upFastdp(t)
			harness.Eventually(t, "the stream goes by the kernel", func() bool { return carried(t, lab, 1, "h2").TxPackets > 10 })
			for h := 1; h <= 2; h++ {
				if err := lab.Kill(h); err != nil {
					t.Fatal(err)
				}
			}
			s.Flows(t)
			harness.Launch(t, lab, 1, flags...)
			harness.Eventually(t, "frames use the mode that h1 is set to", func() bool {
				before := crossed(t, lab, 1)
				s.Flows(t)
				return crossed(t, lab, 1) > before+10 == (flags != nil)
			})
			harness.Launch(t, lab, 2, testbed.Addr4(1).String())
			harness.FastdpBetween(t, lab, 1, 2)
			s.Flows(t)
			s.Whole(t)
			harness.Eventually(t, "h1 says which way they go", func() bool { return harness.Link(t, lab, 1, "h2").Express == (flags == nil) })
		})
	}
}

// The next hop gets another MAC address.
func TestFastDatapathFollowsTheNeighbour(t *testing.T) {
	t.Parallel()
	lab, s, _, _ := upFastdp(t)
	harness.Within(t, lab, harness.At(2, ""), func() error {
		eth, err := netlink.LinkByName(testbed.HostInterface)
		if err != nil {
			return err
		}
		return netlink.LinkSetHardwareAddr(eth, net.HardwareAddr{2, 0xaa, 0, 0, 0, 2})
	})
	for range 20 {
		s.Flows(t)
	}
	harness.FastdpBetween(t, lab, 1, 2)
	s.Whole(t)
}

// Site, "Express and netfilter": packets to which the host's IPsec policies apply do not
// bypass them. Here they pass unencrypted, because the policies are optional and there are
// no keys.
func TestFastDatapathCrossesIPsec(t *testing.T) {
	t.Parallel()
	lab, s, _, _ := upFastdp(t)
	harness.Eventually(t, "express", func() bool { return harness.Link(t, lab, 1, "h2").Express })
	harness.Within(t, lab, harness.At(1, ""), func() error {
		here := func(a netip.Addr) *net.IPNet { return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)} }
		return netlink.XfrmPolicyAdd(&netlink.XfrmPolicy{
			Dir: netlink.XFRM_DIR_OUT, Src: here(testbed.Addr4(1)), Dst: here(testbed.Addr4(2)),
			Tmpls: []netlink.XfrmPolicyTmpl{{Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TRANSPORT, Optional: 1}},
		})
	})
	harness.Eventually(t, "h1 says that express is off, and why", func() bool {
		k := harness.Link(t, lab, 1, "h2")
		return k.Kind == "fastdp" && !k.Express && strings.Contains(k.Info, "IPsec")
	})
	harness.Eventually(t, "frames cross the device", func() bool {
		before := crossed(t, lab, 1)
		s.Flows(t)
		return crossed(t, lab, 1) > before+10
	})
	s.Whole(t)
}

// pump carries packets between the ends of two tunnels.
func pump(a, b *os.File) {
	packet := make([]byte, 65536)
	for {
		n, err := a.Read(packet)
		if err != nil {
			return
		}
		if _, err := b.Write(packet[:n]); err != nil {
			return
		}
	}
}

// Site, "Express and netfilter": over an underlay without Ethernet headers frames use
// device mode.
func TestFastDatapathOverATunnelOfIP(t *testing.T) {
	t.Parallel()
	lab := harness.New(t, testbed.Config{Hosts: 2})
	var ends [3]*os.File
	inner := func(host int) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, byte(host)}) }
	for h := 1; h <= 2; h++ {
		harness.Within(t, lab, harness.At(h, ""), func() error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "tun0"
			tun := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TUN, Queues: 1, Flags: netlink.TUNTAP_NO_PI}
			if err := netlink.LinkAdd(tun); err != nil {
				return err
			}
			ends[h] = tun.Fds[0]
			return errors.Join(
				netlink.AddrAdd(tun, &netlink.Addr{IPNet: &net.IPNet{IP: inner(h).AsSlice(), Mask: net.CIDRMask(24, 32)}}),
				netlink.LinkSetUp(tun))
		})
		defer ends[h].Close()
	}
	go pump(ends[1], ends[2])
	go pump(ends[2], ends[1])
	harness.Launch(t, lab, 1)
	harness.Launch(t, lab, 2, inner(1).String(), "--no-discovery")
	harness.Converge(t, lab)
	harness.FastdpBetween(t, lab, 1, 2)
	harness.Eventually(t, "h1 says that express is off, and why", func() bool {
		return strings.Contains(harness.Link(t, lab, 1, "h2").Info, "not IPv4 over Ethernet")
	})
	b := harness.AddContainer(t, lab, 2, "b")[0].Addr()
	harness.AddContainer(t, lab, 1, "a")
	harness.Echo(t, lab, harness.At(2, "b"), b)
	harness.Echoed(t, lab, harness.At(1, "a"), b, 1<<20)
	if n := crossed(t, lab, 1); n < 50 {
		t.Errorf("%d frames crossed the VXLAN device", n)
	}
}
