package router_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/router"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/plan"
)

// If frames must be encrypted and the host has no tunnel, the VXLAN device of an earlier
// router must go. New returns an error if another program owns an interface of that name.
func TestNewFailsIfTheFastPathCannotBeRemoved(t *testing.T) {
	ns := nstest.New(t, "openfails")
	nstest.In(t, ns, func() {
		if err := netdev.EnsureBridge("weft", []byte{2, 0, 0, 0, 0, 9}, 1376, netdev.ProcSys); err != nil {
			t.Error(err)
			return
		}
		bridge, err := netlink.LinkByName("weft")
		if err != nil {
			t.Error(err)
			return
		}
		// A route that is inside the tunnel's prefix keeps the router from making a tunnel.
		inside, err := netlink.ParseAddr(netip.PrefixFrom(plan.TunnelAddr(1), plan.TunnelPrefix.Bits()+4).String())
		if err != nil {
			t.Error(err)
			return
		}
		if err := netlink.LinkSetUp(bridge); err != nil {
			t.Error(err)
		}
		if err := netlink.AddrAdd(bridge, inside); err != nil {
			t.Error(err)
		}
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: netdev.VXLANName}}); err != nil {
			t.Error(err)
		}
		_, err = router.New(router.Config{
			Bridge: "weft", TAP: "vethwe-tap", MTU: 1376, Sysctls: netdev.ProcSys,
			Fast: &fastpath.Settings{PinDir: t.TempDir() + "/pins", Port: 6784, TunnelPort: 6785, Encrypt: true},
		}, &host{})
		if err == nil || !strings.Contains(err.Error(), netdev.VXLANName) {
			t.Errorf("New: %v, want an error about %s", err, netdev.VXLANName)
		}
	})
}
