package wireguard_test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/router/wireguard"
)

var inside = netip.MustParsePrefix("169.254.208.0/20")

func config() wireguard.Config {
	return wireguard.Config{Name: "vethwe-wg", Port: 6785, MTU: 1426, Inside: inside}
}

func at(n byte) netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 208, n}) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// reached returns how the kernel sends to an address inside.
func reached(t *testing.T, a netip.Addr) string {
	t.Helper()
	routes, err := netlink.RouteGet(a.AsSlice())
	if errors.Is(err, unix.EHOSTUNREACH) {
		return "unreachable"
	}
	check(t, err)
	l, err := netlink.LinkByIndex(routes[0].LinkIndex)
	check(t, err)
	return l.Attrs().Name
}

// defaultRoute makes all else go by an interface, as on a host.
func defaultRoute(t *testing.T) {
	t.Helper()
	check(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "up"}}))
	up, err := netlink.LinkByName("up")
	check(t, err)
	check(t, netlink.LinkSetUp(up))
	all := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	check(t, netlink.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Dst: all, Scope: unix.RT_SCOPE_LINK}))
}

// open makes the device, or shows that this kernel has none and that nothing is
// left of the try.
func open(t *testing.T) (d *wireguard.Device, ok bool) {
	t.Helper()
	d, err := wireguard.Open(config())
	if err == nil {
		return d, true
	}
	if err.Error() != "this kernel has no WireGuard" {
		t.Fatal(err)
	}
	if by := reached(t, at(1)); by != "up" {
		t.Errorf("after a failure %v is reached by %s", at(1), by)
	}
	return nil, false
}

func TestDeviceOutlivesItsProcess(t *testing.T) {
	nstest.In(t, nstest.New(t, "wg"), func() {
		defaultRoute(t)
		d, ok := open(t)
		if !ok {
			return
		}
		if by := reached(t, at(2)); by != "unreachable" {
			t.Fatalf("an address inside is reached by %s", by)
		}
		check(t, d.SetSelf(at(1)))
		check(t, d.SetSelf(at(9)))
		endpoint := netip.MustParseAddrPort("192.0.2.2:6785")
		want := map[netip.Addr]wireguard.Peer{
			at(2): {Key: [32]byte{2, 31: 1}, Secret: [32]byte{22}, Endpoint: endpoint, Inside: at(2)},
			at(3): {Key: [32]byte{3, 31: 1}, Secret: [32]byte{33}, Endpoint: netip.MustParseAddrPort("[2001:db8::3]:7000"), Inside: at(3)},
		}
		check(t, d.Apply(want))
		for a, by := range map[netip.Addr]string{at(2): "vethwe-wg", at(3): "vethwe-wg", at(4): "unreachable"} {
			if got := reached(t, a); got != by {
				t.Errorf("%v is reached by %s, want %s", a, got, by)
			}
		}
		key := d.Key()
		d.Close()

		d, _ = open(t)
		if d.Key() != key || len(d.Peers()) != 2 || d.Peers()[at(2)] != want[at(2)] || d.Peers()[at(3)] != want[at(3)] {
			t.Errorf("taken over: %+v", d.Peers())
		}
		// One goes, one has another key.
		p := want[at(3)]
		p.Key[0]++
		check(t, d.Apply(map[netip.Addr]wireguard.Peer{at(3): p}))
		if by := reached(t, at(2)); by != "unreachable" {
			t.Errorf("one that went is reached by %s", by)
		}
		l, err := netlink.LinkByName("vethwe-wg")
		check(t, err)
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
		check(t, err)
		if len(addrs) != 1 || !addrs[0].IP.Equal(at(9).AsSlice()) || l.Attrs().MTU != 1426 {
			t.Errorf("addresses %v, mtu %d", addrs, l.Attrs().MTU)
		}
		d.Close()

		check(t, netlink.LinkDel(l))
		if by := reached(t, at(3)); by != "unreachable" {
			t.Errorf("without the interface an address inside is reached by %s", by)
		}
		for range 2 {
			check(t, wireguard.Remove(config()))
		}
		if by := reached(t, at(3)); by != "up" {
			t.Errorf("after Remove %v is reached by %s", at(3), by)
		}
	})
}

func TestMend(t *testing.T) {
	nstest.In(t, nstest.New(t, "wg"), func() {
		defaultRoute(t)
		d, ok := open(t)
		if !ok {
			return
		}
		defer d.Close()
		check(t, d.SetSelf(at(1)))
		want := map[netip.Addr]wireguard.Peer{at(2): {
			Key: [32]byte{2, 31: 1}, Secret: [32]byte{22}, Endpoint: netip.MustParseAddrPort("192.0.2.2:6785"), Inside: at(2),
		}}
		check(t, d.Apply(want))
		key := d.Key()
		whole := func(after string) {
			t.Helper()
			if faults, err := d.Faults(); err != nil || (len(faults) == 0) != (after == "nothing") {
				t.Errorf("after %s: faults %q, %v", after, faults, err)
			}
			check(t, d.Mend())
			check(t, d.Apply(want))
			if faults, err := d.Faults(); err != nil || len(faults) > 0 {
				t.Errorf("after %s and a repair: faults %q, %v", after, faults, err)
			}
			l, err := netlink.LinkByName("vethwe-wg")
			check(t, err)
			addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
			check(t, err)
			if by := reached(t, at(2)); by != "vethwe-wg" || d.Index() != l.Attrs().Index || len(addrs) != 1 || !addrs[0].IP.Equal(at(1).AsSlice()) {
				t.Errorf("after %s: %v is reached by %s, addresses %v", after, at(2), by, addrs)
			}
			if by := reached(t, at(3)); by != "unreachable" {
				t.Errorf("after %s: %v is reached by %s", after, at(3), by)
			}
		}
		l, err := netlink.LinkByName("vethwe-wg")
		check(t, err)
		whole("nothing")
		check(t, netlink.LinkSetDown(l)) // which takes its routes
		whole("the interface was down")
		check(t, netlink.AddrDel(l, &netlink.Addr{IPNet: &net.IPNet{IP: at(1).AsSlice(), Mask: net.CIDRMask(32, 32)}}))
		whole("its address was gone")
		check(t, netlink.RouteDel(&netlink.Route{Dst: &net.IPNet{IP: inside.Addr().AsSlice(), Mask: net.CIDRMask(20, 32)}, Type: unix.RTN_UNREACHABLE, Priority: 1<<31 - 1}))
		whole("the last route was gone")
		if d.Key() != key {
			t.Error("the key changed without need")
		}
		check(t, netlink.LinkDel(l))
		whole("the interface was gone")
		if d.Key() == key {
			t.Error("another interface has the old key")
		}
	})
}

// pair are two devices in two namespaces that can reach each other's underlay.
type pair struct {
	t   *testing.T
	ns  [2]string
	d   [2]*wireguard.Device
	ear *net.UDPConn // port 7 of the second one inside
}

// newPair returns nil if this kernel has no WireGuard; another test shows what happens then.
func newPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{t: t, ns: [2]string{nstest.New(t, "a"), nstest.New(t, "b")}}
	nstest.Veth(t, 1500, p.ns[0], "up", netip.MustParsePrefix("192.0.2.1/24"), p.ns[1], "up", netip.MustParsePrefix("192.0.2.2/24"))
	for i, ns := range p.ns {
		nstest.In(t, ns, func() {
			dev, err := wireguard.Open(config())
			if err != nil && err.Error() != "this kernel has no WireGuard" {
				t.Fatal(err)
			}
			if p.d[i] = dev; dev == nil {
				return
			}
			t.Cleanup(dev.Close)
			check(t, dev.SetSelf(at(byte(i+1))))
			if i == 1 {
				p.ear, err = net.ListenUDP("udp4", &net.UDPAddr{IP: at(2).AsSlice(), Port: 7})
				check(t, err)
				t.Cleanup(func() { p.ear.Close() })
			}
		})
	}
	if p.d[0] == nil {
		return nil
	}
	return p
}

// connect makes the other device a peer of device i.
func (p *pair) connect(i int, secret byte) error {
	j := 1 - i
	return p.d[i].Apply(map[netip.Addr]wireguard.Peer{at(byte(j + 1)): {
		Key: p.d[j].Key(), Secret: [32]byte{secret}, Inside: at(byte(j + 1)),
		Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(j + 1)}), 6785),
	}})
}

// dial returns a socket from the first device to the ear.
func (p *pair) dial() (c net.Conn) {
	p.t.Helper()
	nstest.In(p.t, p.ns[0], func() {
		var err error
		c, err = net.Dial("udp4", netip.AddrPortFrom(at(2), 7).String())
		check(p.t, err)
	})
	return c
}

// hears reports whether a packet from the first device reaches the ear.
func (p *pair) hears(timeout time.Duration) bool {
	p.t.Helper()
	c := p.dial()
	defer c.Close()
	_, _ = c.Write([]byte("hello"))
	check(p.t, p.ear.SetReadDeadline(time.Now().Add(timeout)))
	_, _, err := p.ear.ReadFromUDP(make([]byte, 10))
	return err == nil
}

// Two devices with each other's keys and one secret carry packets; with another
// secret they do not.
func TestSecretIsNeeded(t *testing.T) {
	p := newPair(t)
	if p == nil {
		return
	}
	check(t, p.connect(0, 1))
	check(t, p.connect(1, 2))
	if p.hears(time.Second) {
		t.Fatal("two that do not share a secret hear each other")
	}
	check(t, p.connect(1, 1))
	// The kernel holds the packet back until a handshake succeeds, which it tries
	// every five seconds.
	if !p.hears(30 * time.Second) {
		t.Fatal("two that share a secret do not hear each other")
	}
}

// Each session of two routers gives their tunnel another secret, while packets flow.
func TestNewSecretLosesNoPacket(t *testing.T) {
	p := newPair(t)
	if p == nil {
		return
	}
	for i := range p.d {
		check(t, p.connect(i, 0))
	}
	if !p.hears(30 * time.Second) {
		t.Fatal("the devices do not hear each other")
	}
	const changes = 500
	var done atomic.Bool
	var changing sync.WaitGroup
	changing.Go(func() {
		defer done.Store(true)
		for n := range changes {
			for i := range p.d {
				if err := p.connect(i, byte(n)); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	c := p.dial()
	defer c.Close()
	sent, got := make([]byte, 8), make([]byte, 8)
	var n, lost uint64
	for ; !done.Load(); n++ {
		binary.BigEndian.PutUint64(sent, n)
		if _, err := c.Write(sent); err != nil {
			t.Errorf("packet %d: %v", n, err)
			continue
		}
		check(t, p.ear.SetReadDeadline(time.Now().Add(5*time.Second)))
		if _, _, err := p.ear.ReadFromUDP(got); err != nil {
			lost++
		} else if m := binary.BigEndian.Uint64(got); m != n {
			t.Fatalf("packet %d came instead of %d", m, n)
		}
	}
	changing.Wait()
	t.Logf("%d packets during %d new secrets, %d lost", n, 2*changes, lost)
	if lost > 0 {
		t.Error("packets were lost")
	}
}
