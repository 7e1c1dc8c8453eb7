package mesh

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-net/weft/mesh/topology"
)

func TestMembersAreDialledOnlyAtAddressesOfOtherHosts(t *testing.T) {
	t.Parallel()
	refused := netip.MustParsePrefix("10.32.0.0/12")
	m := &Mesh{cfg: Config{Refuse: func(a netip.Addr) error {
		if refused.Contains(a) {
			return errors.New("a container")
		}
		return nil
	}}}
	m.hostAddrs.own.Store(&map[netip.Addr]bool{netip.MustParseAddr("192.0.2.7"): true, broadcastOf(netip.MustParsePrefix("192.0.2.7/26")): true})
	for s, want := range map[string]bool{
		"192.0.2.8:6783": true, "[2001:db8::1]:6783": true, "198.51.100.3:1": true,
		"192.0.2.8:0": false, "192.0.2.7:6783": false, "192.0.2.7:22": false, "192.0.2.63:6783": false, "192.0.2.62:6783": true,
		"127.0.0.1:6783": false, "127.9.9.9:1": false, "[::1]:6783": false, "0.0.0.0:1": false, "[::]:1": false,
		"224.0.0.1:1": false, "[ff02::1]:1": false, "169.254.169.254:80": false, "[fe80::1]:6783": false, "255.255.255.255:1": false,
		"10.33.0.1:6783": false, "[fe80::1%eth0]:1": false,
	} {
		if got := m.dialable(netip.MustParseAddrPort(s)); got != want {
			t.Errorf("%s: dialled: %t", s, got)
		}
	}
	for _, targets := range [][]string{{"127.0.0.1"}, {"h1", "localhost:7000"}, {"[::1]:6783"}} {
		m.allowLoopback(targets)
		if !m.dialable(netip.MustParseAddrPort("127.0.0.1:6783")) {
			t.Errorf("with targets %q no member is dialled on loopback", targets)
		}
	}
	m.allowLoopback([]string{"192.0.2.1", "h1"})
	if m.dialable(netip.MustParseAddrPort("127.0.0.1:6783")) {
		t.Error("a member is dialled on loopback although no target is there")
	}
}

// A member states an address of a service on the loopback of another host, which does not
// even consider it.
func TestLyingMemberDoesNotMakeOthersDialTheirOwnHost(t *testing.T) {
	t.Parallel()
	lie := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:6379")}
	a := start(t, func(c *Config) { c.dialLoopback = false })
	evil := start(t, func(c *Config) { c.Advertise = lie }, to(a))
	eventually(t, "a sees the lie", func() bool {
		e := a.View().byName[evil.Self()]
		return a.sees(evil) && e != nil && slices.Equal(e.Addrs, lie)
	})
	if c := a.Status().Candidates; len(c) != 0 {
		t.Errorf("a dials %+v", c)
	}
}

// The addresses at which a peer is dialled come from its signed entry. Entries without a
// session are dialled, whatever the member list says.
func TestAddressesTravelInTheSignedEntry(t *testing.T) {
	t.Parallel()
	a := start(t, noDiscovery)
	b := start(t, noDiscovery, to(a))
	c := start(t, to(b))
	eventually(t, "c has a session with a, which it knows only from its entry", func() bool {
		return c.direct(a.Self()) != nil
	})
	e := c.View().byName[a.Self()]
	if !slices.Contains(e.Addrs, netip.MustParseAddrPort(a.addr())) || len(e.Addrs) > topology.MaxAddrs {
		t.Errorf("entry with the addresses %v", e.Addrs)
	}
}
