package router_test

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/weft-net/weft/router/link"
	"golang.org/x/sys/unix"
)

// TestAStuckPeerHoldsUpNobody: whatever is wrong with the way to one peer, what
// goes to another is neither lost nor late.
//
//	c0 .. h0 ==== h1 ==x== h2 .. c2         c1 of h1 sends to both
func TestAStuckPeerHoldsUpNobody(t *testing.T) {
	towards := func(h *host, f func(l netlink.Link) error) {
		h.do(func() error {
			l, err := netlink.LinkByName("up1")
			if err != nil {
				return err
			}
			return f(l)
		})
	}
	route := func(kind int) func(t *testing.T, near, far *host) {
		return func(t *testing.T, near, _ *host) {
			to := &net.IPNet{IP: net.IPv4(192, 0, 3, 2).To4(), Mask: net.CIDRMask(32, 32)}
			near.do(func() error { return netlink.RouteAdd(&netlink.Route{Dst: to, Type: kind}) })
		}
	}
	for _, c := range []struct {
		what  string
		stick func(t *testing.T, near, far *host)
	}{
		{"it is not found", func(t *testing.T, near, far *host) {
			towards(far, func(l netlink.Link) error {
				a, err := netlink.ParseAddr("192.0.3.2/24")
				return errors.Join(err, netlink.AddrDel(l, a))
			})
			towards(near, func(l netlink.Link) error {
				return netlink.NeighDel(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: net.IPv4(192, 0, 3, 2)})
			})
		}},
		{"its route swallows", route(unix.RTN_BLACKHOLE)},
		{"its route is forbidden", route(unix.RTN_PROHIBIT)},
		{"its router is gone", func(_ *testing.T, _, far *host) { far.stop() }},
		{"its router reads nothing", func(t *testing.T, _, far *host) {
			at := far.LocalAddr()
			far.stop()
			far.do(func() error {
				c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
				if err == nil {
					t.Cleanup(func() { c.Close() })
				}
				return err
			})
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			hosts := newHosts(t, 3, options{mtu: 1376, underlayMTU: 1500})
			far, near, stuck := hosts[0], hosts[1], hosts[2]
			for i, h := range []*host{far, stuck} {
				at := []netip.Addr{addr(0).Addr(), addr(2).Addr()}[i]
				echo(t, near, h, addr(1).Addr(), at, 1000)
				near.pin(h, at)
			}
			good, bad := newFlow(t, near, far, addr(1).Addr(), addr(0).Addr()), newFlow(t, near, stuck, addr(1).Addr(), addr(2).Addr())
			for _, f := range []*flow{good, bad} {
				if err := f.whole(); err != nil {
					t.Fatalf("before: %v", err)
				}
			}
			before, _ := near.Link(far.name)
			c.stick(t, near, stuck)
			for i := range 50 {
				// 400 KB for it, so 20 MB in all, more than any buffer holds.
				for range 8 {
					bad.send()
				}
				if err := good.whole(); err != nil {
					t.Fatalf("train %d to another: %v; %+v", i, err, near.Status())
				}
			}
			after, _ := near.Link(far.name)
			if after.State != link.Established || !maps.Equal(before.Drops, after.Drops) {
				t.Errorf("the other link was %+v and is %+v", before, after)
			}
		})
	}
}
