package cmd

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

// vxlanUDP is the port of the fast datapath in labs.
const vxlanUDP = 6784

// link returns the connection of a host to another, by nickname.
func link(t *testing.T, lab *testbed.Lab, host int, to string) api.Connection {
	t.Helper()
	for _, c := range report(t, lab, host).Router.Connections {
		if c.NickName == to && c.State == api.StateEstablished {
			return c
		}
	}
	return api.Connection{}
}

// fastBetween waits until both ends use the fast datapath.
func fastBetween(t *testing.T, lab *testbed.Lab, a, b int) {
	t.Helper()
	eventually(t, "fast datapath", func() bool {
		return link(t, lab, a, at(b, "").String()).Kind == "fastdp" && link(t, lab, b, at(a, "").String()).Kind == "fastdp"
	})
}

// carried sums what a host's kernel carried for another host's containers.
func carried(t *testing.T, lab *testbed.Lab, host int, peer string) (p api.FastdpPeer) {
	t.Helper()
	for _, p := range report(t, lab, host).Router.Fastdp.Peers {
		if p.NickName == peer {
			return p
		}
	}
	return p
}

func TestFastDatapathCarriesUnicast(t *testing.T) {
	t.Parallel()
	lab := upLab(t, testbed.Config{Hosts: 2})
	b := addContainer(t, lab, 2, "b", "net:default", "fd01::2/64")
	addContainer(t, lab, 1, "a", "net:default", "fd01::1/64")
	fastBetween(t, lab, 1, 2)
	for _, p := range b {
		reach(t, lab, at(1, "a"), p.Addr())
	}
	before, sleeve := carried(t, lab, 1, "h2"), link(t, lab, 1, "h2").TxPackets
	p, err := testbed.NewPinger(lab.Netns(at(1, "a")), b[0].Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for range 100 {
		eventually(t, "an answer", func() bool { _, err := p.Once(1000, time.Second); return err == nil })
	}
	after := carried(t, lab, 1, "h2")
	if tx, rx := after.TxPackets-before.TxPackets, after.RxPackets-before.RxPackets; tx < 100 || rx < 100 {
		t.Errorf("of 100 requests and answers the kernel carried %d and %d", tx, rx)
	}
	if n := link(t, lab, 1, "h2").TxPackets - sleeve; n > 50 {
		t.Errorf("%d packets went over sleeve meanwhile", n)
	}
	out := on(t, lab, 1, "status", "connections")
	if !strings.Contains(out, "fastdp") || !strings.Contains(out, "unencrypted") || strings.Contains(out, "no fastdp") {
		t.Errorf("status connections: %s", out)
	}
	if r := report(t, lab, 1); r.Router.Flows < 1 {
		t.Errorf("flows %d", r.Router.Flows)
	}
}

// upFast makes two hosts with a container each, a on h1 and b on h2, and a stream
// between them that goes by the fast datapath.
func upFast(t *testing.T) (lab *testbed.Lab, s *stream, a, b netip.Addr) {
	t.Helper()
	lab = upLab(t, testbed.Config{Hosts: 2})
	b = addContainer(t, lab, 2, "b")[0].Addr()
	a = addContainer(t, lab, 1, "a")[0].Addr()
	fastBetween(t, lab, 1, 2)
	s = startStream(t, lab, at(1, "a"), at(2, "b"), b)
	s.flows(t)
	return lab, s, a, b
}

// Issue 4, item 1: fall-back when VXLAN is blocked, and back, without a lost
// connection.
func TestFastDatapathIsBlockedAndComesBack(t *testing.T) {
	t.Parallel()
	lab, s, _, _ := upFast(t)
	if err := lab.Block(2, vxlanUDP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both ends say that it is blocked", func() bool {
		return strings.Contains(link(t, lab, 1, "h2").Info, "UDP 6784 blocked") && strings.Contains(link(t, lab, 2, "h1").Info, "UDP 6784 blocked")
	})
	s.flows(t)
	if err := lab.Block(2); err != nil {
		t.Fatal(err)
	}
	fastBetween(t, lab, 1, 2)
	s.flows(t)
	s.whole(t)
}

// Issue 4, item 1: status says why a link is not fast.
func TestFastDatapathSaysWhyNot(t *testing.T) {
	t.Parallel()
	tunnel := hasWireGuard(t)
	for _, c := range []struct {
		name          string
		lab           testbed.Config
		flags1        []string
		words, words2 string
		tunnel        bool // is what happens where the kernel has WireGuard
	}{
		{"flag", testbed.Config{}, []string{"--no-fastdp"}, "switched off by --no-fastdp", "switched off at the peer", false},
		{"password", testbed.Config{Password: "password of the lab"}, nil, "no WireGuard", "no WireGuard", true},
		{"one trusts", testbed.Config{Password: "password of the lab"}, []string{"--trusted-subnets", "192.168.77.0/24"}, "the peer wants encryption", "in none of --trusted-subnets", true},
		{"mtu", testbed.Config{UnderlayMTU: 1400}, nil, "MTU 1376 does not fit", "MTU 1376 does not fit", false},
		{"mtu for both", testbed.Config{UnderlayMTU: 1480, Password: "password of the lab"}, nil, "no WireGuard", "no WireGuard", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.lab.Hosts = 2
			lab := newLab(t, c.lab)
			launch(t, lab, 1, c.flags1...)
			launch(t, lab, 2, testbed.Addr4(1).String())
			converge(t, lab)
			if c.name == "mtu for both" && tunnel {
				c.words, c.words2 = "MTU 1376 does not fit: packets would be of 1486 bytes", "known to carry 1480"
			}
			kind := "sleeve"
			if c.tunnel && tunnel {
				kind, c.words, c.words2 = "fastdp", "encrypted by WireGuard", "encrypted by WireGuard"
			}
			eventually(t, "the reasons", func() bool {
				return strings.Contains(link(t, lab, 1, "h2").Info, c.words) && strings.Contains(link(t, lab, 2, "h1").Info, c.words2)
			})
			a := addContainer(t, lab, 1, "a")[0].Addr()
			addContainer(t, lab, 2, "b")
			reach(t, lab, at(2, "b"), a)
			if k := link(t, lab, 1, "h2"); k.Kind != kind || !k.Encrypted {
				t.Errorf("%+v", k)
			}
		})
	}
}

// Express is switched off for one peer, at one end, and on for another.
func TestExpressIsSwitchedByLink(t *testing.T) {
	t.Parallel()
	lab := newLab(t, testbed.Config{Hosts: 3})
	launch(t, lab, 1, "--no-express-to", "192.168.77.2/32")
	launch(t, lab, 2, testbed.Addr4(1).String())
	launch(t, lab, 3, testbed.Addr4(1).String())
	converge(t, lab)
	fastBetween(t, lab, 1, 2)
	fastBetween(t, lab, 1, 3)
	eventually(t, "the link to h3 has express", func() bool { return link(t, lab, 1, "h3").Express })
	if k := link(t, lab, 1, "h2"); k.Express || !strings.Contains(k.Info, "--no-express-to") {
		t.Errorf("%+v", k)
	}
	b := addContainer(t, lab, 2, "b")[0].Addr()
	addContainer(t, lab, 1, "a")
	eventually(t, "frames go by the kernel", func() bool {
		reach(t, lab, at(1, "a"), b)
		return carried(t, lab, 1, "h2").TxPackets > 3 && carried(t, lab, 1, "h2").RxPackets > 3
	})
}

// Issue 4, item 7: trusted subnets on both ends make plain VXLAN of what has a
// password.
func TestFastDatapathBetweenTrustedSubnets(t *testing.T) {
	t.Parallel()
	lab := upLab(t, testbed.Config{Hosts: 2, Password: "password of the lab", Flags: []string{"--trusted-subnets", "10.99.0.0/16,192.168.77.0/24"}})
	fastBetween(t, lab, 1, 2)
	a := addContainer(t, lab, 1, "a")[0].Addr()
	addContainer(t, lab, 2, "b")
	reach(t, lab, at(2, "b"), a)
}

// Issue 4, item 2: hops in the kernel, and mixed with sleeve in either order.
func TestFastDatapathOverHops(t *testing.T) {
	t.Parallel()
	lab := upLab(t, testbed.Config{Hosts: 3, Topology: testbed.Line})
	a := addContainer(t, lab, 1, "a")[0].Addr()
	c := addContainer(t, lab, 3, "c")[0].Addr()
	fastBetween(t, lab, 1, 2)
	fastBetween(t, lab, 2, 3)
	s := startStream(t, lab, at(1, "a"), at(3, "c"), c)
	s.flows(t)
	eventually(t, "the relay's kernel passes frames on", func() bool {
		return carried(t, lab, 2, "h1").RelayedPackets > 10 && carried(t, lab, 2, "h3").RelayedPackets > 10
	})
	for _, blocked := range []int{3, 1} { // the second hop of what h1 sends, then the first
		if err := lab.Block(blocked, vxlanUDP); err != nil {
			t.Fatal(err)
		}
		eventually(t, "one hop is sleeve", func() bool { return link(t, lab, 2, at(blocked, "").String()).Kind == "sleeve" })
		s.flows(t)
		reach(t, lab, at(3, "c"), a)
		if err := lab.Block(blocked); err != nil {
			t.Fatal(err)
		}
		fastBetween(t, lab, 2, blocked)
	}
	s.flows(t)
	s.whole(t)
}

// Issue 4, item 6: what goes by the kernel goes on while a router is away.
func TestFastDatapathOutlivesTheRouter(t *testing.T) {
	t.Parallel()
	lab, s, _, _ := upFast(t)
	eventually(t, "the stream goes by the kernel", func() bool { return carried(t, lab, 1, "h2").TxPackets > 10 })
	for range 2 {
		if err := lab.Kill(2); err != nil {
			t.Fatal(err)
		}
		eventually(t, "h1 has noticed", func() bool { return len(report(t, lab, 1).Router.UnicastRoutes) == 0 })
		for range 20 { // for longer than any link lives without an answer
			s.flows(t)
		}
		launch(t, lab, 2, testbed.Addr4(1).String())
		converge(t, lab)
		fastBetween(t, lab, 1, 2)
		s.flows(t)
	}
	s.whole(t)
}

// Others remove the device, as a network manager may that does not know it.
func TestFastDatapathComesBackWithItsDevice(t *testing.T) {
	t.Parallel()
	lab, s, _, _ := upFast(t)
	device := func(f func(netlink.Link) error) {
		t.Helper()
		err := netdev.Do(lab.Netns(at(1, "")), func() error {
			l, err := netlink.LinkByName(netdev.VXLANName)
			if err != nil {
				return err
			}
			return f(l)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var old int
	device(func(l netlink.Link) error { old = l.Attrs().Index; return netlink.LinkDel(l) })
	eventually(t, "the device is there again", func() bool {
		is := 0
		_ = netdev.Do(lab.Netns(at(1, "")), func() error {
			l, err := netlink.LinkByName(netdev.VXLANName)
			if err == nil {
				is = l.Attrs().Index
			}
			return err
		})
		return is != 0 && is != old
	})
	fastBetween(t, lab, 1, 2)
	s.flows(t)
	s.whole(t)
}

// Issue 4, item 3: who has no link can not get a frame in.
func TestFastDatapathRefusesStrangers(t *testing.T) {
	t.Parallel()
	lab := newLab(t, testbed.Config{Hosts: 3}) // h3 runs no router
	launch(t, lab, 1)
	launch(t, lab, 2, testbed.Addr4(1).String())
	converge(t, lab)
	fastBetween(t, lab, 1, 2)
	dropped := func() uint64 { return report(t, lab, 1).Router.Fastdp.Drops["unknown_remote"] }
	before := dropped()
	err := netdev.Do(lab.Netns(at(3, "")), func() error {
		c, err := net.Dial("udp", netip.AddrPortFrom(testbed.Addr4(1), vxlanUDP).String())
		if err != nil {
			return err
		}
		defer c.Close()
		p := make([]byte, 8+60)
		p[0], p[5], p[6] = 0x08, 0x10, 0x01 // a VNI
		_, err = c.Write(p)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is dropped and counted", func() bool { return dropped() == before+1 })
}

// Issue 4, item 7: once a password is set no frame goes in clear, though an
// earlier router without one left a fast datapath behind.
// A container that reaches the underlay by its host's address must not put frames
// into the mesh.
func TestContainersInjectNothing(t *testing.T) {
	t.Parallel()
	lab := upLab(t, testbed.Config{Hosts: 2})
	addContainer(t, lab, 1, "a")
	fastBetween(t, lab, 1, 2)
	gateway := netip.MustParsePrefix(strings.TrimSpace(on(t, lab, 1, "expose")) + "/12").Addr()
	ids := make(map[string]uint16)
	for _, p := range report(t, lab, 1).Router.Peers {
		ids[p.NickName] = p.ShortID
	}
	inject := func(from testbed.Place, station net.HardwareAddr) {
		t.Helper()
		p := binary.BigEndian.AppendUint32([]byte{0x08, 0, 0, 0}, (uint32(ids["h2"])<<12|uint32(ids["h1"]))<<8)
		p = append(append(p, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), station...)
		p = append(p, make([]byte, 50)...)
		err := netdev.Do(lab.Netns(from), func() error {
			c, err := net.Dial("udp", netip.AddrPortFrom(testbed.Addr4(2), vxlanUDP).String())
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write(p)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	known := func(station net.HardwareAddr) bool {
		return slices.ContainsFunc(report(t, lab, 2).Router.MACs, func(m api.MAC) bool { return m.MAC == station.String() })
	}
	err := netdev.Do(lab.Netns(at(1, "a")), func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: testbed.Addr4(2).AsSlice(), Mask: net.CIDRMask(32, 32)}, Gw: gateway.AsSlice()})
	})
	if err != nil {
		t.Fatal(err)
	}
	forged, own := net.HardwareAddr{2, 0xee, 0, 0, 0, 1}, net.HardwareAddr{2, 0xee, 0, 0, 0, 2}
	inject(at(1, "a"), forged)
	inject(at(1, ""), own)
	eventually(t, "the host itself is believed", func() bool { return known(own) })
	if known(forged) {
		t.Error("so is its container")
	}
}

func TestPasswordEndsClearFrames(t *testing.T) {
	t.Parallel()
	lab, s, a, b := upFast(t)
	for n := range 2 {
		if err := lab.Kill(n + 1); err != nil {
			t.Fatal(err)
		}
	}
	launch(t, lab, 1, "--password", "password of the lab")
	launch(t, lab, 2, "--password", "password of the lab", testbed.Addr4(1).String())
	wait := capture(t, lab, isLastWord)
	converge(t, lab)
	s.flows(t)
	s.whole(t)
	checkSealed(t, lab, wait, a, b)
}

// Interfaces, pins and mounts go with reset.
func TestResetRemovesTheFastDatapath(t *testing.T) {
	t.Parallel()
	lab := upLab(t, testbed.Config{Hosts: 1})
	on(t, lab, 1, "reset")
	eventually(t, "the devices are gone", func() bool {
		var left []string
		err := netdev.Do(lab.Netns(at(1, "")), func() error {
			all, err := net.Interfaces()
			for _, i := range all {
				if strings.HasPrefix(i.Name, "vethwe") || i.Name == "weft" {
					left = append(left, i.Name)
				}
			}
			return err
		})
		return err == nil && len(left) == 0
	})
}

// Issue 4, item 4: peers come and go, and what does not touch them loses nothing.
func TestChurnTouchesNoOtherFlow(t *testing.T) {
	t.Parallel()
	const hosts = 6
	lab := upLab(t, testbed.Config{Hosts: hosts})
	b := addContainer(t, lab, 2, "b")[0].Addr()
	addContainer(t, lab, 1, "a")
	fastBetween(t, lab, 1, 2)
	p, err := testbed.NewPinger(lab.Netns(at(1, "a")), b)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	reach(t, lab, at(1, "a"), b)
	eventually(t, "pings go by the kernel", func() bool {
		before := carried(t, lab, 1, "h2").TxPackets
		reach(t, lab, at(1, "a"), b)
		return carried(t, lab, 1, "h2").TxPackets > before
	})
	churned := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), convergeTimeout)
		defer cancel()
		for n := 3; n <= hosts; n++ {
			err := lab.Kill(n)
			if err == nil && n%2 == 0 { // the others are gone for good
				err = lab.Launch(ctx, n, lab.Peers(n)...)
			}
			if err != nil {
				churned <- err
				return
			}
		}
		churned <- nil
	}()
	for n, ended := 0, false; !ended || n < 100; n++ {
		if err := answered(t, p, 100); err != nil {
			t.Fatalf("after %d pings: %v", n, err)
		}
		select {
		case err := <-churned:
			if err != nil {
				t.Fatal(err)
			}
			ended = true
		default:
		}
	}
}
