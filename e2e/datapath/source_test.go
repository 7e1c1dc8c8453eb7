package datapath

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
)

// A host listens on an address that its routes do not use as a source. Its peers only know that
// address, so the packets of the fast datapath come from it, too.
func TestFastDatapathFromTheAddressOfTheRouter(t *testing.T) {
	t.Parallel()
	lab := harness.New(t, testbed.Config{Hosts: 2})
	loopback := netip.MustParseAddr("198.51.100.1")
	harness.Within(t, lab, harness.At(1, ""), func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: loopback.AsSlice(), Mask: net.CIDRMask(32, 32)}})
	})
	harness.Within(t, lab, harness.At(2, ""), func() error {
		return netlink.RouteAdd(&netlink.Route{
			Dst: &net.IPNet{IP: loopback.AsSlice(), Mask: net.CIDRMask(32, 32)}, Gw: testbed.Addr4(1).AsSlice(),
		})
	})
	harness.Launch(t, lab, 1, "--host", loopback.String())
	harness.Launch(t, lab, 2, loopback.String())
	harness.Converge(t, lab)
	harness.AddContainer(t, lab, 1, "a")
	b := harness.AddContainer(t, lab, 2, "b")[0].Addr()
	harness.FastdpBetween(t, lab, 1, 2)
	harness.Reach(t, lab, harness.At(1, "a"), b)
}
