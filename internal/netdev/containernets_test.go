package netdev_test

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

func TestContainerNetworks(t *testing.T) {
	host, other := nstest.New(t, "host"), nstest.New(t, "other")
	// The host's own card in these tests is one end of a veth pair, too.
	nstest.Veth(t, 1500, host, "card", pfx("192.0.2.1/24"), other, "far", pfx("192.0.2.2/24"))
	nstest.Veth(t, 1500, host, "vethc1", pfx("10.9.0.1/24"), other, "c1", pfx("10.1.0.2/24"))
	nstest.Veth(t, 1500, host, "vethc2", pfx("10.9.1.1/24"), other, "c2", pfx("10.2.0.2/24"))
	nstest.Veth(t, 1500, host, "pod1", pfx("10.9.2.1/24"), other, "p1", pfx("10.9.2.2/24"))
	do(t, host, func() error {
		if err := netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "vm0"}, Mode: netlink.TUNTAP_MODE_TAP}); err != nil {
			return err
		}
		for _, c := range []string{
			"addr flush dev vethc1", "addr flush dev vethc2", "addr flush dev pod1",
			"link add docker0 type bridge", "addr add 172.17.0.1/16 dev docker0", "link set docker0 up",
			"link add weft type bridge", "addr add 10.40.0.1/24 dev weft",
			"link add kind9 type bridge", "addr add 10.1.0.1/24 dev kind9", "link set vethc1 master kind9",
			"link add uplink type bridge", "addr add 198.51.100.1/24 dev uplink", "link set vethc2 master uplink",
			"link set vm0 master uplink",
			"link add empty type bridge", "addr add 203.0.113.1/24 dev empty",
			"link set pod1 up", "route add 10.3.0.7/32 dev pod1", "route add 10.4.0.0/24 dev pod1",
		} {
			if out, err := exec.Command("ip", strings.Fields(c)...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %s: %w: %s", c, err, out)
			}
		}
		got, err := netdev.ContainerNetworks("weft")
		if err != nil {
			return err
		}
		slices.SortFunc(got, func(a, b netip.Prefix) int { return strings.Compare(a.String(), b.String()) })
		want := []netip.Prefix{pfx("10.1.0.0/24"), pfx("10.3.0.7/32"), pfx("10.40.0.0/24"), pfx("172.17.0.0/16")}
		if !slices.Equal(got, want) {
			t.Errorf("networks %v, want %v", got, want)
		}
		return nil
	})
}
