package netdev_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
)

const guarded = 6784

func guard(t *testing.T, ns string, port uint16) (rebuilt bool) {
	t.Helper()
	do(t, ns, func() (err error) { rebuilt, err = netdev.Guard(port, netip.Prefix{}); return err })
	return rebuilt
}

// inbox hears what comes for the guarded port at an address.
func inbox(t *testing.T, ns, addr string) *net.UDPConn {
	t.Helper()
	var l *net.UDPConn
	do(t, ns, func() (err error) {
		l, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), guarded)))
		return err
	})
	return l
}

// post sends one word to the guarded port, from a source of its own if from is
// not "".
func post(t *testing.T, ns, from, to, word string) {
	t.Helper()
	do(t, ns, func() error {
		if from != "" {
			return forge(netip.MustParseAddr(from), netip.MustParseAddr(to), word)
		}
		c, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr(to), guarded).String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte(word))
		return err
	})
}

// forge sends an IPv4 UDP packet with any source.
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
	binary.BigEndian.PutUint16(p[22:], guarded)
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(word)))
	copy(p[28:], word)
	return unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: to.As4()})
}

// hears fails unless the next words to come are these.
func hears(t *testing.T, l *net.UDPConn, words ...string) {
	t.Helper()
	for _, want := range words {
		if err := l.SetReadDeadline(time.Now().Add(timeout)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		n, _, err := l.ReadFromUDPAddrPort(b)
		if err != nil || string(b[:n]) != want {
			t.Fatalf("%v hears %q, want %q: %v", l.LocalAddr(), b[:n], want, err)
		}
	}
}

// A container that gets the host's address on its way out must not speak to a
// neighbour's port as the host.
func TestGuardKeepsContainersFromSpeakingAsTheHost(t *testing.T) {
	x := newExposed(t)
	all := []netdev.Exposure{{Addr: pfx("10.32.0.1/24"), Masquerade: true}, {Addr: pfx("fd00::1/64"), Masquerade: true}}
	reconcile := func(all []netdev.Exposure) {
		do(t, x.host, func() error { _, err := netdev.Reconcile("weft", all); return err })
	}
	reconcile(all)
	for _, out := range []string{"192.0.2.2", "2001:db8::2"} {
		l := inbox(t, x.out, out)
		guard(t, x.host, 0)
		post(t, x.c, "", out, "from the container")
		hears(t, l, "from the container")
		guard(t, x.host, guarded)
		post(t, x.c, "", out, "from the container")
		post(t, x.host, "", out, "from the host")
		hears(t, l, "from the host")
		l.Close()
	}
	// What is passed on with its own address is none of the host's.
	reconcile(nil)
	l := inbox(t, x.out, "192.0.2.2")
	defer l.Close()
	post(t, x.c, "", "192.0.2.2", "from the container itself")
	hears(t, l, "from the container itself")
}

// Nor may it speak to its own host as a neighbour.
func TestGuardKeepsContainersFromSpeakingAsANeighbour(t *testing.T) {
	x := newExposed(t)
	do(t, x.host, func() error {
		for _, dev := range []string{"all", "weft", "up4"} {
			if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+dev+"/rp_filter", []byte("0"), 0); err != nil {
				return err
			}
		}
		return nil
	})
	l := inbox(t, x.host, "192.0.2.1")
	defer l.Close()
	post(t, x.c, "192.0.2.2", "192.0.2.1", "forged")
	hears(t, l, "forged")
	guard(t, x.host, guarded)
	post(t, x.c, "192.0.2.2", "192.0.2.1", "forged")
	post(t, x.out, "", "192.0.2.1", "true")
	post(t, x.host, "", "192.0.2.1", "own")
	hears(t, l, "true", "own")
}

// What is for addresses in the tunnel does not leave in clear, whatever the routes
// say.
func TestGuardKeepsWhatIsSealedInTheTunnel(t *testing.T) {
	x := newExposed(t)
	sealed := pfx("169.254.208.0/20")
	do(t, x.out, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(169, 254, 208, 5), Mask: net.CIDRMask(32, 32)}})
	})
	do(t, x.host, func() error {
		return netlink.RouteReplace(&netlink.Route{
			Dst: &net.IPNet{IP: sealed.Addr().AsSlice(), Mask: net.CIDRMask(20, 32)}, Gw: net.IPv4(192, 0, 2, 2),
		})
	})
	inside, outside := inbox(t, x.out, "169.254.208.5"), inbox(t, x.out, "192.0.2.2")
	defer inside.Close()
	defer outside.Close()
	guard(t, x.host, guarded)
	post(t, x.host, "", "169.254.208.5", "past the tunnel")
	hears(t, inside, "past the tunnel")
	do(t, x.host, func() error {
		if again, err := netdev.Guard(guarded, sealed); err != nil || !again {
			t.Errorf("rules for a tunnel: %v %v", again, err)
		}
		return nil
	})
	do(t, x.host, func() error {
		// What netfilter drops on its way out is an error of the sender.
		if err := forge(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("169.254.208.5"), "past the tunnel"); err == nil {
			t.Error("packets to the tunnel's addresses leave in clear")
		}
		return nil
	})
	post(t, x.host, "", "192.0.2.2", "in clear")
	hears(t, outside, "in clear")
	if !guard(t, x.host, guarded) {
		t.Error("the rule stays without a tunnel")
	}
	post(t, x.host, "", "169.254.208.5", "no tunnel")
	hears(t, inside, "no tunnel")
}

func TestGuardIsWrittenAnew(t *testing.T) {
	x := newExposed(t)
	if !guard(t, x.host, guarded) || guard(t, x.host, guarded) {
		t.Error("guarding is not idempotent")
	}
	if !guard(t, x.host, guarded+1) {
		t.Error("another port was taken for the same")
	}
	flushRules(t, x.host)
	if !guard(t, x.host, guarded+1) {
		t.Error("a flush went unseen")
	}
	// The rules of exposures come and go beside it.
	do(t, x.host, func() error { _, err := netdev.Reconcile("weft", nil); return err })
	if guard(t, x.host, guarded+1) {
		t.Error("the guard went with the exposures")
	}
	if !guard(t, x.host, 0) || guard(t, x.host, 0) {
		t.Error("taking it away is not idempotent")
	}
}
