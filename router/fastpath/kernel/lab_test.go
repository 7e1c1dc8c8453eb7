package kernel

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/internal/poll"
	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/tap"
)

const (
	labMTU  = 1376
	labPort = 6784
	timeout = 20 * time.Second // a busy machine
)

// host is a namespace with a bridge, a datapath and a TAP that nobody forwards,
// and a container. Hosts are in a line, and the maps are filled by hand:
//
//	c1 -- weft -- h1 ==== h2 -- weft -- c2        (and so on)
//	10.32.0.1, fd00::1  192.0.2.1 .2, 2001:db8:2::1 ::2
type host struct {
	*Datapath
	t     testing.TB
	opts  Options
	id    uint16
	ns, c string
	mac   [6]byte // of the container
	veth  int     // the host's end of its veth
	under map[uint16]int
	tap   *tap.Device
	up    chan []byte // frames that came up at the TAP
}

func (h *host) addr() netip.Addr  { return netip.AddrFrom4([4]byte{10, 32, 0, byte(h.id)}) }
func (h *host) addr6() netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fd00::%d", h.id)) }

type lab struct {
	v6      bool // of the underlay
	express bool
	bridged bool // with express: frames cross the bridge
	mtu     int  // of peers, if not labMTU
	noTCX   bool
	encap   Encap // not EncapVXLAN: nothing goes by VXLAN
}

func newLab(t testing.TB, n int, l lab) []*host {
	t.Helper()
	if l.mtu == 0 {
		l.mtu = labMTU
	}
	var hosts []*host
	for i := range n {
		hosts = append(hosts, newHost(t, uint16(i+1), l))
	}
	for i := range n - 1 {
		a, b := hosts[i], hosts[i+1]
		pa, pb := a.outer(a.id+1, l), b.outer(a.id, l)
		nstest.Veth(t, 1500, a.ns, fmt.Sprint("up", a.id), pa, b.ns, fmt.Sprint("up", a.id), pb)
		for _, h := range []*host{a, b} {
			h.do(func() error {
				u, err := netlink.LinkByName(fmt.Sprint("up", a.id))
				if err != nil {
					return err
				}
				h.under[a.id+b.id-h.id] = u.Attrs().Index
				return nil
			})
		}
	}
	for _, h := range hosts {
		for _, o := range hosts {
			h.meet(o, l)
		}
	}
	return hosts
}

// outer is h's address on the link towards its neighbour.
func (h *host) outer(neighbour uint16, l lab) netip.Prefix {
	link, end := min(h.id, neighbour)+1, 1
	if h.id > neighbour {
		end = 2
	}
	if l.v6 {
		return netip.MustParsePrefix(fmt.Sprintf("2001:db8:%d::%d/64", link, end))
	}
	return netip.MustParsePrefix(fmt.Sprintf("192.0.%d.%d/24", link, end))
}

func newHost(t testing.TB, id uint16, l lab) *host {
	t.Helper()
	h := &host{
		t: t, id: id, ns: nstest.New(t, fmt.Sprint("h", id)), c: nstest.New(t, fmt.Sprint("c", id)),
		under: make(map[uint16]int),
	}
	h.opts = Options{
		PinDir: filepath.Join(t.TempDir(), "bpf"), Bridge: "weft", Port: netdev.PortName, PortPeer: netdev.PortPeerName,
		TAP: "vethwe-tap", VXLAN: netdev.VXLANName, VXLANPort: labPort, MTU: labMTU, Self: id, Express: l.express && !l.bridged, noTCX: l.noTCX,
	}
	h.do(func() error {
		return netdev.EnsureBridge("weft", net.HardwareAddr{2, 0, 0, 0, 1, byte(id)}, labMTU, netdev.ProcSys)
	})
	t.Cleanup(func() {
		h.stop()
		h.do(func() error { return Remove(h.opts) })
	})
	h.start()
	h.mac, h.veth = h.container(h.c, "ethwe", h.addr(), h.addr6())
	if l.express {
		if err := h.AttachContainer(h.veth); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// container attaches a namespace to the bridge.
func (h *host) container(ns, name string, addrs ...netip.Addr) (mac [6]byte, veth int) {
	h.t.Helper()
	a := netdev.Attachment{NS: ns, Iface: name, Bridge: "weft", MTU: labMTU}
	for _, ip := range addrs {
		a.Addrs = append(a.Addrs, netip.PrefixFrom(ip, ip.BitLen()/2+8))
	}
	h.do(func() error { _, err := netdev.Attach(a); return err })
	in(h.t, ns, func() error {
		l, err := netlink.LinkByName(name)
		if err == nil {
			mac, veth = [6]byte(l.Attrs().HardwareAddr), l.Attrs().ParentIndex
		}
		return err
	})
	return mac, veth
}

// start opens the TAP and the datapath, as a router does.
func (h *host) start() {
	h.t.Helper()
	h.do(func() (err error) {
		if h.tap, err = tap.Open(h.opts.TAP, tap.Linux); err != nil {
			return err
		}
		h.Datapath, err = Open(h.opts)
		return err
	})
	if err := h.Fast(); err != nil {
		h.t.Fatal(err)
	}
	up := make(chan []byte, 10000)
	h.up = up
	go func() {
		defer close(up)
		for r := h.tap.NewReader(); ; {
			frames, err := r.ReadBatch()
			if err != nil {
				return
			}
			for _, f := range frames {
				select {
				case up <- bytes.Clone(f.Buf[tap.Headroom:]):
				default:
				}
			}
		}
	}()
}

// stop undoes start.
func (h *host) stop() {
	if h.Datapath != nil {
		if err := h.Close(); err != nil {
			h.t.Error(err)
		}
	}
	if h.tap != nil {
		_ = h.tap.Close()
		if h.up != nil { // it is nil if the datapath was refused
			for range h.up {
			}
		}
	}
	h.Datapath, h.tap, h.up = nil, nil, nil
}

// meet adds o to the maps of h, and to the neighbours of its containers, as nobody
// forwards ARP.
func (h *host) meet(o *host, l lab) {
	h.t.Helper()
	if h == o {
		h.putMAC(h.mac, h.id, uint32(h.veth), l.express)
		h.know(h)
		return
	}
	next := h.id + 1
	if o.id < h.id {
		next = h.id - 1
	}
	n := host{id: next}
	e := PeerEntry{
		Flags: PeerKnown | PeerFast, Next: next, MTU: uint16(l.mtu), Ifindex: uint32(h.under[next]),
		Remote: AddrOf(n.outer(h.id, l).Addr()), Local: AddrOf(h.outer(next, l).Addr()), Gateway: AddrOf(n.outer(h.id, l).Addr()),
	}
	if l.express {
		e.Flags |= PeerExpress | PeerDirect
	}
	if next != o.id {
		e.From[0] = next
	}
	if l.encap != EncapVXLAN && next == o.id {
		e.Flags, e.Encap4, e.Encap6 = e.Flags&^PeerFast|PeerPlain, l.encap, l.encap
		if err := h.SetPlain(true); err != nil {
			h.t.Fatal(err)
		}
		// IPv6 packets to a next hop of IPv4 need it.
		h.do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644) })
	}
	h.know(o)
	if err := h.PutPeer(o.id, e); err != nil {
		h.t.Fatal(err)
	}
	if err := h.PutRemote(ToAddr(e.Remote), Remote{Peer: next, Local: e.Local}); err != nil {
		h.t.Fatal(err)
	}
	h.putMAC(o.mac, o.id, 0, false)
	if l.express {
		if err := h.AttachUnderlay(h.under[next]); err != nil {
			h.t.Fatal(err)
		}
	}
	neighbour(h.t, h.c, "ethwe", o.mac, o.addr(), o.addr6())
}

// know tells the kernel long ago where the addresses of o are.
func (h *host) know(o *host) {
	h.t.Helper()
	for _, a := range []netip.Addr{o.addr(), o.addr6()} {
		h.putNeighbour(a, Neighbour{MAC: o.mac, Peer: o.id})
	}
}

func (h *host) putNeighbour(a netip.Addr, n Neighbour) {
	h.t.Helper()
	key := AddrOf(a)
	if err := h.Datapath.c.bpfMaps.Neighbours.Put(&key, &n); err != nil {
		h.t.Fatal(err)
	}
}

func neighbour(t testing.TB, ns, iface string, mac [6]byte, addrs ...netip.Addr) {
	t.Helper()
	in(t, ns, func() error {
		l, err := netlink.LinkByName(iface)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			err = errors.Join(err, netlink.NeighSet(&netlink.Neigh{
				LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac[:],
			}))
		}
		return err
	})
}

func (h *host) putMAC(mac [6]byte, id uint16, veth uint32, express bool) {
	h.t.Helper()
	e := MACEntry{Peer: id, Ifindex: veth}
	if express {
		e.Flags = MACExpress
	}
	if err := h.PutMAC(mac, e); err != nil {
		h.t.Fatal(err)
	}
}

func in(t testing.TB, ns string, f func() error) {
	t.Helper()
	if err := netdev.Do(ns, f); err != nil {
		t.Fatal(err)
	}
}

func (h *host) do(f func() error) { h.t.Helper(); in(h.t, h.ns, f) }

// traffic returns the counters of a peer.
func (h *host) traffic(id uint16) Traffic {
	h.t.Helper()
	tr, err := h.Traffic(id)
	if err != nil {
		h.t.Fatal(err)
	}
	return tr
}

func (h *host) entry(mac [6]byte) MACEntry {
	h.t.Helper()
	var e MACEntry
	if err := h.Datapath.c.Macs.Lookup(&MACKey{Addr: mac}, &e); err != nil {
		h.t.Fatal(err)
	}
	return e
}

// listen opens a datagram socket in ns.
func listen(t testing.TB, ns string, a netip.Addr) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	in(t, ns, func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// echo sends a datagram of n bytes from a in one namespace to b in another, once a
// second until it comes back: all namespaces share the kernel's queues, which may be
// full of packets of other tests.
func echo(t testing.TB, nsA string, a netip.Addr, nsB string, b netip.Addr, n int, wait time.Duration) error {
	t.Helper()
	src, dst := listen(t, nsA, a), listen(t, nsB, b)
	defer src.Close()
	defer dst.Close()
	go nstest.Echo(dst)
	msg, buf := make([]byte, n), make([]byte, 70000)
	_, _ = rand.Read(msg)
	for end := time.Now().Add(wait); ; {
		if _, err := src.WriteToUDPAddrPort(msg, dst.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
			return err
		}
		_ = src.SetReadDeadline(time.Now().Add(time.Second))
		k, _, err := src.ReadFromUDPAddrPort(buf)
		switch {
		case err == nil && !bytes.Equal(buf[:k], msg):
			return fmt.Errorf("%d other bytes came back", k)
		case err == nil || time.Now().After(end):
			return err
		}
	}
}

// reaches fails the test if a datagram does not come back.
func (h *host) reaches(o *host, n int) {
	h.t.Helper()
	if err := echo(h.t, h.c, h.addr(), o.c, o.addr(), n, timeout); err != nil {
		h.t.Errorf("%d to %d, %d bytes, IPv4: %v", h.id, o.id, n, err)
	}
	if err := echo(h.t, h.c, h.addr6(), o.c, o.addr6(), n, timeout); err != nil {
		h.t.Errorf("%d to %d, %d bytes, IPv6: %v", h.id, o.id, n, err)
	}
}

// transfer sends n bytes by TCP and checks that they come.
func transfer(t testing.TB, nsA string, a netip.Addr, nsB string, b netip.Addr, n int) {
	t.Helper()
	var l *net.TCPListener
	in(t, nsB, func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(b, 0)))
		return err
	})
	defer l.Close()
	_ = l.SetDeadline(time.Now().Add(timeout))
	data := make([]byte, n)
	_, _ = rand.Read(data)
	sent := make(chan error, 1)
	go func() {
		sent <- netdev.Do(nsA, func() error {
			d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 0)), Timeout: timeout}
			c, err := d.Dial("tcp", l.Addr().String())
			if err != nil {
				return err
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(2 * timeout))
			_, err = c.Write(data)
			return err
		})
	}()
	c, err := l.Accept()
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * timeout))
		var got []byte
		got, err = io.ReadAll(c)
		if err == nil && !bytes.Equal(got, data) {
			err = fmt.Errorf("%d bytes came, not the %d that were sent", len(got), n)
		}
	}
	if err := errors.Join(err, <-sent); err != nil {
		t.Errorf("TCP %s to %s: %v", a, b, err)
	}
}

const bulk = 8 << 20

// streams sends in bulk in both directions over both families.
func (h *host) streams(o *host) {
	h.t.Helper()
	transfer(h.t, h.c, h.addr(), o.c, o.addr(), bulk)
	transfer(h.t, o.c, o.addr(), h.c, h.addr(), bulk)
	transfer(h.t, h.c, h.addr6(), o.c, o.addr6(), bulk)
	transfer(h.t, o.c, o.addr6(), h.c, h.addr6(), bulk)
}

// quiet fails the test if a frame was dropped or came to the TAP, except frames of
// containers to groups.
func (h *host) quiet() {
	h.t.Helper()
	d := h.Drops()
	delete(d, "no_tap") // groups while there is no router
	if len(d) > 0 {
		h.t.Errorf("host %d dropped %v", h.id, d)
	}
	for {
		select {
		case f := <-h.up:
			if f[0]&1 == 0 {
				h.t.Errorf("host %d: came up: % x", h.id, f[:min(len(f), 60)])
			}
		default:
			return
		}
	}
}

// comesUp waits for a frame at the TAP that ok accepts.
func (h *host) comesUp(ok func(frame []byte) bool) []byte {
	h.t.Helper()
	late := time.After(timeout)
	for {
		select {
		case f := <-h.up:
			if ok(f) {
				return f
			}
		case <-late:
			h.t.Fatalf("host %d: nothing comes up; drops %v", h.id, h.Drops())
		}
	}
}

// write writes a frame to the TAP.
func (h *host) write(frame []byte) {
	h.t.Helper()
	if err := h.tap.NewWriter().Write(offload.Header{}, [][]byte{frame}); err != nil {
		h.t.Fatal(err)
	}
}

// eventually waits until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if err := poll.Until(timeout, time.Millisecond, poll.True(ok)); err != nil {
		t.Fatalf("%s: %v after %v", what, err, timeout)
	}
}

func index(t testing.TB, ns, name string) (i int) {
	t.Helper()
	in(t, ns, func() error {
		l, err := netlink.LinkByName(name)
		if err == nil {
			i = l.Attrs().Index
		}
		return err
	})
	return i
}

func isGone(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is there: %v", path, err)
	}
}

func deadline() time.Time { return time.Now().Add(timeout) }
