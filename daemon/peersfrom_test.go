package daemon

import (
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/netdev/nstest"
)

func TestContainersAreNoPeers(t *testing.T) {
	pfx := netip.MustParsePrefix
	networks, err := []netip.Prefix{pfx("172.17.0.0/16"), pfx("10.1.0.7/32")}, error(nil)
	p := &peersFrom{
		allowed: []netip.Prefix{pfx("172.17.5.0/24")}, ranges: []netip.Prefix{pfx("10.32.0.0/12"), pfx("fd00::/64")},
		list: func() ([]netip.Prefix, error) { return networks, err }, log: slog.New(slog.DiscardHandler),
	}
	check := func(addr string, allowed bool) {
		t.Helper()
		if got := p.refuse(netip.MustParseAddr(addr)); (got == nil) != allowed {
			t.Errorf("%s: %v", addr, got)
		}
	}
	for addr, allowed := range map[string]bool{
		"192.0.2.1": true, "10.40.0.1": false, "10.31.255.255": true, "fd00::5": false, "fd00:0:0:1::5": true,
		"172.17.0.2": false, "172.17.5.2": true, "10.1.0.7": false, "10.1.0.8": true,
	} {
		check(addr, allowed)
	}
	// A network that came in the meantime counts; if the list cannot be read, the last one
	// does.
	networks = append(networks, pfx("172.18.0.0/16"))
	p.read = time.Time{}
	check("172.18.0.2", false)
	err = errors.New("no netlink")
	p.read = time.Time{}
	check("172.18.0.2", false)
	check("192.0.2.1", true)
}

// A user may choose a range in which the hosts themselves are.
func TestRangeThatHasTheHostsDoesNotRefuseThem(t *testing.T) {
	host, other := nstest.New(t, "host"), nstest.New(t, "other")
	nstest.Veth(t, 1500, host, "card", netip.MustParsePrefix("10.1.0.1/24"), other, "far", netip.MustParsePrefix("10.1.0.2/24"))
	c := DefaultConfig()
	for _, r := range []string{"10.0.0.0/8", "10.1.0.0/16", "10.32.0.0/12", "10.2.0.0/16"} {
		c.Range = netip.MustParsePrefix(r)
		nstest.In(t, host, func() {
			p := newPeersFrom(c, slog.New(slog.DiscardHandler))
			if err := p.refuse(netip.MustParseAddr("10.1.0.2")); err != nil {
				t.Errorf("range %s: %v", r, err)
			}
		})
	}
	c.Range = netip.MustParsePrefix("10.32.0.0/12")
	nstest.In(t, host, func() {
		if newPeersFrom(c, slog.New(slog.DiscardHandler)).refuse(netip.MustParseAddr("10.32.0.9")) == nil {
			t.Error("a container of another host becomes a peer")
		}
	})
}
