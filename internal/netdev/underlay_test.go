package netdev_test

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

func TestUnderlay(t *testing.T) {
	host := nstest.New(t, "host")
	w := newWatch(t, host)
	index := func(l netlink.Link) (i int) {
		do(t, host, func() error {
			if err := netlink.LinkAdd(l); err != nil {
				return err
			}
			made, err := netlink.LinkByName(l.Attrs().Name)
			if err == nil {
				i = made.Attrs().Index
			}
			return err
		})
		return i
	}
	attrs := func(name string, parent int) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Name, a.ParentIndex = name, parent
		return a
	}
	card := index(&netlink.Veth{LinkAttrs: attrs("card", 0), PeerName: "other"})
	bridge := index(&netlink.Bridge{LinkAttrs: attrs("br0", 0)})
	on := func(name string, parent int) int {
		return index(&netlink.Macvlan{LinkAttrs: attrs(name, parent), Mode: netlink.MACVLAN_MODE_BRIDGE})
	}
	for name, c := range map[string]struct {
		ifindex int
		want    netdev.Underlay
	}{
		"a card":                    {card, netdev.Underlay{Ethernet: true}},
		"a macvlan of a card":       {on("mv0", card), netdev.Underlay{Ethernet: true}},
		"a bridge":                  {bridge, netdev.Underlay{Ethernet: true, Netfilter: true}},
		"a macvlan of a bridge":     {on("mv1", bridge), netdev.Underlay{Ethernet: true, Netfilter: true}},
		"a tunnel of IP packets":    {index(&netlink.Tuntap{LinkAttrs: attrs("tun9", 0), Mode: netlink.TUNTAP_MODE_TUN}), netdev.Underlay{}},
		"an interface that is gone": {9999, netdev.Underlay{Netfilter: true}},
	} {
		got := w.Underlay(c.ifindex)
		if (got.MTU != 0) != (c.ifindex != 9999) {
			t.Errorf("%s: MTU %d", name, got.MTU)
		}
		got.MTU = 0
		if got != c.want {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// Site, "Express and netfilter": packets that IPsec is to encrypt are known by the
// host's policies.
func TestSecured(t *testing.T) {
	host := nstest.New(t, "host")
	w := newWatch(t, host)
	if all, err := w.IPsecPrefixes(); err != nil || len(all) > 0 {
		t.Fatalf("without policies: %v, %v", all, err)
	}
	own, other := "192.0.2.1/32", "198.51.100.0/24"
	policy := func(dir netlink.Dir, src, dst string, proto netlink.Proto, tmpls ...netlink.XfrmPolicyTmpl) {
		t.Helper()
		parse := func(s string) *net.IPNet {
			_, n, err := net.ParseCIDR(s)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		do(t, host, func() error {
			return netlink.XfrmPolicyAdd(&netlink.XfrmPolicy{Dir: dir, Src: parse(src), Dst: parse(dst), Proto: proto, Tmpls: tmpls})
		})
	}
	esp := netlink.XfrmPolicyTmpl{Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TRANSPORT}
	policy(netlink.XFRM_DIR_OUT, own, "203.0.113.1/32", 0)      // lets pass
	policy(netlink.XFRM_DIR_OUT, own, "203.0.113.2/32", 6, esp) // TCP only
	policy(netlink.XFRM_DIR_OUT, own, other, 17, esp)
	policy(netlink.XFRM_DIR_IN, "203.0.113.4/32", own, 0, esp)
	policy(netlink.XFRM_DIR_OUT, own, "203.0.113.5/32", 4, esp) // IPIP
	policy(netlink.XFRM_DIR_OUT, own, "203.0.113.6/32", 41, esp)
	policy(netlink.XFRM_DIR_OUT, "0.0.0.0/0", "0.0.0.0/0", 17, esp)
	got, err := w.IPsecPrefixes()
	want := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix(other), netip.MustParsePrefix("203.0.113.4/32"),
		netip.MustParsePrefix("203.0.113.5/32"), netip.MustParsePrefix("203.0.113.6/32")}
	slices.SortFunc(got, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	if slices.SortFunc(want, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) }); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
}
