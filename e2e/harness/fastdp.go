package harness

import (
	"net/netip"
	"testing"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/router/wireguard"
)

// HasWireGuard reports whether this kernel can make WireGuard interfaces. If it cannot, frames use
// sleeve where a password is set.
func HasWireGuard(t *testing.T) bool {
	t.Helper()
	var err error
	nstest.In(t, nstest.New(t, "wg"), func() {
		var d *wireguard.Device
		if d, err = wireguard.Open(wireguard.Config{Name: "wg", MTU: 1400, Inside: netip.MustParsePrefix("169.254.208.0/20")}); err == nil {
			d.Close()
		}
	})
	if err != nil && err.Error() != "this kernel has no WireGuard" {
		t.Fatal(err)
	}
	return err == nil
}

// Link returns the connection of a host to another, by nickname.
func Link(t *testing.T, lab *testbed.Lab, host int, to string) api.Connection {
	t.Helper()
	for _, c := range Report(t, lab, host).Router.Connections {
		if c.NickName == to && c.State == api.StateEstablished {
			return c
		}
	}
	return api.Connection{}
}

// FastdpBetween waits until both ends use the fast datapath.
func FastdpBetween(t *testing.T, lab *testbed.Lab, a, b int) {
	t.Helper()
	Eventually(t, "fast datapath", func() bool {
		return Link(t, lab, a, At(b, "").String()).Kind == "fastdp" && Link(t, lab, b, At(a, "").String()).Kind == "fastdp"
	})
}
