package kernel

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

// packets returns how many frames crossed an interface, GSO packets counted
// once, and their mean length.
func packets(t testing.TB, ns, name string) (n, mean uint64) {
	t.Helper()
	in(t, ns, func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		s := l.Attrs().Statistics
		n = s.RxPackets + s.TxPackets
		mean = (s.RxBytes + s.TxBytes) / max(n, 1)
		return nil
	})
	return n, mean
}

// took checks the mode of the hosts' traffic, and that it crossed the underlay in GSO
// packets in both directions.
func took(t testing.TB, hosts []*host, express bool) {
	t.Helper()
	for _, h := range hosts {
		h.quiet()
		if n, _ := packets(t, h.ns, h.opts.VXLAN); (n < 50) != express {
			t.Errorf("host %d: %d frames crossed the VXLAN device, express is %v", h.id, n, express)
		}
	}
	if _, mean := packets(t, hosts[0].ns, "up1"); mean < 2000 {
		t.Errorf("frames on the underlay have %d bytes in the mean", mean)
	}
}

// countedAs waits until both ends have counted the same, and all of two transfers: the
// last acknowledgement may be on its way.
func (h *host) countedAs(o *host) {
	h.t.Helper()
	eventually(h.t, "the same counts at both ends", func() bool {
		here, there := h.traffic(o.id), o.traffic(h.id)
		return here.TxBytes == there.RxBytes && here.RxBytes == there.TxBytes &&
			here.TxPackets == there.RxPackets && here.RxPackets == there.TxPackets && here.TxBytes >= 2*bulk
	})
}

func TestDevicePath(t *testing.T) {
	for name, l := range map[string]lab{"IPv4": {}, "IPv6": {v6: true}, "clsact": {noTCX: true}} {
		t.Run(name, func(t *testing.T) {
			hosts := newLab(t, 2, l)
			a, b := hosts[0], hosts[1]
			a.reaches(b, 1000)
			a.streams(b)
			took(t, hosts, false)
			a.countedAs(b)
		})
	}
}

func TestExpress(t *testing.T) {
	for name, l := range map[string]lab{"TCX": {express: true}, "clsact": {express: true, noTCX: true}} {
		t.Run(name, func(t *testing.T) {
			hosts := newLab(t, 2, l)
			a, b := hosts[0], hosts[1]
			a.reaches(b, 1000)
			a.streams(b)
			took(t, hosts, true)
			a.countedAs(b)
		})
	}
}

// TestBridged lets frames cross the bridge, where rules may see them, and bypass the
// VXLAN device.
func TestBridged(t *testing.T) {
	for name, l := range map[string]lab{"TCX": {}, "clsact": {noTCX: true}} {
		l.express, l.bridged = true, true
		t.Run(name, func(t *testing.T) {
			hosts := newLab(t, 2, l)
			a, b := hosts[0], hosts[1]
			for _, h := range hosts {
				h.do(testbed.FilterBridged)
			}
			a.reaches(b, 1000)
			a.streams(b)
			took(t, hosts, true)
			for _, h := range hosts {
				h.do(func() error {
					n, err := testbed.FilteredBytes()
					if err == nil && n < 2*bulk {
						err = fmt.Errorf("host %d: the rule saw %d bytes", h.id, n)
					}
					return err
				})
			}
			a.countedAs(b)
			if s := a.entry(b.mac); s.TxBytes < bulk {
				t.Errorf("counted %+v", s)
			}
		})
	}
}

// TestMixedEnds has one end in express mode and the other in bridged or device mode: the
// bytes on the wire are the same.
func TestMixedEnds(t *testing.T) {
	for name, other := range map[string]func(*host) error{
		"bridged": func(h *host) error { return h.SetExpress(false) },
		"device": func(h *host) error {
			o := 3 - h.id
			var e PeerEntry
			if err := h.Datapath.c.Peers.Lookup(uint32(o), &e); err != nil {
				return err
			}
			e.Flags &^= PeerExpress | PeerDirect
			return h.PutPeer(o, e)
		},
	} {
		t.Run(name, func(t *testing.T) {
			hosts := newLab(t, 2, lab{express: true})
			a, b := hosts[0], hosts[1]
			if err := other(b); err != nil {
				t.Fatal(err)
			}
			a.reaches(b, 1000)
			a.streams(b)
			b.streams(a)
			a.quiet()
			b.quiet()
		})
	}
}

// TestExpressLocal has two containers of one host.
func TestExpressLocal(t *testing.T) {
	h := newHost(t, 1, lab{express: true})
	o := &host{t: t, id: 9, c: nstest.New(t, "c9")}
	o.mac, o.veth = h.container(o.c, "ethwe", o.addr(), o.addr6())
	if err := h.AttachContainer(o.veth); err != nil {
		t.Fatal(err)
	}
	h.putMAC(h.mac, 1, uint32(h.veth), true)
	h.putMAC(o.mac, 1, uint32(o.veth), true)
	h.reaches(o, 1000)
	h.streams(o)
	if e := h.entry(o.mac); e.RxBytes < 2*bulk || e.TxBytes < 2*bulk {
		t.Errorf("counted %+v", e)
	}
	h.quiet()
}

func TestRelay(t *testing.T) {
	for name, l := range map[string]lab{"device": {}, "express": {express: true}, "IPv6": {v6: true}} {
		t.Run(name, func(t *testing.T) {
			hosts := newLab(t, 3, l)
			a, b, c := hosts[0], hosts[1], hosts[2]
			a.reaches(c, 1000)
			a.streams(c)
			for _, h := range hosts {
				h.quiet()
			}
			if to, back := b.traffic(3), b.traffic(1); to.RelayedBytes < 2*bulk || back.RelayedBytes < 2*bulk || to.TxPackets != 0 {
				t.Errorf("counted %+v, %+v", to, back)
			}
		})
	}
}

// offloads switches off segmentation and checksum offload of an interface.
func offloads(t testing.TB, ns, name string) {
	t.Helper()
	in(t, ns, func() error {
		for _, cmd := range []uint32{unix.ETHTOOL_STSO, unix.ETHTOOL_SGSO, unix.ETHTOOL_STXCSUM, unix.ETHTOOL_SSG} {
			if err := setOffload(name, cmd, false); err != nil {
				return err
			}
		}
		return nil
	})
}

// TestForwardAfterExpress forwards frames that express delivered by interfaces without
// offloads: the traces of express in a GSO packet must not mislead segmentation.
func TestForwardAfterExpress(t *testing.T) {
	newPair := func(t *testing.T) (a, b *host) {
		hosts := newLab(t, 2, lab{express: true})
		return hosts[0], hosts[1]
	}
	hostEnd := func(h *host) (name string) {
		h.do(func() error {
			l, err := netlink.LinkByIndex(h.veth)
			if err == nil {
				name = l.Attrs().Name
			}
			return err
		})
		return name
	}

	t.Run("veth without offloads", func(t *testing.T) {
		a, b := newPair(t)
		offloads(t, b.c, "ethwe")
		offloads(t, b.ns, hostEnd(b))
		a.reaches(b, 1000)
		a.streams(b)
		a.quiet()
	})

	t.Run("underlay without offloads", func(t *testing.T) {
		a, b := newPair(t)
		offloads(t, a.ns, "up1")
		offloads(t, b.ns, "up1")
		a.reaches(b, 1000)
		a.streams(b)
		a.quiet()
	})

	t.Run("container that routes", func(t *testing.T) {
		a, b := newPair(t)
		far := nstest.New(t, "far")
		nstest.Veth(t, 1500, b.c, "in", netip.MustParsePrefix("10.99.0.1/24"), far, "out", netip.MustParsePrefix("10.99.0.2/24"))
		nstest.Veth(t, 1500, b.c, "in6", netip.MustParsePrefix("fd99::1/64"), far, "out6", netip.MustParsePrefix("fd99::2/64"))
		offloads(t, b.c, "in")
		offloads(t, b.c, "in6")
		route := func(ns, dev, dst, via string) {
			in(t, ns, func() error {
				l, err := netlink.LinkByName(dev)
				if err != nil {
					return err
				}
				p := netip.MustParsePrefix(dst)
				return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(via),
					Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}})
			})
		}
		in(t, b.c, func() error {
			for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
				if err := os.WriteFile("/proc/sys/net/"+key, []byte("1"), 0o644); err != nil {
					return err
				}
			}
			return nil
		})
		route(a.c, "ethwe", "10.99.0.0/24", b.addr().String())
		route(a.c, "ethwe", "fd99::/64", b.addr6().String())
		route(far, "out", a.addr().String()+"/32", "10.99.0.1")
		route(far, "out6", a.addr6().String()+"/128", "fd99::1")
		for _, p := range [][2]netip.Addr{{a.addr(), netip.MustParseAddr("10.99.0.2")}, {a.addr6(), netip.MustParseAddr("fd99::2")}} {
			if err := echo(t, a.c, p[0], far, p[1], 1000, timeout); err != nil {
				t.Error(p, err)
			}
			transfer(t, a.c, p[0], far, p[1], bulk)
			transfer(t, far, p[1], a.c, p[0], bulk)
		}
		took(t, []*host{a, b}, true)
	})

	t.Run("bridge in the container", func(t *testing.T) {
		a, b := newPair(t)
		deep := nstest.New(t, "deep")
		ip, ip6 := netip.MustParseAddr("10.32.0.77"), netip.MustParseAddr("fd00::77")
		var mac [6]byte
		in(t, b.c, func() error {
			l, err := netlink.LinkByName("ethwe")
			if err != nil {
				return err
			}
			if err := netdev.EnsureBridge("br0", net.HardwareAddr{2, 0, 0, 0, 2, 2}, labMTU, netdev.ProcSys); err != nil {
				return err
			}
			if _, err := netdev.Attach(netdev.Attachment{NS: deep, Iface: "eth0", Bridge: "br0", MTU: labMTU,
				Addrs: []netip.Prefix{netip.PrefixFrom(ip, 12), netip.PrefixFrom(ip6, 64)}}); err != nil {
				return err
			}
			br, err := netlink.LinkByName("br0")
			if err != nil {
				return err
			}
			return netlink.LinkSetMaster(l, br)
		})
		in(t, deep, func() error {
			l, err := netlink.LinkByName("eth0")
			if err == nil {
				mac = [6]byte(l.Attrs().HardwareAddr)
			}
			return err
		})
		in(t, b.c, func() error {
			links, err := netlink.LinkList()
			for _, l := range links {
				if l.Type() == "veth" && l.Attrs().Name != "ethwe" {
					offloads(t, b.c, l.Attrs().Name)
				}
			}
			return err
		})
		b.putMAC(mac, 2, uint32(b.veth), true)
		a.putMAC(mac, 2, 0, false)
		neighbour(t, a.c, "ethwe", mac, ip, ip6)
		neighbour(t, deep, "eth0", a.mac, a.addr(), a.addr6())
		for _, p := range [][2]netip.Addr{{a.addr(), ip}, {a.addr6(), ip6}} {
			// The new bridge may lose what comes while its ports are learned.
			eventually(t, fmt.Sprint("echo between ", p), func() bool { return echo(t, a.c, p[0], deep, p[1], 1000, time.Second) == nil })
			transfer(t, a.c, p[0], deep, p[1], bulk)
			transfer(t, deep, p[1], a.c, p[0], bulk)
		}
		took(t, []*host{a, b}, true)
	})

	t.Run("VXLAN in the container", func(t *testing.T) {
		a, b := newPair(t)
		inner := func(h *host) netip.Addr { return netip.AddrFrom4([4]byte{10, 98, 0, byte(h.id)}) }
		for _, p := range [][2]*host{{a, b}, {b, a}} {
			in(t, p[0].c, func() error {
				attrs := netlink.NewLinkAttrs()
				attrs.Name, attrs.MTU = "vx", labMTU-50
				if err := netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: 5, Port: 4789, SrcAddr: p[0].addr().AsSlice(), Group: p[1].addr().AsSlice()}); err != nil {
					return err
				}
				l, err := netlink.LinkByName("vx")
				if err != nil {
					return err
				}
				ip := &net.IPNet{IP: inner(p[0]).AsSlice(), Mask: net.CIDRMask(24, 32)}
				if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: ip}); err != nil {
					return err
				}
				return netlink.LinkSetUp(l)
			})
		}
		if err := echo(t, a.c, inner(a), b.c, inner(b), 1000, timeout); err != nil {
			t.Error(err)
		}
		transfer(t, a.c, inner(a), b.c, inner(b), bulk)
		transfer(t, b.c, inner(b), a.c, inner(a), bulk)
		a.quiet()
		b.quiet()
	})
}
