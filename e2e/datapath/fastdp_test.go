package datapath

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

// vxlanUDP is the port of the fast datapath in labs.
const vxlanUDP = 6784

// carried returns what a host's kernel carried for another host's containers.
func carried(t *testing.T, lab *testbed.Lab, host int, peer string) (p api.FastdpPeer) {
	t.Helper()
	for _, p := range harness.Report(t, lab, host).Router.Fastdp.Peers {
		if p.NickName == peer {
			return p
		}
	}
	return p
}

func TestFastDatapathCarriesUnicast(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 2})
	b := harness.AddContainer(t, lab, 2, "b", "net:default", "fd01::2/64")
	harness.AddContainer(t, lab, 1, "a", "net:default", "fd01::1/64")
	harness.FastdpBetween(t, lab, 1, 2)
	for _, p := range b {
		harness.Reach(t, lab, harness.At(1, "a"), p.Addr())
	}
	before, sleeve := carried(t, lab, 1, "h2"), harness.Link(t, lab, 1, "h2").TxPackets
	p, err := testbed.NewPinger(lab.Netns(harness.At(1, "a")), b[0].Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for range 100 {
		harness.Eventually(t, "an answer", func() bool { _, err := p.Once(1000, time.Second); return err == nil })
	}
	after := carried(t, lab, 1, "h2")
	if tx, rx := after.TxPackets-before.TxPackets, after.RxPackets-before.RxPackets; tx < 100 || rx < 100 {
		t.Errorf("of 100 requests and answers the kernel carried %d and %d", tx, rx)
	}
	if n := harness.Link(t, lab, 1, "h2").TxPackets - sleeve; n > 50 {
		t.Errorf("%d packets went over sleeve meanwhile", n)
	}
	out := harness.Weft(t, lab, 1, "status", "connections")
	if !strings.Contains(out, "fastdp") || !strings.Contains(out, "unencrypted") || strings.Contains(out, "no fastdp") {
		t.Errorf("status connections: %s", out)
	}
	if r := harness.Report(t, lab, 1); r.Router.Flows < 1 {
		t.Errorf("flows %d", r.Router.Flows)
	}
}

// upFastdp makes two hosts with a container each, a on h1 and b on h2, and a stream
// between them over the fast datapath.
func upFastdp(t *testing.T) (lab *testbed.Lab, s *harness.Stream, a, b netip.Addr) {
	t.Helper()
	lab = harness.Up(t, testbed.Config{Hosts: 2})
	b = harness.AddContainer(t, lab, 2, "b")[0].Addr()
	a = harness.AddContainer(t, lab, 1, "a")[0].Addr()
	harness.FastdpBetween(t, lab, 1, 2)
	s = harness.StartStream(t, lab, harness.At(1, "a"), harness.At(2, "b"), b)
	s.Flows(t)
	return lab, s, a, b
}

// A link falls back to sleeve when VXLAN is blocked, and returns, without losing a
// connection.
func TestFastDatapathIsBlockedAndComesBack(t *testing.T) {
	t.Parallel()
	lab, s, _, _ := upFastdp(t)
	if err := lab.Block(2, vxlanUDP); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "both ends say that it is blocked", func() bool {
		return strings.Contains(harness.Link(t, lab, 1, "h2").Info, "UDP 6784 blocked") && strings.Contains(harness.Link(t, lab, 2, "h1").Info, "UDP 6784 blocked")
	})
	s.Flows(t)
	if err := lab.Block(2); err != nil {
		t.Fatal(err)
	}
	harness.FastdpBetween(t, lab, 1, 2)
	s.Flows(t)
	s.Whole(t)
}

// The status says why a link does not use the fast datapath.
func TestFastDatapathSaysWhyNot(t *testing.T) {
	t.Parallel()
	tunnel := harness.HasWireGuard(t)
	for _, c := range []struct {
		name          string
		lab           testbed.Config
		flags1        []string
		words, words2 string
		tunnel        bool // what happens if the kernel has WireGuard
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
			lab := harness.New(t, c.lab)
			harness.Launch(t, lab, 1, c.flags1...)
			harness.Launch(t, lab, 2, testbed.Addr4(1).String())
			harness.Converge(t, lab)
			if c.name == "mtu for both" && tunnel {
				c.words, c.words2 = "MTU 1376 does not fit: packets would be of 1486 bytes", "known to carry 1480"
			}
			kind := "sleeve"
			if c.tunnel && tunnel {
				kind, c.words, c.words2 = "fastdp", "encrypted by WireGuard", "encrypted by WireGuard"
			}
			harness.Eventually(t, "the reasons", func() bool {
				return strings.Contains(harness.Link(t, lab, 1, "h2").Info, c.words) && strings.Contains(harness.Link(t, lab, 2, "h1").Info, c.words2)
			})
			a := harness.AddContainer(t, lab, 1, "a")[0].Addr()
			harness.AddContainer(t, lab, 2, "b")
			harness.Reach(t, lab, harness.At(2, "b"), a)
			if k := harness.Link(t, lab, 1, "h2"); k.Kind != kind || !k.Encrypted {
				t.Errorf("%+v", k)
			}
		})
	}
}

// Express can be switched off for one peer, at one end, while another peer uses it.
func TestExpressIsSwitchedByLink(t *testing.T) {
	t.Parallel()
	lab := harness.New(t, testbed.Config{Hosts: 3})
	harness.Launch(t, lab, 1, "--no-express-to", "192.168.77.2/32")
	harness.Launch(t, lab, 2, testbed.Addr4(1).String())
	harness.Launch(t, lab, 3, testbed.Addr4(1).String())
	harness.Converge(t, lab)
	harness.FastdpBetween(t, lab, 1, 2)
	harness.FastdpBetween(t, lab, 1, 3)
	harness.Eventually(t, "the link to h3 has express", func() bool { return harness.Link(t, lab, 1, "h3").Express })
	if k := harness.Link(t, lab, 1, "h2"); k.Express || !strings.Contains(k.Info, "--no-express-to") {
		t.Errorf("%+v", k)
	}
	b := harness.AddContainer(t, lab, 2, "b")[0].Addr()
	harness.AddContainer(t, lab, 1, "a")
	harness.Eventually(t, "frames go by the kernel", func() bool {
		harness.Reach(t, lab, harness.At(1, "a"), b)
		return carried(t, lab, 1, "h2").TxPackets > 3 && carried(t, lab, 1, "h2").RxPackets > 3
	})
}

// Between trusted subnets on both ends frames use plain VXLAN although a password is set.
func TestFastDatapathBetweenTrustedSubnets(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 2, Password: "password of the lab", Flags: []string{"--trusted-subnets", "10.99.0.0/16,192.168.77.0/24"}})
	harness.FastdpBetween(t, lab, 1, 2)
	a := harness.AddContainer(t, lab, 1, "a")[0].Addr()
	harness.AddContainer(t, lab, 2, "b")
	harness.Reach(t, lab, harness.At(2, "b"), a)
}

// Frames travel over hops of the fast datapath, and over hops of it and of sleeve in
// either order.
func TestFastDatapathOverHops(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 3, Topology: testbed.Line})
	a := harness.AddContainer(t, lab, 1, "a")[0].Addr()
	c := harness.AddContainer(t, lab, 3, "c")[0].Addr()
	harness.FastdpBetween(t, lab, 1, 2)
	harness.FastdpBetween(t, lab, 2, 3)
	s := harness.StartStream(t, lab, harness.At(1, "a"), harness.At(3, "c"), c)
	s.Flows(t)
	harness.Eventually(t, "the relay's kernel passes frames on", func() bool {
		return carried(t, lab, 2, "h1").RelayedPackets > 10 && carried(t, lab, 2, "h3").RelayedPackets > 10
	})
	for _, blocked := range []int{3, 1} { // the second hop from h1, then the first
		if err := lab.Block(blocked, vxlanUDP); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, "one hop is sleeve", func() bool { return harness.Link(t, lab, 2, harness.At(blocked, "").String()).Kind == "sleeve" })
		s.Flows(t)
		harness.Reach(t, lab, harness.At(3, "c"), a)
		if err := lab.Block(blocked); err != nil {
			t.Fatal(err)
		}
		harness.FastdpBetween(t, lab, 2, blocked)
	}
	s.Flows(t)
	s.Whole(t)
}

// Known flows continue while a router is away.
func TestFastDatapathOutlivesTheRouter(t *testing.T) {
	t.Parallel()
	lab, s, _, _ := upFastdp(t)
	harness.Eventually(t, "the stream goes by the kernel", func() bool { return carried(t, lab, 1, "h2").TxPackets > 10 })
	for range 2 {
		if err := lab.Kill(2); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, "h1 has noticed", func() bool { return len(harness.Report(t, lab, 1).Router.UnicastRoutes) == 0 })
		for range 20 { // longer than any link lives without an answer
			s.Flows(t)
		}
		harness.Launch(t, lab, 2, testbed.Addr4(1).String())
		harness.Converge(t, lab)
		harness.FastdpBetween(t, lab, 1, 2)
		s.Flows(t)
	}
	s.Whole(t)
}

// Another program removes the device, as a network manager may that does not know it.
func TestFastDatapathComesBackWithItsDevice(t *testing.T) {
	t.Parallel()
	lab, s, _, _ := upFastdp(t)
	device := func(f func(netlink.Link) error) {
		t.Helper()
		err := netdev.Do(lab.Netns(harness.At(1, "")), func() error {
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
	harness.Eventually(t, "the device is there again", func() bool {
		is := 0
		_ = netdev.Do(lab.Netns(harness.At(1, "")), func() error {
			l, err := netlink.LinkByName(netdev.VXLANName)
			if err == nil {
				is = l.Attrs().Index
			}
			return err
		})
		return is != 0 && is != old
	})
	harness.FastdpBetween(t, lab, 1, 2)
	s.Flows(t)
	s.Whole(t)
}

// A host without a link cannot inject a frame.
func TestFastDatapathRefusesStrangers(t *testing.T) {
	t.Parallel()
	lab := harness.New(t, testbed.Config{Hosts: 3}) // h3 runs no router
	harness.Launch(t, lab, 1)
	harness.Launch(t, lab, 2, testbed.Addr4(1).String())
	harness.Converge(t, lab)
	harness.FastdpBetween(t, lab, 1, 2)
	dropped := func() uint64 { return harness.Report(t, lab, 1).Router.Fastdp.Drops["unknown_remote"] }
	before := dropped()
	err := netdev.Do(lab.Netns(harness.At(3, "")), func() error {
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
	harness.Eventually(t, "it is dropped and counted", func() bool { return dropped() == before+1 })
}

// A container that reaches the underlay through its host must not inject frames into the
// mesh.
func TestContainersInjectNothing(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 2})
	harness.AddContainer(t, lab, 1, "a")
	harness.FastdpBetween(t, lab, 1, 2)
	gateway := netip.MustParsePrefix(strings.TrimSpace(harness.Weft(t, lab, 1, "expose")) + "/12").Addr()
	ids := make(map[string]uint16)
	for _, p := range harness.Report(t, lab, 1).Router.Peers {
		ids[p.NickName] = p.ShortID
	}
	inject := func(from testbed.Place, mac net.HardwareAddr) {
		t.Helper()
		p := binary.BigEndian.AppendUint32([]byte{0x08, 0, 0, 0}, (uint32(ids["h2"])<<12|uint32(ids["h1"]))<<8)
		p = append(append(p, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), mac...)
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
	known := func(mac net.HardwareAddr) bool {
		return slices.ContainsFunc(harness.Report(t, lab, 2).Router.MACs, func(m api.MAC) bool { return m.MAC == mac.String() })
	}
	err := netdev.Do(lab.Netns(harness.At(1, "a")), func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: testbed.Addr4(2).AsSlice(), Mask: net.CIDRMask(32, 32)}, Gw: gateway.AsSlice()})
	})
	if err != nil {
		t.Fatal(err)
	}
	forged := net.HardwareAddr{2, 0xee, 0, 0, 0, 1}
	inject(harness.At(1, "a"), forged)
	err = netdev.Do(lab.Netns(harness.At(1, "")), func() error {
		c, err := net.Dial("udp", netip.AddrPortFrom(testbed.Addr4(2), vxlanUDP).String())
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err = c.Write([]byte("of a user")); !errors.Is(err, unix.EPERM) {
			t.Errorf("a process of the host sends to the port: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// What the host's own sockets send to containers still passes.
	b := harness.AddContainer(t, lab, 2, "b")[0].Addr()
	harness.Reach(t, lab, harness.At(1, ""), b)
	if known(forged) {
		t.Error("frames of the container are accepted")
	}
}

// Once a password is set no frame leaves unencrypted, although an earlier router without
// one left a fast datapath behind.
func TestPasswordEndsClearFrames(t *testing.T) {
	t.Parallel()
	lab, s, a, b := upFastdp(t)
	for n := range 2 {
		if err := lab.Kill(n + 1); err != nil {
			t.Fatal(err)
		}
	}
	harness.Launch(t, lab, 1, "--password", "password of the lab")
	harness.Launch(t, lab, 2, "--password", "password of the lab", testbed.Addr4(1).String())
	wait := capture(t, lab, isLastWord)
	harness.Converge(t, lab)
	s.Flows(t)
	s.Whole(t)
	checkSealed(t, lab, wait, a, b)
}

// A host that is launched with another password exchanges nothing any more with a host
// that it had a fast datapath with, although both allow clear text between them.
func TestAnotherPasswordCutsTheHostOff(t *testing.T) {
	t.Parallel()
	for name, left := range map[string][]int{"one router goes on": {1}, "both are launched": {1, 2}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := harness.Up(t, testbed.Config{Hosts: 2})
			b := harness.AddContainer(t, lab, 2, "b")[0].Addr()
			a := harness.AddContainer(t, lab, 1, "a")[0].Addr()
			harness.FastdpBetween(t, lab, 1, 2)
			harness.Reach(t, lab, harness.At(1, "a"), b)
			for _, h := range left {
				if err := lab.Kill(h); err != nil {
					t.Fatal(err)
				}
			}
			trusted := []string{"--trusted-subnets", "10.99.0.0/16,192.168.77.0/24"}
			harness.Launch(t, lab, 1, append(trusted, "--password", "password of the lab")...)
			if len(left) == 2 {
				harness.Launch(t, lab, 2, testbed.Addr4(1).String())
			}
			harness.Eventually(t, "h1 has refused h2", func() bool {
				return strings.Contains(harness.Weft(t, lab, 1, "status"), "passwords differ")
			})
			wait := capture(t, lab, isLastWord)
			p, err := testbed.NewPinger(lab.Netns(harness.At(1, "a")), b)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			for range 5 {
				if _, err := p.Once(8, time.Second); err == nil {
					t.Error("a ping between the hosts is answered")
				}
			}
			checkSealed(t, lab, wait, a, b)
		})
	}
}

// weft reset removes interfaces, pins and mounts.
func TestResetRemovesTheFastDatapath(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 1})
	harness.Weft(t, lab, 1, "reset")
	harness.Eventually(t, "the devices are gone", func() bool {
		var left []string
		err := netdev.Do(lab.Netns(harness.At(1, "")), func() error {
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

// Peers come and go, and flows between other hosts lose nothing.
func TestChurnTouchesNoOtherFlow(t *testing.T) {
	t.Parallel()
	const hosts = 6
	lab := harness.Up(t, testbed.Config{Hosts: hosts})
	b := harness.AddContainer(t, lab, 2, "b")[0].Addr()
	harness.AddContainer(t, lab, 1, "a")
	harness.FastdpBetween(t, lab, 1, 2)
	p, err := testbed.NewPinger(lab.Netns(harness.At(1, "a")), b)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	harness.Reach(t, lab, harness.At(1, "a"), b)
	harness.Eventually(t, "pings go by the kernel", func() bool {
		before := carried(t, lab, 1, "h2").TxPackets
		harness.Reach(t, lab, harness.At(1, "a"), b)
		return carried(t, lab, 1, "h2").TxPackets > before
	})
	churned := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), harness.ConvergeTimeout)
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
		if err := harness.Answered(t, p, 100); err != nil {
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
