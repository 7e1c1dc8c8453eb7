package netdev_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

// exposedHost is a host with a container on the bridge and an uplink to an outside host
// that has a route to the container's subnet.
//
//	c 10.32.0.2 --- weft 10.32.0.1  host  192.0.2.1 --- 192.0.2.2 out
//	c fd00::2   --- weft fd00::1    host  2001:db8::1 - 2001:db8::2 out
type exposedHost struct{ host, c, out string }

func newExposed(t *testing.T) exposedHost {
	h := exposedHost{nstest.New(t, "h"), nstest.New(t, "c"), nstest.New(t, "o")}
	nstest.Veth(t, 1500, h.host, "up4", pfx("192.0.2.1/24"), h.out, "up4", pfx("192.0.2.2/24"))
	nstest.Veth(t, 1500, h.host, "up6", pfx("2001:db8::1/64"), h.out, "up6", pfx("2001:db8::2/64"))
	bridge(t, h.host)
	attach(t, h.host, netdev.Attachment{NS: h.c, Iface: "ethwe", Bridge: "weft", MTU: 1376,
		Addrs: []netip.Prefix{pfx("10.32.0.2/24"), pfx("fd00::2/64")}})
	do(t, h.host, func() error {
		for _, v6 := range []bool{false, true, true} {
			if _, err := netdev.ProcSys.EnableForwarding(v6); err != nil {
				return err
			}
		}
		return nil
	})
	route := func(ns, dst, via string) {
		do(t, ns, func() error {
			p := pfx(dst)
			r := &netlink.Route{Gw: netip.MustParseAddr(via).AsSlice(),
				Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
			return netlink.RouteReplace(r)
		})
	}
	h.expose(t, netdev.Exposure{Addr: pfx("10.32.0.1/24")})
	h.expose(t, netdev.Exposure{Addr: pfx("fd00::1/64")})
	route(h.c, "192.0.2.0/24", "10.32.0.1")
	route(h.c, "2001:db8::/64", "fd00::1")
	route(h.out, "10.32.0.0/24", "192.0.2.1")
	route(h.out, "fd00::/64", "2001:db8::1")
	return h
}

func (h exposedHost) expose(t *testing.T, e netdev.Exposure) (added bool) {
	t.Helper()
	do(t, h.host, func() (err error) { added, err = expose("weft", e); return err })
	return added
}

// expose gives a bridge an address, with the rules for it alone, and reports whether it did
// not have the address.
func expose(bridge string, e netdev.Exposure) (added bool, err error) {
	v, err := netdev.ReadView()
	if err != nil {
		return false, err
	}
	a := netdev.BridgeAddress{Bridge: bridge, Addr: e.Addr}
	return len(a.Faults(v)) > 0, errors.Join(a.Ensure(), netdev.ExposeRules{Bridge: bridge, All: []netdev.Exposure{e}}.Ensure())
}

// reconcile writes the rules of exposures, and reports whether they were others.
func reconcile(bridge string, all []netdev.Exposure) (rebuilt bool, err error) {
	r := netdev.ExposeRules{Bridge: bridge, All: all}
	faults, err := r.Faults()
	return len(faults) > 0, errors.Join(err, r.Ensure())
}

// sourceSeen sends a datagram from one namespace to an address in another and returns
// the source address that the receiver sees.
func sourceSeen(t *testing.T, from, to, addr string) string {
	t.Helper()
	return sourceSeenBy(t, from, addr, to, addr)
}

// sourceSeenBy is sourceSeen for a datagram whose destination is translated: it is sent
// to asked and arrives at addr.
func sourceSeenBy(t *testing.T, from, asked, to, addr string) string {
	t.Helper()
	var l *net.UDPConn
	do(t, to, func() (err error) {
		l, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 0)))
		return err
	})
	defer l.Close()
	do(t, from, func() error {
		server := l.LocalAddr().(*net.UDPAddr)
		c, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.ParseIP(asked), Port: server.Port})
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("hello"))
		return err
	})
	if err := l.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		t.Fatal(err)
	}
	_, src, err := l.ReadFromUDPAddrPort(make([]byte, 10))
	if err != nil {
		t.Fatalf("to %s: %v", addr, err)
	}
	return src.Addr().Unmap().String()
}

func (h exposedHost) check(t *testing.T, what string, want ...string) {
	t.Helper()
	got := []string{
		sourceSeen(t, h.c, h.out, "192.0.2.2"), sourceSeen(t, h.out, h.c, "10.32.0.2"),
		sourceSeen(t, h.c, h.out, "2001:db8::2"), sourceSeen(t, h.out, h.c, "fd00::2"),
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: sources seen %v, want %v", what, got, want)
	}
}

// flushRules flushes all nftables rules, as other programs do now and then.
func flushRules(t *testing.T, ns string) {
	t.Helper()
	do(t, ns, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.FlushRuleset()
		return c.Flush()
	})
}

func TestMasqueradeTranslatesBothDirections(t *testing.T) {
	h := newExposed(t)
	h.check(t, "without masquerade", "10.32.0.2", "192.0.2.2", "fd00::2", "2001:db8::2")
	all := []netdev.Exposure{{Addr: pfx("10.32.0.1/24"), Masquerade: true}, {Addr: pfx("fd00::1/64"), Masquerade: true}}
	rewrite := func(all []netdev.Exposure) (rebuilt bool) {
		do(t, h.host, func() (err error) { rebuilt, err = reconcile("weft", all); return err })
		return rebuilt
	}
	masked := []string{"192.0.2.1", "10.32.0.1", "2001:db8::1", "fd00::1"}
	if !rewrite(all) {
		t.Error("Reconcile did not write new rules")
	}
	h.check(t, "with masquerade", masked...)
	if rewrite(all) {
		t.Error("unchanged rules were written again")
	}
	flushRules(t, h.host)
	h.check(t, "flushed by others", "10.32.0.2", "192.0.2.2", "fd00::2", "2001:db8::2")
	if !rewrite(all) {
		t.Error("Reconcile did not notice a flush")
	}
	h.check(t, "rebuilt", masked...)
}

// With KeepClients a container sees the address of the client if the host translated the
// destination; all other packets are masqueraded as without.
func TestExposeKeepsClients(t *testing.T) {
	h := newExposed(t)
	all := []netdev.Exposure{
		{Addr: pfx("10.32.0.1/24"), Masquerade: true, KeepClients: true},
		{Addr: pfx("fd00::1/64"), Masquerade: true, KeepClients: true},
	}
	do(t, h.host, func() error { _, err := reconcile("weft", all); return err })
	h.check(t, "untranslated", "192.0.2.1", "10.32.0.1", "2001:db8::1", "fd00::1")
	do(t, h.host, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Name: "services", Family: nftables.TableFamilyIPv4})
		for _, hook := range []*nftables.ChainHook{nftables.ChainHookPrerouting, nftables.ChainHookOutput} {
			chain := c.AddChain(&nftables.Chain{
				Name: fmt.Sprintf("hook-%d", *hook), Table: table, Type: nftables.ChainTypeNAT,
				Hooknum: hook, Priority: nftables.ChainPriorityNATDest,
			})
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{192, 0, 2, 1}},
				&expr.Immediate{Register: 1, Data: []byte{10, 32, 0, 2}},
				&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
			}})
		}
		return c.Flush()
	})
	if got := sourceSeenBy(t, h.out, "192.0.2.1", h.c, "10.32.0.2"); got != "192.0.2.2" {
		t.Errorf("the container sees %s for a client from outside, want 192.0.2.2", got)
	}
	if got := sourceSeenBy(t, h.host, "192.0.2.1", h.c, "10.32.0.2"); got != "10.32.0.1" {
		t.Errorf("the container sees %s for the host, want 10.32.0.1", got)
	}
}

func TestHideUndoesExpose(t *testing.T) {
	h := newExposed(t)
	e := netdev.Exposure{Addr: pfx("10.40.0.1/24"), Masquerade: true}
	if !h.expose(t, e) || h.expose(t, e) {
		t.Error("exposing is not idempotent")
	}
	conn := func(f func(c *nftables.Conn)) {
		do(t, h.host, func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			f(c)
			return c.Flush()
		})
	}
	// Other chains of the table and other tables stay.
	conn(func(c *nftables.Conn) {
		tb := c.AddTable(&nftables.Table{Name: "weft", Family: nftables.TableFamilyINet})
		c.AddChain(&nftables.Chain{Name: "policy", Table: tb})
		f := c.AddTable(&nftables.Table{Name: "foreign", Family: nftables.TableFamilyINet})
		drop := nftables.ChainPolicyDrop
		c.AddChain(&nftables.Chain{Name: "fwd", Table: f, Type: nftables.ChainTypeFilter, Policy: &drop,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	})
	hide := func(p string) (removed bool) {
		do(t, h.host, func() (err error) {
			removed, err = netdev.BridgeAddress{Bridge: "weft", Addr: pfx(p)}.Remove()
			return errors.Join(err, netdev.ExposeRules{Bridge: "weft"}.Ensure())
		})
		return removed
	}
	if !hide("10.40.0.1/24") || hide("10.40.0.1/24") {
		t.Error("hiding is not idempotent")
	}
	names := func() (s []string) {
		conn(func(c *nftables.Conn) {
			chains, _ := c.ListChains()
			for _, ch := range chains {
				s = append(s, ch.Table.Name+"/"+ch.Name)
			}
		})
		return s
	}
	if got := fmt.Sprint(names()); got != "[weft/policy foreign/fwd]" && got != "[foreign/fwd weft/policy]" {
		t.Errorf("chains left: %v", got)
	}
	do(t, h.host, func() error {
		addrs, err := netdev.Addresses("weft")
		if len(addrs) != 2 {
			t.Errorf("addresses left: %v", addrs)
		}
		return err
	})
}
