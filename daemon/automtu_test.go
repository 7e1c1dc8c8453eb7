package daemon

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/plan"
)

// --mtu auto is the MTU of the underlay without what the encapsulations of the settings may add.
func TestAutoMTU(t *testing.T) {
	host, far := nstest.New(t, "host"), nstest.New(t, "far")
	auto := func(change func(*Config)) (mtu int, err error) {
		t.Helper()
		c := DefaultConfig()
		c.MTU, c.StateDir = AutoMTU, t.TempDir()
		change(c)
		bad := netdev.Do(host, func() error { err = c.Check(); return nil })
		if bad != nil {
			t.Fatal(bad)
		}
		return c.MTU, err
	}
	if _, err := auto(func(*Config) {}); err == nil || !strings.Contains(err.Error(), "--mtu auto: this host has no default route") {
		t.Errorf("without a default route: %v", err)
	}
	nstest.Veth(t, 1400, host, "up0", netip.MustParsePrefix("192.0.2.1/24"), far, "up0", netip.MustParsePrefix("192.0.2.2/24"))
	if err := netdev.Do(host, func() error { return netlink.RouteAdd(&netlink.Route{Gw: net.IPv4(192, 0, 2, 2)}) }); err != nil {
		t.Fatal(err)
	}
	to := func(e plan.Encaps, noVXLAN bool) []fastpath.EncapsTo {
		return []fastpath.EncapsTo{{Encaps: e, NoVXLAN: noVXLAN}}
	}
	for _, c := range []struct {
		what   string
		change func(*Config)
		want   int
	}{
		{"VXLAN may be needed", func(*Config) {}, 1400 - 50},
		{"a password", func(c *Config) { c.Passwords = []string{"a long password"} }, 1400 - 110},
		{"none", func(c *Config) { c.Fast.Encaps, c.NoVXLAN = plan.Encaps{plan.None}, true }, 1400},
		{"none or IPIP", func(c *Config) { c.Fast.Encaps, c.NoVXLAN = plan.Auto, true }, 1400 - 20},
		{"none, and to some peers IPIP", func(c *Config) {
			c.Fast.Encaps, c.NoVXLAN, c.Fast.EncapsTo = plan.Encaps{plan.None}, true, to(plan.Auto, true)
		}, 1400 - 20},
		{"none or IPIP, and to some peers none", func(c *Config) {
			c.Fast.Encaps, c.NoVXLAN, c.Fast.EncapsTo = plan.Auto, true, to(plan.Encaps{plan.None}, true)
		}, 1400 - 20},
		{"none, and to some peers VXLAN", func(c *Config) {
			c.Fast.Encaps, c.NoVXLAN, c.Fast.EncapsTo = plan.Encaps{plan.None}, true, to(plan.Encaps{plan.None}, false)
		}, 1400 - 50},
		{"none, but no express", func(c *Config) { c.Fast.Encaps, c.NoVXLAN, c.Fast.NoExpress = plan.Encaps{plan.None}, true, true }, 1400 - 50},
	} {
		if got, err := auto(c.change); err != nil || got != c.want {
			t.Errorf("%s: %d, %v, want %d", c.what, got, err, c.want)
		}
	}
}
