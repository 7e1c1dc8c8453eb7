package datapath

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/checksum"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

// encapLab has container a on h1 and b on h2, with addresses of both families.
type encapLab struct {
	*testbed.Lab
	t      *testing.T
	a, b   testbed.Place
	v4, v6 netip.Addr // of b
}

func newEncapLab(t *testing.T, c testbed.Config) *encapLab {
	t.Helper()
	c.Hosts = 2
	l := &encapLab{Lab: harness.Up(t, c), t: t, a: harness.At(1, "a"), b: harness.At(2, "b")}
	for h := 1; h <= 2; h++ {
		harness.Within(t, l.Lab, harness.At(h, ""), func() error {
			return os.WriteFile(netdev.ProcSys.Path("net", "ipv4", "ip_forward"), []byte("1"), 0)
		})
	}
	harness.AddContainer(t, l.Lab, 1, "a", "net:default", "fd01::1/64")
	addrs := harness.AddContainer(t, l.Lab, 2, "b", "net:default", "fd01::2/64")
	l.v4, l.v6 = addrs[0].Addr(), addrs[1].Addr()
	return l
}

// encap waits until both hosts use an encapsulation for both families.
func (l *encapLab) encap(want string) {
	l.t.Helper()
	harness.Eventually(l.t, "both hosts use encapsulation "+want, func() bool {
		return harness.Link(l.t, l.Lab, 1, "h2").Encap == want && harness.Link(l.t, l.Lab, 2, "h1").Encap == want
	})
}

// What an IPv4 packet on the underlay is.
func kindOf(b []byte) string {
	if len(b) < 14+20 || b[12] != 8 || b[13] != 0 {
		return ""
	}
	switch ip := b[14:]; {
	case ip[12] != 192:
		return "none"
	case ip[9] == 4 || ip[9] == 41:
		return "ipip"
	case ip[9] == 17 && len(b) >= 14+20+8 && binary.BigEndian.Uint16(ip[22:]) == 6784:
		return "vxlan"
	}
	return ""
}

// carried pings b with a pattern, and returns in which encapsulations the pattern crossed the underlay.
func (l *encapLab) carried(size int) string {
	l.t.Helper()
	var none, ipip, vxlan atomic.Int64
	counts := map[string]*atomic.Int64{"none": &none, "ipip": &ipip, "vxlan": &vxlan}
	w := harness.OpenWire(l.t, l.Lab, harness.At(1, ""), testbed.HostInterface)
	icmp := append(l.v4.AsSlice(), 8, 0)
	stop := w.Capture(func(b []byte) bool {
		// An echo request to b, wherever in the packet it is.
		if i := bytes.Index(b, l.v4.AsSlice()); i >= 0 && bytes.Contains(b, icmp) && counts[kindOf(b)] != nil {
			counts[kindOf(b)].Add(1)
		}
		return false
	})
	p, err := testbed.NewPinger(l.Netns(l.a), l.v4)
	if err != nil {
		l.t.Fatal(err)
	}
	defer p.Close()
	var kinds []string
	harness.Eventually(l.t, "packets are seen on the underlay", func() bool {
		if err := harness.Answered(l.t, p, size); err != nil {
			l.t.Error(err)
		}
		kinds = nil
		for _, k := range []string{"none", "ipip", "vxlan"} {
			if counts[k].Load() >= 3 {
				kinds = append(kinds, k)
			}
		}
		return len(kinds) > 0
	})
	stop()
	return strings.Join(kinds, " ")
}

// Site, "Encapsulations".
func TestEncapsulations(t *testing.T) {
	for name, m := range map[string]func() error{"express": nil, "bridged": testbed.FilterBridged} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newEncapLab(t, testbed.Config{})
			if m != nil {
				for h := 1; h <= 2; h++ {
					harness.Within(t, l.Lab, harness.At(h, ""), m)
				}
			}
			l.encap("none")
			check := func(want string) {
				t.Helper()
				if got := l.carried(1000); got != want {
					t.Errorf("packets cross the underlay in %q, want %q", got, want)
				}
				harness.Reach(t, l.Lab, l.a, l.v6)
			}
			check("none")
			stream4 := harness.StartStream(t, l.Lab, l.a, l.b, l.v4)
			stream6 := harness.StartStream(t, l.Lab, l.a, l.b, l.v6)
			flow := func() {
				t.Helper()
				stream4.Flows(t)
				stream6.Flows(t)
			}
			flow()
			// change makes the underlay drop packets, and packets are lost for three seconds at most.
			change := func(what string, sources, ipip bool, want string) {
				t.Helper()
				lost := steady(t, l.Lab, l.v4, func() {
					for h := 1; h <= 2; h++ {
						if err := l.BlockPlain(h, sources, ipip); err != nil {
							t.Fatal(err)
						}
					}
					l.encap(want)
				})
				if lost > 3*time.Second+harness.Slack {
					t.Errorf("%s: packets were lost for %v", what, lost)
				}
				t.Logf("%s: packets were lost for %v", what, lost)
				check(want)
				flow()
				info := harness.Link(t, l.Lab, 1, "h2").Info
				if blocked := strings.Contains(info, "no better encap: packets with addresses of containers blocked"); blocked != (want != "none") {
					t.Errorf("%s: status says %q", what, info)
				}
			}
			change("the network checks sources", true, false, "ipip")
			change("a firewall drops protocol 4, too", true, true, "vxlan")
			change("all passes again", false, false, "none")
			stream4.Whole(t)
			stream6.Whole(t)
		})
	}
}

// The routers are replaced while packets flow, and none is lost.
func TestEncapsulationsOutliveRouters(t *testing.T) {
	for _, encap := range []string{"none", "ipip"} {
		t.Run(encap, func(t *testing.T) {
			t.Parallel()
			l := newEncapLab(t, testbed.Config{Flags: []string{"--encap", encap + ",vxlan"}})
			l.encap(encap)
			x := harness.StartExchange(t, l.Lab, l.a, l.b, l.v4)
			for _, host := range []int{2, 1, 2} {
				x.Beats(t)
				if err := l.Kill(host); err != nil {
					t.Fatal(err)
				}
				x.Beats(t)
				harness.Launch(t, l.Lab, host)
				harness.Converge(t, l.Lab)
				x.Beats(t)
				l.encap(encap)
			}
			x.Whole(t)
		})
	}
}

// With --encap none containers may have the whole MTU of the underlay. Where none does not pass, their packets go
// by sleeve, as they are too large for VXLAN.
func TestWholeMTU(t *testing.T) {
	t.Parallel()
	l := newEncapLab(t, testbed.Config{Flags: []string{"--encap", "none", "--mtu", "1500"}})
	l.encap("none")
	if got := l.carried(1500 - 28); got != "none" {
		t.Errorf("packets of 1,500 bytes cross the underlay in %q", got)
	}
	for h := 1; h <= 2; h++ {
		if err := l.BlockPlain(h, true, false); err != nil {
			t.Fatal(err)
		}
	}
	harness.Eventually(t, "the link uses sleeve", func() bool { return harness.Link(t, l.Lab, 1, "h2").Kind == "sleeve" })
	harness.Reach(t, l.Lab, l.a, l.v4)
	harness.Reach(t, l.Lab, l.a, l.v6)
}

// The settings of one host for one peer hold in both directions.
func TestEncapsulationPerPeer(t *testing.T) {
	t.Parallel()
	l := newEncapLab(t, testbed.Config{Flags: []string{"--encap-to", fmt.Sprintf("%s=ipip+vxlan", netip.PrefixFrom(testbed.Addr4(2), 32))}})
	// h1 uses IPIP with h2. h2 would use none with h1, which does not take it.
	l.encap("ipip")
	if got := l.carried(100); got != "ipip" {
		t.Errorf("packets cross the underlay in %q", got)
	}
}

// A container that reaches the underlay through its host, with the host's address, must not speak as another
// container of the host by IPIP of its own.
func TestContainersForgeNoIPIP(t *testing.T) {
	t.Parallel()
	l := newEncapLab(t, testbed.Config{Flags: []string{"--encap", "ipip,vxlan"}})
	victim := harness.AddContainer(t, l.Lab, 1, "victim")[0].Addr()
	gateway := netip.MustParsePrefix(strings.TrimSpace(harness.Weft(t, l.Lab, 1, "expose")) + "/12").Addr()
	l.encap("ipip")
	harness.Reach(t, l.Lab, harness.At(1, "victim"), l.v4)
	harness.Within(t, l.Lab, l.a, func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: testbed.Addr4(2).AsSlice(), Mask: net.CIDRMask(32, 32)}, Gw: gateway.AsSlice()})
	})
	var at *net.UDPConn
	harness.Within(t, l.Lab, l.b, func() (err error) {
		at, err = net.ListenUDP("udp4", &net.UDPAddr{IP: l.v4.AsSlice()})
		return err
	})
	defer at.Close()
	port := at.LocalAddr().(*net.UDPAddr).Port
	// The inner packet, with a UDP checksum of zero, which means none.
	inner := []byte{0x45, 0, 0, 20 + 8 + 6, 0, 0, 0x40, 0, 64, 17, 0, 0}
	inner = append(append(inner, victim.AsSlice()...), l.v4.AsSlice()...)
	binary.BigEndian.PutUint16(inner[10:], ^checksum.Sum(inner))
	inner = append(inner, 0, 9, byte(port>>8), byte(port), 0, 8+6, 0, 0)
	inner = append(inner, "forged"...)
	harness.Within(t, l.Lab, l.a, func() error {
		c, err := net.Dial("ip4:4", testbed.Addr4(2).String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(inner)
		return err
	})
	harness.Within(t, l.Lab, l.a, func() error {
		c, err := net.Dial("udp4", netip.AddrPortFrom(l.v4, uint16(port)).String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("honest"))
		return err
	})
	_ = at.SetReadDeadline(time.Now().Add(harness.Timeout))
	b := make([]byte, 100)
	if n, from, err := at.ReadFromUDPAddrPort(b); err != nil || string(b[:n]) != "honest" {
		t.Errorf("b got %q from %s, %v", b[:n], from, err)
	}
}
