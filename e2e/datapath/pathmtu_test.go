package datapath

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/checksum"
	"github.com/weft-net/weft/internal/lab/testbed"
)

// tooBig is an ICMP message that says that a UDP packet of sleeve did not fit (RFC 1191).
func tooBig(from, to netip.Addr, mtu int) ([]byte, error) {
	quote := make([]byte, 28)
	quote[0], quote[6], quote[8], quote[9] = 0x45, 0x40, 64, 17
	binary.BigEndian.PutUint16(quote[2:], 1500)
	copy(quote[12:], from.AsSlice())
	copy(quote[16:], to.AsSlice())
	binary.BigEndian.PutUint16(quote[10:], ^checksum.Sum(quote[:20]))
	binary.BigEndian.PutUint16(quote[20:], 6783)
	binary.BigEndian.PutUint16(quote[22:], 6783)
	binary.BigEndian.PutUint16(quote[24:], 1480)
	return (&icmp.Message{Type: ipv4.ICMPTypeDestinationUnreachable, Code: 4, Body: &icmp.RawBody{
		Data: append(binary.BigEndian.AppendUint32(nil, uint32(mtu)), quote...),
	}}).Marshal(nil)
}

// pathMTU returns the MTU of the path to an address as the kernel of a host knows it, 0 if it
// is that of the interface.
func pathMTU(t *testing.T, lab *testbed.Lab, host int, to netip.Addr) (mtu int) {
	t.Helper()
	harness.Within(t, lab, harness.At(host, ""), func() error {
		routes, err := netlink.RouteGet(to.AsSlice())
		if err == nil && len(routes) == 0 {
			err = errors.New("no route")
		}
		if err == nil {
			mtu = routes[0].MTU
		}
		return err
	})
	return mtu
}

// fragments returns how many fragments the kernel of a host has made of IPv4 packets.
func fragments(t *testing.T, lab *testbed.Lab, host int) (n int) {
	t.Helper()
	harness.Within(t, lab, harness.At(host, ""), func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		lines := strings.SplitN(string(b), "\n", 3)
		names, values := strings.Fields(lines[0]), strings.Fields(lines[1])
		n, err = strconv.Atoi(values[slices.Index(names, "FragCreates")])
		return err
	})
	return n
}

// A container makes the kernel of its host believe that the path to another host is narrow.
// Answers to it that are larger than its MTU do the same. The fast datapath does not obey.
func TestContainersCannotNarrowThePath(t *testing.T) {
	t.Parallel()
	for _, m := range modes(t) {
		if m.name == "sleeve" {
			continue // its packets are not larger than sleeve found
		}
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			lab, b := m.up(t, 2)
			h1, h2 := testbed.Addr4(1), testbed.Addr4(2)
			gateway, err := netip.ParseAddr(strings.TrimSpace(harness.Weft(t, lab, 2, "expose")))
			if err != nil {
				t.Fatal(err)
			}
			harness.Within(t, lab, harness.At(2, "b"), func() error {
				to := &net.IPNet{IP: h2.AsSlice(), Mask: net.CIDRMask(32, 32)}
				if err := netlink.RouteAdd(&netlink.Route{Dst: to, Gw: gateway.AsSlice()}); err != nil {
					return err
				}
				c, err := icmp.ListenPacket("ip4:icmp", "0.0.0.0")
				if err != nil {
					return err
				}
				defer c.Close()
				message, err := tooBig(h2, h1, 1376)
				if err == nil {
					_, err = c.WriteTo(message, &net.IPAddr{IP: h2.AsSlice()})
				}
				return err
			})
			harness.Eventually(t, "the kernel believes it", func() bool { return pathMTU(t, lab, 2, h1) == 1376 })
			p, err := testbed.NewPinger(lab.Netns(harness.At(1, "a")), b)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			before := fragments(t, lab, 2)
			begun := time.Now()
			harness.Eventually(t, "full-size frames pass for a while", func() bool {
				if err := harness.Answered(t, p, 1376-28); err != nil {
					t.Fatal(err)
				}
				for h := 1; h <= 2; h++ {
					if k := harness.Link(t, lab, h, harness.At(3-h, "").String()); k.Kind != "fastdp" {
						t.Fatalf("h%d uses %s: %s", h, k.Kind, k.Info)
					}
				}
				return time.Since(begun) > 5*time.Second
			})
			if n := fragments(t, lab, 2) - before; n != 0 {
				t.Errorf("h2 sent %d fragments", n)
			}
			harness.Weft(t, lab, 2, "reset")
			harness.Within(t, lab, harness.At(2, ""), func() error {
				rules, err := netlink.RuleList(netlink.FAMILY_ALL)
				for _, r := range rules {
					if r.Priority != 0 && r.Table != unix.RT_TABLE_MAIN && r.Table != unix.RT_TABLE_DEFAULT {
						t.Errorf("reset leaves the routing rule %v", r)
					}
				}
				return err
			})
		})
	}
}
