package netdev_test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

const guardedPort = 6784

func guard(t *testing.T, ns string, port uint16) (rebuilt bool) {
	t.Helper()
	do(t, ns, func() (err error) { rebuilt, err = netdev.Guard(netdev.Guarded{Port: port}); return err })
	return rebuilt
}

// listenGuarded listens on the guarded port at an address.
func listenGuarded(t *testing.T, ns, addr string) *net.UDPConn {
	t.Helper()
	var l *net.UDPConn
	do(t, ns, func() (err error) {
		l, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), guardedPort)))
		return err
	})
	return l
}

// sendTo sends one word to the guarded port, with a forged source address unless from
// is "".
func sendTo(t *testing.T, ns, from, to, word string) {
	t.Helper()
	do(t, ns, func() error {
		if from != "" {
			return forge(netip.MustParseAddr(from), netip.MustParseAddr(to), word)
		}
		c, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr(to), guardedPort).String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte(word))
		return err
	})
}

// forge sends an IPv4 UDP packet with any source address.
func forge(from, to netip.Addr, word string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	p := make([]byte, 28+len(word))
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP // the kernel fills length, id and checksum
	copy(p[12:], from.AsSlice())
	copy(p[16:], to.AsSlice())
	binary.BigEndian.PutUint16(p[20:], 1)
	binary.BigEndian.PutUint16(p[22:], guardedPort)
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(word)))
	copy(p[28:], word)
	return unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: to.As4()})
}

// sendByKernel sends one word in VXLAN, as the kernel does for frames of containers and for
// what the host's own sockets send to them.
func sendByKernel(t *testing.T, ns, to, word string) {
	t.Helper()
	do(t, ns, func() error {
		v := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: netdev.VXLANName}, VxlanId: 1, Group: net.ParseIP(to), Port: guardedPort}
		if err := netlink.LinkAdd(v); err != nil {
			return err
		}
		defer netlink.LinkDel(v)
		inside := net.IPv4(10, 99, 0, 2)
		err := netlink.AddrAdd(v, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 99, 0, 1), Mask: net.CIDRMask(24, 32)}})
		if err == nil { // without IPv6, so that the kernel sends nothing of its own
			err = netdev.Interface{Name: netdev.VXLANName, MTU: 1376, Sysctls: netdev.ProcSys}.Ensure()
		}
		if err == nil {
			err = netlink.NeighSet(&netlink.Neigh{LinkIndex: v.Index, State: netlink.NUD_PERMANENT, IP: inside, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 9, 9}})
		}
		if err != nil {
			return err
		}
		c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: inside, Port: 9})
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte(word))
		return err
	})
}

// refusesToSend fails unless the host refuses to send a word from a socket of a process.
func refusesToSend(t *testing.T, ns, to string, port int) {
	t.Helper()
	do(t, ns, func() error {
		c, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.ParseIP(to), Port: port})
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte("of a process")); !errors.Is(err, unix.EPERM) {
			t.Errorf("a process sends to UDP %d of %s: %v", port, to, err)
		}
		return nil
	})
}

// wantReceived fails unless the last bytes of the next received packets are these words.
func wantReceived(t *testing.T, l *net.UDPConn, words ...string) {
	t.Helper()
	for _, want := range words {
		if err := l.SetReadDeadline(time.Now().Add(timeout)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		n, _, err := l.ReadFromUDPAddrPort(b)
		if err != nil || !strings.HasSuffix(string(b[:n]), want) {
			t.Fatalf("%v received %q, want %q: %v", l.LocalAddr(), b[:n], want, err)
		}
	}
}

// A container behind NAT must not reach another host's port with the address of its own
// host, nor may a user of the host. The kernel may.
func TestGuardStopsContainersBehindNATAndUsers(t *testing.T) {
	h := newExposed(t)
	all := []netdev.Exposure{{Addr: pfx("10.32.0.1/24"), Masquerade: true}, {Addr: pfx("fd00::1/64"), Masquerade: true}}
	reconcile := func(all []netdev.Exposure) {
		do(t, h.host, func() error { _, err := reconcile("weft", all); return err })
	}
	reconcile(all)
	for _, out := range []string{"192.0.2.2", "2001:db8::2"} {
		l := listenGuarded(t, h.out, out)
		guard(t, h.host, 0)
		sendTo(t, h.c, "", out, "from the container")
		wantReceived(t, l, "from the container")
		guard(t, h.host, guardedPort)
		sendTo(t, h.c, "", out, "from the container")
		refusesToSend(t, h.host, out, guardedPort)
		sendByKernel(t, h.host, out, "from the host")
		wantReceived(t, l, "from the host")
		l.Close()
	}
	// Forwarded packets that keep their address are not dropped.
	reconcile(nil)
	l := listenGuarded(t, h.out, "192.0.2.2")
	defer l.Close()
	sendTo(t, h.c, "", "192.0.2.2", "from the container itself")
	wantReceived(t, l, "from the container itself")
}

// A container must not reach its own host's port with the address of another host.
func TestGuardStopsForgedSources(t *testing.T) {
	h := newExposed(t)
	do(t, h.host, func() error {
		for _, dev := range []string{"all", "weft", "up4"} {
			if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+dev+"/rp_filter", []byte("0"), 0); err != nil {
				return err
			}
		}
		return nil
	})
	l := listenGuarded(t, h.host, "192.0.2.1")
	defer l.Close()
	sendTo(t, h.c, "192.0.2.2", "192.0.2.1", "forged")
	wantReceived(t, l, "forged")
	guard(t, h.host, guardedPort)
	sendTo(t, h.c, "192.0.2.2", "192.0.2.1", "forged")
	sendTo(t, h.out, "", "192.0.2.1", "true")
	wantReceived(t, l, "true")
}

// Packets to addresses of the tunnel do not leave in clear text, whatever the routes are.
func TestGuardKeepsTrafficInTheTunnel(t *testing.T) {
	h := newExposed(t)
	sealed := pfx("169.254.208.0/20")
	do(t, h.out, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(169, 254, 208, 5), Mask: net.CIDRMask(32, 32)}})
	})
	do(t, h.host, func() error {
		return netlink.RouteReplace(&netlink.Route{
			Dst: &net.IPNet{IP: sealed.Addr().AsSlice(), Mask: net.CIDRMask(20, 32)}, Gw: net.IPv4(192, 0, 2, 2),
		})
	})
	inside, outside := listenGuarded(t, h.out, "169.254.208.5"), listenGuarded(t, h.out, "192.0.2.2")
	defer inside.Close()
	defer outside.Close()
	guard(t, h.host, guardedPort)
	sendByKernel(t, h.host, "169.254.208.5", "past the tunnel")
	wantReceived(t, inside, "past the tunnel")
	do(t, h.host, func() error {
		if again, err := netdev.Guard(netdev.Guarded{Port: guardedPort, Tunnel: guardedPort + 1, Sealed: sealed}); err != nil || !again {
			t.Errorf("rules for a tunnel: %v %v", again, err)
		}
		return nil
	})
	refusesToSend(t, h.host, "192.0.2.2", guardedPort+1)
	sendByKernel(t, h.host, "169.254.208.5", "past the tunnel again")
	sendByKernel(t, h.host, "192.0.2.2", "in clear")
	wantReceived(t, outside, "in clear")
	if !guard(t, h.host, guardedPort) {
		t.Error("the rule stays without a tunnel")
	}
	sendByKernel(t, h.host, "169.254.208.5", "no tunnel")
	wantReceived(t, inside, "no tunnel")
}

// Containers of the bridge do not reach the port of another host's router as their host.
func TestGuardStopsContainersFromSleeve(t *testing.T) {
	h := newExposed(t)
	all := []netdev.Exposure{{Addr: pfx("10.32.0.1/24"), Masquerade: true}}
	do(t, h.host, func() error { _, err := reconcile("weft", all); return err })
	l := listenGuarded(t, h.out, "192.0.2.2") // as the router's port here
	defer l.Close()
	sendTo(t, h.c, "", "192.0.2.2", "not guarded")
	wantReceived(t, l, "not guarded")
	do(t, h.host, func() error {
		_, err := netdev.Guard(netdev.Guarded{Port: guardedPort + 1, Sleeve: guardedPort, Bridge: "weft"})
		return err
	})
	sendTo(t, h.c, "", "192.0.2.2", "from the container")
	sendTo(t, h.host, "", "192.0.2.2", "from the router")
	wantReceived(t, l, "from the router")
}

// Only frames come through the tunnel: other hosts reach no other service there.
func TestGuardLetsOnlyFramesThroughTheTunnel(t *testing.T) {
	h := newExposed(t)
	do(t, h.host, func() error { // a veth pair in place of WireGuard
		up, err := netlink.LinkByName("up4")
		if err == nil {
			err = netlink.LinkSetDown(up)
		}
		if err == nil {
			err = netlink.LinkSetName(up, netdev.TunnelName)
		}
		if err == nil {
			err = netlink.LinkSetUp(up)
		}
		return err
	})
	dial := func(network string, port int) error {
		return netdev.Do(h.out, func() error {
			c, err := net.DialTimeout(network, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(port)).String(), 300*time.Millisecond)
			if err == nil {
				_, err = c.Write([]byte("through the tunnel"))
				c.Close()
			}
			return err
		})
	}
	var service net.Listener
	do(t, h.host, func() (err error) { service, err = net.Listen("tcp", "192.0.2.1:0"); return err })
	defer service.Close()
	frames := listenGuarded(t, h.host, "192.0.2.1")
	defer frames.Close()
	tcp := service.Addr().(*net.TCPAddr).Port
	if err := dial("tcp", tcp); err != nil {
		t.Fatalf("not guarded: %v", err)
	}
	do(t, h.host, func() error {
		_, err := netdev.Guard(netdev.Guarded{Port: guardedPort, Tunnel: guardedPort + 1, Sealed: pfx("192.0.2.0/24")})
		return err
	})
	if err := dial("tcp", tcp); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("a service is reached through the tunnel: %v", err)
	}
	if err := dial("udp", guardedPort); err != nil {
		t.Fatal(err)
	}
	wantReceived(t, frames, "through the tunnel")
	var other *net.UDPConn
	do(t, h.host, func() (err error) {
		other, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: guardedPort + 9})
		return err
	})
	defer other.Close()
	if err := dial("udp", guardedPort+9); err != nil {
		t.Fatal(err)
	}
	if err := dial("udp", guardedPort); err != nil { // sent later, so the other one has come or was dropped
		t.Fatal(err)
	}
	wantReceived(t, frames, "through the tunnel")
	_ = other.SetReadDeadline(time.Now().Add(10 * time.Millisecond)) // it would be in the socket
	if n, err := other.Read(make([]byte, 10)); err == nil {
		t.Errorf("%d bytes came to another port", n)
	}
}

func TestGuardRulesAreRestored(t *testing.T) {
	h := newExposed(t)
	if !guard(t, h.host, guardedPort) || guard(t, h.host, guardedPort) {
		t.Error("guarding is not idempotent")
	}
	if !guard(t, h.host, guardedPort+1) {
		t.Error("Guard did not change the port")
	}
	flushRules(t, h.host)
	if !guard(t, h.host, guardedPort+1) {
		t.Error("Guard did not notice a flush")
	}
	// Changing the rules of exposures does not affect the guard.
	do(t, h.host, func() error { _, err := reconcile("weft", nil); return err })
	if guard(t, h.host, guardedPort+1) {
		t.Error("the guard's rules were removed with the exposures")
	}
	if !guard(t, h.host, 0) || guard(t, h.host, 0) {
		t.Error("removing the guard is not idempotent")
	}
}

// With the tunnel the rules of the two chains are not written chain by chain. They are right
// all the same: what is right is not written again.
func TestGuardOfTheTunnelIsLeftAlone(t *testing.T) {
	ns := nstest.New(t, "h")
	g := netdev.Guarded{Port: guardedPort, Tunnel: 6785, Sealed: pfx("100.64.0.0/10"), Sleeve: 6783, Bridge: "weft", IPIP: true}
	for i := range 2 {
		do(t, ns, func() error {
			rebuilt, err := netdev.Guard(g)
			if rebuilt != (i == 0) {
				t.Errorf("time %d: the rules were written: %v", i, rebuilt)
			}
			if faults, err := g.Faults(); err != nil || len(faults) > 0 {
				t.Errorf("faults %q, %v", faults, err)
			}
			return err
		})
	}
}
