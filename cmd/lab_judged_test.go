package cmd

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

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
			change := testbed.Unjudge
			if judged {
				change = testbed.Judge
			}
			for _, h := range hosts {
				within(t, lab, at(h, ""), change)
			}
			for _, h := range hosts {
				eventually(t, "the ways change", func() bool {
					if err := answered(t, p, 500); err != nil {
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
		within(t, lab, at(h, ""), testbed.Judge)
	}
	for h := 1; h <= 2; h++ {
		eventually(t, "frames are judged", func() bool { return strings.Contains(link(t, lab, h, at(3-h, "").String()).Info, testbed.JudgeTable) })
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

// Site, "Express and netfilter": packets that IPsec of the host is to encrypt do not
// pass by it. Here it lets them pass as they are, as nobody has made keys.
func TestFastDatapathCrossesIPsec(t *testing.T) {
	t.Parallel()
	lab, s, _, _ := upFast(t)
	eventually(t, "express", func() bool { return link(t, lab, 1, "h2").Express })
	within(t, lab, at(1, ""), func() error {
		here := func(a netip.Addr) *net.IPNet { return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)} }
		return netlink.XfrmPolicyAdd(&netlink.XfrmPolicy{
			Dir: netlink.XFRM_DIR_OUT, Src: here(testbed.Addr4(1)), Dst: here(testbed.Addr4(2)),
			Tmpls: []netlink.XfrmPolicyTmpl{{Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TRANSPORT, Optional: 1}},
		})
	})
	eventually(t, "h1 says that express is off, and why", func() bool {
		k := link(t, lab, 1, "h2")
		return k.Kind == "fastdp" && !k.Express && strings.Contains(k.Info, "IPsec")
	})
	eventually(t, "frames cross the device", func() bool {
		before := crossed(t, lab, 1)
		s.flows(t)
		return crossed(t, lab, 1) > before+10
	})
	s.whole(t)
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

// Site, "Express and netfilter": over an underlay of IP packets without Ethernet
// frames go by the device.
func TestFastDatapathOverATunnelOfIP(t *testing.T) {
	t.Parallel()
	lab := newLab(t, testbed.Config{Hosts: 2})
	var ends [3]*os.File
	inner := func(host int) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, byte(host)}) }
	for h := 1; h <= 2; h++ {
		within(t, lab, at(h, ""), func() error {
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
	launch(t, lab, 1)
	launch(t, lab, 2, inner(1).String(), "--no-discovery")
	converge(t, lab)
	fastBetween(t, lab, 1, 2)
	eventually(t, "h1 says that express is off, and why", func() bool {
		return strings.Contains(link(t, lab, 1, "h2").Info, "not IPv4 over Ethernet")
	})
	b := addContainer(t, lab, 2, "b")[0].Addr()
	addContainer(t, lab, 1, "a")
	echoes(t, lab, at(2, "b"), b)
	echoed(t, lab, at(1, "a"), b, 1<<20)
	if n := crossed(t, lab, 1); n < 50 {
		t.Errorf("%d frames crossed the VXLAN device", n)
	}
}
