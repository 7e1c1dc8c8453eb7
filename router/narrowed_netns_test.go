package router_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/router"
)

// TestNarrowedPath: a port of a bridge of the underlay gets a smaller MTU while traffic
// flows. The bridge drops single packets that are too large, and passes what the kernel
// segments later, so a probe must be a packet of its own.
//
//	h0 ==== bridge ==x== h1
func TestNarrowedPath(t *testing.T) {
	wire := nstest.New(t, "wire")
	port := func(i int) string { return fmt.Sprint("port", i) }
	bridged := func(a, b *host) {
		for i, h := range []*host{a, b} {
			nstest.Veth(t, 1500, wire, port(i), netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)}), 32), h.ns, "up0", netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 24))
		}
		if err := netdev.Do(wire, func() error {
			br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br"}}
			if err := errors.Join(netlink.LinkAdd(br), netlink.LinkSetUp(br)); err != nil {
				return err
			}
			for i := range 2 {
				l, err := netlink.LinkByName(port(i))
				if err := errors.Join(err, netlink.LinkSetMaster(l, br)); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		at := func(h *host, i byte) netip.AddrPort {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, i}), h.LocalAddr().Port())
		}
		a.NeighbourUp(router.Neighbour{Name: b.name, Addr: at(b, 2), Dialled: true})
		b.NeighbourUp(router.Neighbour{Name: a.name, Addr: at(a, 1)})
	}
	hosts := newHosts(t, 2, options{mtu: 1376, join: bridged})
	const overhead = 71
	for _, h := range hosts {
		h.settle(1500 - overhead)
	}
	if err := netdev.Do(wire, func() error {
		l, err := netlink.LinkByName(port(1))
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(l, 1300)
	}); err != nil {
		t.Fatal(err)
	}
	src, dst := hosts[0].listen(addr(0).Addr()), hosts[1].listen(addr(1).Addr())
	begun := time.Now()
	receive(t, src, dst, 100) // traffic, so that the size is checked
	hosts[0].settle(1300 - overhead)
	if took := time.Since(begun); took > 15*time.Second {
		t.Errorf("the smaller MTU was found after %v", took)
	}
	setPathDiscovery(t, src, false)
	receive(t, src, dst, 1300)
}
