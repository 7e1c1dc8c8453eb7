package netdev_test

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

// A container on a network of Docker's own does not reach the switch by the host's address
// on it, though other hosts do. What it was asked from the switch, it answers.
func TestDockerNetworksStayOut(t *testing.T) {
	h := newExposed(t)
	d := nstest.New(t, "d")
	const name = "br-0123456789ab"
	nstest.Veth(t, 1500, h.host, "port", pfx("169.254.9.9/32"), d, "eth0", pfx("172.18.0.2/16"))
	do(t, h.host, func() error {
		l := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
		if err := netlink.LinkAdd(l); err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(172, 18, 0, 1), Mask: net.CIDRMask(16, 32)}}); err != nil {
			return err
		}
		port, err := netlink.LinkByName("port")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(port, l); err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	})
	byHost := func(ns, via string) {
		do(t, ns, func() error { return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(via)}) })
	}
	byHost(d, "172.18.0.1")
	byHost(h.c, "10.32.0.1")

	if got := sourceSeen(t, d, h.c, "10.32.0.2"); got != "172.18.0.2" {
		t.Fatalf("without the rules the source is %s", got)
	}
	var rules netdev.DockerRules
	do(t, h.host, func() error {
		v, err := netdev.ReadView()
		if err != nil {
			return err
		}
		rules = netdev.DockerRulesOf(v, "weft")
		return rules.Ensure()
	})
	if rules.String() != name {
		t.Errorf("the networks of Docker are %q, want %s", rules, name)
	}
	server := listen(t, h.c, "10.32.0.2")
	send(t, d, server.LocalAddr(), "from Docker")
	send(t, h.out, server.LocalAddr(), "from outside")
	if got := receive(t, server); got != "from outside" {
		t.Errorf("the first that arrives is %q", got)
	}
	asked := listen(t, d, "172.18.0.2")
	var client net.Conn
	do(t, h.c, func() (err error) { client, err = net.Dial("udp", asked.LocalAddr().String()); return err })
	defer client.Close()
	if _, err := client.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if err := asked.SetDeadline(time.Now().Add(timeout)); err != nil {
		t.Fatal(err)
	}
	n, from, err := asked.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := asked.WriteTo(b[:n], from); err != nil {
		t.Fatal(err)
	}
	if err := client.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(b); err != nil {
		t.Errorf("the answer of a container on Docker's network: %v", err)
	}
}

// listen opens a UDP socket in a namespace.
func listen(t *testing.T, ns, addr string) (c *net.UDPConn) {
	t.Helper()
	do(t, ns, func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 0)))
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// send sends a datagram from a namespace.
func send(t *testing.T, ns string, to net.Addr, text string) {
	t.Helper()
	do(t, ns, func() error {
		c, err := net.Dial("udp", to.String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte(text))
		return err
	})
}

// receive returns the next datagram.
func receive(t *testing.T, c *net.UDPConn) string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, _, err := c.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}
