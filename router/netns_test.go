package router_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
	"github.com/weft-net/weft/router"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/link"
	"github.com/weft-net/weft/router/wire"
)

// host is a namespace with a bridge and a router, and one container:
//
//	c0 -- weft -- router  h0 ==== h1  router -- weft -- c1     (and so on, a line)
//	10.32.0.1, fd00::1    192.0.2.1 .2                 10.32.0.2, fd00::2
type host struct {
	*router.Router
	t    testing.TB
	name peer.Name
	ns   string
	c    string
	up   chan peer.Name
	all  *[]*host
	stop func() // ends the router and waits until it has ended

	agreed atomic.Int32 // rounds of keys that this end confirmed
}

func (h *host) Self() peer.Name { return h.name }

func (h *host) Send(to peer.Name, msg []byte) error {
	if c, _, err := wire.ParseControl(msg[len(wire.Session{}):]); err == nil && c.Type == wire.Confirm {
		h.agreed.Add(1)
	}
	for _, o := range *h.all {
		if o.name == to {
			o.HandleControl(h.name, msg)
			return nil
		}
	}
	return fmt.Errorf("no session with %s", to)
}

func (h *host) Doubt(peer.Name) {}

func (h *host) SetLink(to peer.Name, up bool, _ time.Duration) {
	if up {
		h.up <- to
	}
}

// Want makes a session without an address, as the mesh does over other peers.
func (h *host) Want(to peer.Name, _ bool) {
	for _, o := range *h.all {
		if o.name != to {
			continue
		}
		secret := [32]byte{9, h.name[5] ^ o.name[5]}
		for _, e := range [][2]*host{{h, o}, {o, h}} {
			e[0].NeighbourUp(router.Neighbour{Name: e[1].name, Secret: secret})
		}
	}
}

type options struct {
	mtu, underlayMTU int
	v6               bool // of the underlay
	config           func(i int, c *router.Config)
	join             func(a, b *host) // puts hosts that are beside each other on a wire, instead of a veth pair
}

func addr(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 32, 0, byte(i + 1)}), 12)
}
func addr6(i int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf("fd00::%d/64", i+1)) }

// newHosts makes n hosts in a line and waits until their links are up.
func newHosts(t testing.TB, n int, o options) []*host {
	t.Helper()
	var hosts []*host
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	for i := range n {
		h := &host{t: t, name: peer.Name{2, 0, 0, 0, 0, byte(i + 1)}, ns: nstest.New(t, fmt.Sprint("h", i)), c: nstest.New(t, fmt.Sprint("c", i)),
			up: make(chan peer.Name, 100), all: &hosts}
		hosts = append(hosts, h)
		h.do(func() (err error) {
			if err := netdev.EnsureBridge("weft", h.name[:], o.mtu, netdev.ProcSys); err != nil {
				return err
			}
			c := router.Config{MTU: o.mtu, Bridge: "weft", TAP: "vethwe-tap"}
			if o.config != nil {
				o.config(i, &c)
			}
			if h.Router, err = router.New(c, h); err != nil {
				return err
			}
			_, err = netdev.Attach(netdev.Attachment{NS: h.c, Iface: "ethwe", Bridge: "weft", MTU: o.mtu,
				Addrs: []netip.Prefix{addr(i), addr6(i)}, MulticastRoute: true})
			return err
		})
		own, end := context.WithCancel(ctx)
		ended := make(chan struct{})
		h.stop = func() { end(); <-ended }
		wg.Go(func() {
			defer close(ended)
			if err := h.Run(own); err != nil {
				t.Error(err)
			}
		})
	}
	unicast, broadcast, from := make([]map[peer.Name]peer.Name, n), make([]map[peer.Name][]peer.Name, n), make([]map[peer.Name][]peer.Name, n)
	ids := map[uint32]peer.Name{}
	for i := range n {
		unicast[i], broadcast[i], from[i] = map[peer.Name]peer.Name{}, map[peer.Name][]peer.Name{}, map[peer.Name][]peer.Name{}
		ids[hosts[i].name.ID()] = hosts[i].name
		for j := range n {
			if j != i {
				unicast[i][hosts[j].name] = hosts[i+sign(j-i)].name
				from[i][hosts[j].name] = []peer.Name{hosts[i+sign(j-i)].name}
			}
			// What j sent goes on away from j.
			for _, k := range []int{i - 1, i + 1} {
				if k >= 0 && k < n && (i == j || sign(k-i) == sign(i-j)) {
					broadcast[i][hosts[j].name] = append(broadcast[i][hosts[j].name], hosts[k].name)
				}
			}
		}
	}
	for i, h := range hosts {
		h.SetRoutes(&topology.Routes{Self: h.name, Unicast: unicast[i], Broadcast: broadcast[i], From: from[i], ByID: ids})
	}
	for i := range n - 1 {
		a, b := hosts[i], hosts[i+1]
		if o.join != nil {
			o.join(a, b)
			continue
		}
		pa, pb := netip.MustParsePrefix(fmt.Sprintf("192.0.%d.1/24", i+2)), netip.MustParsePrefix(fmt.Sprintf("192.0.%d.2/24", i+2))
		if o.v6 {
			pa, pb = netip.MustParsePrefix(fmt.Sprintf("2001:db8:%d::1/64", i)), netip.MustParsePrefix(fmt.Sprintf("2001:db8:%d::2/64", i))
		}
		nstest.Veth(t, o.underlayMTU, a.ns, fmt.Sprint("up", i), pa, b.ns, fmt.Sprint("up", i), pb)
		a.NeighbourUp(router.Neighbour{Name: b.name, Addr: netip.AddrPortFrom(pb.Addr(), b.LocalAddr().Port()), Dialled: true})
		b.NeighbourUp(router.Neighbour{Name: a.name, Addr: netip.AddrPortFrom(pa.Addr(), a.LocalAddr().Port())})
	}
	for i, h := range hosts {
		links := 2
		if i == 0 || i == n-1 {
			links = 1
		}
		for range links {
			select {
			case <-h.up:
			case <-time.After(timeout):
				t.Fatalf("host %d: links do not come up: %+v", i, h.Status())
			}
		}
	}
	return hosts
}

func sign(i int) int {
	switch {
	case i < 0:
		return -1
	case i > 0:
		return 1
	}
	return 0
}

func (h *host) do(f func() error) {
	h.t.Helper()
	if err := netdev.Do(h.ns, f); err != nil {
		h.t.Fatal(err)
	}
}

// in runs f in the host's container.
func (h *host) in(f func() error) {
	h.t.Helper()
	if err := netdev.Do(h.c, f); err != nil {
		h.t.Fatal(err)
	}
}

// noDrops returns a check that since now nothing was dropped and no link of the
// hosts went down.
func noDrops(t testing.TB, hosts []*host) (check func()) {
	count := func(h *host) (n uint64, s router.Status) {
		s = h.Status()
		n = s.LinksLost
		for _, l := range s.Links {
			for _, d := range l.Drops {
				n += d
			}
		}
		for _, d := range s.Drops {
			n += d
		}
		return n, s
	}
	before := make([]uint64, len(hosts))
	for i, h := range hosts {
		before[i], _ = count(h)
	}
	return func() {
		t.Helper()
		for i, h := range hosts {
			if n, s := count(h); n != before[i] {
				t.Errorf("host %d has dropped something, or lost a link: %+v", i, s)
			}
		}
	}
}

// listen opens a datagram socket in the container.
func (h *host) listen(a netip.Addr) *net.UDPConn {
	h.t.Helper()
	var c *net.UDPConn
	h.in(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		return err
	})
	h.t.Cleanup(func() { c.Close() })
	return c
}

// How long a test waits on a busy machine, and how often it
// sends what may be lost while neighbours are looked up, once a second.
const (
	timeout = 30 * time.Second
	tries   = 20
)

// echo sends a datagram of n bytes from one container to another's address and
// waits for it to come back.
func echo(t testing.TB, from, to *host, a, b netip.Addr, n int) {
	t.Helper()
	if err := tryEcho(from, to, a, b, n); err != nil {
		t.Errorf("%s to %s, %d bytes: %v", a, b, n, err)
	}
}

func tryEcho(from, to *host, a, b netip.Addr, n int) error {
	src, dst := from.listen(a), to.listen(b)
	defer src.Close()
	defer dst.Close()
	go nstest.Echo(dst)
	want, buf := bytes.Repeat([]byte("weft"), n/4+1)[:n], make([]byte, 70000)
	var last error
	for range tries {
		if _, last = src.WriteToUDPAddrPort(want, dst.LocalAddr().(*net.UDPAddr).AddrPort()); last != nil {
			continue
		}
		_ = src.SetReadDeadline(time.Now().Add(time.Second))
		var k int
		if k, _, last = src.ReadFromUDPAddrPort(buf); last == nil {
			if !bytes.Equal(buf[:k], want) {
				return fmt.Errorf("%d bytes came back wrong", k)
			}
			return nil
		}
	}
	return last
}

func TestDatagramsOverALine(t *testing.T) {
	for _, o := range []options{{mtu: 1376, underlayMTU: 1500}, {mtu: 1376, underlayMTU: 1500, v6: true}} {
		hosts := newHosts(t, 3, o)
		for _, n := range []int{1, 100, 1300} {
			for _, j := range []int{1, 2} {
				echo(t, hosts[0], hosts[j], addr(0).Addr(), addr(j).Addr(), n)
				echo(t, hosts[0], hosts[j], addr6(0).Addr(), addr6(j).Addr(), n)
			}
		}
		for _, l := range hosts[1].Status().Links {
			want := 1500 - 71
			if o.v6 {
				want -= 20
			}
			if l.MTU != want || l.State != link.Established {
				t.Errorf("v6 %v: %+v", o.v6, l)
			}
		}
	}
}

// TestSmallUnderlay: containers have a larger MTU than the underlay carries.
func TestSmallUnderlay(t *testing.T) {
	hosts := newHosts(t, 3, options{mtu: 1500, underlayMTU: 1300})
	a, b := hosts[0], hosts[2]

	// Without DF: the switch cuts and puts together, and the containers'
	// own fragments pass too.
	c := a.listen(addr(0).Addr())
	setPathDiscovery(t, c, false)
	d := b.listen(addr(2).Addr())
	for _, n := range []int{1472, 1400, 4000} {
		receive(t, c, d, n)
	}

	// With DF, from the first too-big on the kernel knows the path. The
	// answer has the MTU that fits: 1300 less 79. A sender that learns less while
	// the links still measure would keep to that for minutes.
	for _, h := range hosts {
		h.settle(1300 - 71)
	}
	for _, v := range []struct{ a, b netip.Addr }{{addr(0).Addr(), addr(2).Addr()}, {addr6(0).Addr(), addr6(2).Addr()}} {
		src := a.listen(v.a)
		setPathDiscovery(t, src, true)
		dst := b.listen(v.b)
		want := 1300 - 79
		if v.a.Is6() {
			want = 1280 // the least that an IPv6 path may have
		}
		deadline := time.Now().Add(timeout)
		for got := 0; got != want; {
			_, _ = src.WriteToUDPAddrPort(make([]byte, 1440), dst.LocalAddr().(*net.UDPAddr).AddrPort())
			a.in(func() error {
				routes, err := netlink.RouteGet(v.b.AsSlice())
				if err == nil && len(routes) > 0 {
					got = routes[0].MTU
				}
				return err
			})
			if time.Now().After(deadline) {
				t.Fatalf("%s: the path is believed to carry %d bytes, want %d", v.b, got, want)
			}
		}
		head := 28
		if v.a.Is6() {
			head = 48
		}
		receive(t, src, dst, want-head)
	}
}

// settle waits until all links of the host have this MTU.
func (h *host) settle(mtu int) {
	h.t.Helper()
	deadline := time.After(timeout)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for slices.ContainsFunc(h.Status().Links, func(l router.LinkStatus) bool { return l.MTU != mtu }) {
		select {
		case <-tick.C:
		case <-deadline:
			h.t.Fatalf("the links are %+v, want them to have mtu %d", h.Status().Links, mtu)
		}
	}
}

// TestLargestMTU: one frame of a container in half a hundred packets.
func TestLargestMTU(t *testing.T) {
	hosts := newHosts(t, 2, options{mtu: router.MaxMTU, underlayMTU: 1500})
	src, dst := hosts[0].listen(addr(0).Addr()), hosts[1].listen(addr(1).Addr())
	setPathDiscovery(t, src, false)
	receive(t, src, dst, router.MaxMTU-28)
}

// receive sends n bytes until they come.
func receive(t *testing.T, from, to *net.UDPConn, n int) {
	t.Helper()
	buf := make([]byte, 70000)
	for range tries {
		if _, err := from.WriteToUDPAddrPort(bytes.Repeat([]byte{7}, n), to.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
			continue
		}
		_ = to.SetReadDeadline(time.Now().Add(time.Second))
		for {
			k, _, err := to.ReadFromUDPAddrPort(buf)
			if err != nil {
				break
			}
			if k == n {
				return
			}
		}
	}
	t.Errorf("%d bytes do not arrive", n)
}

// TestVLANAndMulticast: a VLAN of the containers' own passes as it is, and a
// group is heard by every host once.
func TestVLANAndMulticast(t *testing.T) {
	hosts := newHosts(t, 3, options{mtu: 1376, underlayMTU: 1500})
	group := &net.UDPAddr{IP: net.IPv4(239, 1, 2, 3), Port: 4567}
	var ears []*net.UDPConn
	for i, h := range hosts {
		h.in(func() error {
			ifc, err := net.InterfaceByName("ethwe")
			if err != nil {
				return err
			}
			if i > 0 {
				c, err := net.ListenMulticastUDP("udp4", ifc, group)
				if err != nil {
					return err
				}
				ears = append(ears, c)
				t.Cleanup(func() { c.Close() })
			}
			return nil
		})
	}
	mouth := hosts[0].listen(addr(0).Addr())
	if _, err := mouth.WriteToUDP([]byte("hear"), group); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	for i, c := range ears {
		_ = c.SetReadDeadline(time.Now().Add(timeout))
		if n, _, err := c.ReadFromUDP(buf); err != nil || string(buf[:n]) != "hear" {
			t.Errorf("host %d heard %q: %v", i+1, buf[:n], err)
		}
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, _, err := c.ReadFromUDP(buf); err == nil {
			t.Errorf("host %d heard it twice", i+1)
		}
	}

	// A frame of VLAN 9, sent and received as the container's card would. Two
	// bytes of an unknown protocol tell it from others.
	to, from := hosts[2].card(), hosts[0].card()
	frame := append(bytes.Repeat([]byte{0xff}, 6), from.mac...)
	frame = append(frame, 0x81, 0, 0, 9, 0x88, 0xb5, 'v', 'l', 'a', 'n')
	frame = append(frame, make([]byte, 1000)...)
	from.send(t, frame)
	got, tci := to.receive(t, 0x88b5)
	if tci != 9 || !bytes.Equal(got[14:], frame[18:]) {
		t.Errorf("got VLAN %d and % x, sent % x", tci, got[:min(len(got), 24)], frame[:24])
	}
}

// TestCaptureOnTheUnderlay looks at what a datagram between containers is on the
// wire: unreadable, not to be fragmented, and at most 80 bytes longer than the
// IP packet in it, also where a relay passes it on.
func TestCaptureOnTheUnderlay(t *testing.T) {
	hosts := newHosts(t, 3, options{mtu: 1376, underlayMTU: 1500})
	echo(t, hosts[0], hosts[2], addr(0).Addr(), addr(2).Addr(), 100) // so that all is learned
	wires := []card{hosts[0].cardOf(hosts[0].ns, "up0"), hosts[2].cardOf(hosts[2].ns, "up1")}
	src, dst := hosts[0].listen(addr(0).Addr()), hosts[2].listen(addr(2).Addr())
	const inner = 20 + 8 + 1200
	secret := bytes.Repeat([]byte("secret! "), 150)
	// More than one, as another frame that is due at the moment may share the packet.
	const times = 5
	buf := make([]byte, 2000)
	for range times {
		if _, err := src.WriteToUDPAddrPort(secret, dst.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
			t.Fatal(err)
		}
		_ = dst.SetReadDeadline(time.Now().Add(timeout))
		if _, err := dst.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
	for i, w := range wires {
		least := 1 << 16
		for seen := 0; seen < times; {
			b, _ := w.receive(t, 0x0800)
			ip, off, ok := ethernet.ParseIP(b)
			if !ok || ip.Protocol != 17 || ip.Len < inner {
				continue // heartbeats
			}
			if b[off+20+8] == byte(wire.Probe) {
				continue // a full-size one
			}
			seen++
			least = min(least, ip.Len-inner)
			if bytes.Contains(b, secret[:8]) {
				t.Errorf("wire %d: readable", i)
			}
			if !ip.DontFragment {
				t.Errorf("wire %d: DF is not set", i)
			}
		}
		if least != 79 {
			t.Errorf("wire %d: %d bytes beyond the inner IP packet, want 79", i, least)
		}
	}
}

// TestPathMTUChangesUnderTraffic: the underlay shrinks without a word.
func TestPathMTUChangesUnderTraffic(t *testing.T) {
	hosts := newHosts(t, 2, options{mtu: 1376, underlayMTU: 1500})
	echo(t, hosts[0], hosts[1], addr(0).Addr(), addr(1).Addr(), 1300)
	for _, h := range hosts {
		h.do(func() error {
			l, err := netlink.LinkByName("up0")
			if err != nil {
				return err
			}
			return netlink.LinkSetMTU(l, 1400)
		})
	}
	deadline := time.Now().Add(timeout)
	for {
		if err := tryEcho(hosts[0], hosts[1], addr(0).Addr(), addr(1).Addr(), 1300); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("no full packet gets through after %v: %v; %+v", timeout, err, hosts[0].Status())
		}
	}
	for l, _ := hosts[0].Link(hosts[1].name); l.MTU != 1400-71; l, _ = hosts[0].Link(hosts[1].name) {
		if time.Now().After(deadline) {
			t.Fatalf("%+v", l)
		}
	}
}
