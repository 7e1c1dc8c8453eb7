package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev/nstest"
)

// wire is one host, and a namespace on its underlay with the addresses of several other
// hosts, which sends and receives VXLAN packets:
//
//	host 1, 192.0.2.1 ==== .2 neighbour 2, .3 neighbour 3, .9 nobody
type wire struct {
	*host
	peer string // the namespace
	rx   map[string]*net.UDPConn
}

func newWire(t *testing.T) *wire {
	w := &wire{host: newHost(t, 1, lab{}), peer: nstest.New(t, "p"), rx: make(map[string]*net.UDPConn)}
	nstest.Veth(t, 1500, w.ns, "up1", netip.MustParsePrefix("192.0.2.1/24"), w.peer, "up1", netip.MustParsePrefix("192.0.2.2/24"))
	in(t, w.peer, func() error {
		l, err := netlink.LinkByName("up1")
		if err != nil {
			return err
		}
		for _, a := range []string{"192.0.2.3/24", "192.0.2.9/24"} {
			addr, err := netlink.ParseAddr(a)
			if err == nil {
				err = netlink.AddrAdd(l, addr)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	for _, a := range []string{"192.0.2.2", "192.0.2.3", "192.0.2.9"} {
		in(t, w.peer, func() error {
			c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(a), Port: labPort})
			if err != nil {
				return err
			}
			w.rx[a] = c
			raw, err := c.SyscallConn()
			if err != nil {
				return err
			}
			return raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTTL, 1) })
		})
		t.Cleanup(func() { w.rx[a].Close() })
	}
	w.put(2, "192.0.2.2", PeerKnown|PeerFast, labMTU)
	w.put(3, "192.0.2.3", PeerKnown|PeerFast, labMTU)
	for id, a := range map[uint16]string{2: "192.0.2.2", 3: "192.0.2.3"} {
		if err := w.PutRemote(netip.MustParseAddr(a), Remote{Peer: id, Local: AddrOf(outerHere)}); err != nil {
			t.Fatal(err)
		}
	}
	w.putMAC(w.mac, 1, 0, false)
	return w
}

func (w *wire) put(id uint16, remote string, f PeerFlags, mtu uint16) {
	w.t.Helper()
	if err := w.PutPeer(id, PeerEntry{Flags: f, Next: id, MTU: mtu, Remote: AddrOf(netip.MustParseAddr(remote)), Local: AddrOf(outerHere)}); err != nil {
		w.t.Fatal(err)
	}
}

// send sends a frame in VXLAN.
func (w *wire) send(from string, src, dst uint32, ttl int, frame []byte) {
	w.t.Helper()
	raw, err := w.rx[from].SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, ttl) })
	}
	if err != nil {
		w.t.Fatal(err)
	}
	vni := dst<<12 | src
	b := append([]byte{8, 0, 0, 0, byte(vni >> 16), byte(vni >> 8), byte(vni), 0}, frame...)
	if _, err := w.rx[from].WriteToUDPAddrPort(b, netip.AddrPortFrom(outerHere, labPort)); err != nil {
		w.t.Fatal(err)
	}
}

// receive waits for VXLAN at an address.
func (w *wire) receive(at string) (vni uint32, ttl int, frame []byte) {
	w.t.Helper()
	b, oob := make([]byte, 70000), make([]byte, 256)
	_ = w.rx[at].SetReadDeadline(time.Now().Add(timeout))
	n, m, _, _, err := w.rx[at].ReadMsgUDPAddrPort(b, oob)
	if err != nil || n < 8 {
		w.t.Fatalf("%d bytes at %s: %v; drops %v", n, at, err, w.Drops())
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:m])
	if err != nil || len(msgs) == 0 || len(msgs[0].Data) < 4 {
		w.t.Fatalf("no TTL with what came: %v", err)
	}
	if !bytes.Equal(b[:4], []byte{8, 0, 0, 0}) || b[7] != 0 {
		w.t.Errorf("VXLAN header is % x", b[:8])
	}
	return binary.BigEndian.Uint32(b[4:]) >> 8, int(binary.NativeEndian.Uint32(msgs[0].Data)), b[8:n]
}

// drops waits until exactly these are counted; without a router there may be more
// for it, as containers send to groups now and then.
func (w *wire) drops(want map[string]uint64) {
	w.t.Helper()
	eventually(w.t, fmt.Sprint("drops ", want), func() bool {
		got := w.Drops()
		for k, n := range got {
			switch {
			case n > want[k] && k == "no_tap" && w.tap == nil:
				got[k] = want[k]
			case n > want[k]:
				w.t.Fatalf("drops are %v, want %v", got, want)
			}
		}
		return maps.Equal(got, want)
	})
}

// probeFrame is a probe on the wire with a partial checksum.
func probeFrame(op byte, nonce [16]byte, length int) []byte {
	b := AppendProbe(nil, Probe{Src: 1, Dst: 2, To: outerThere, Nonce: nonce}, length)
	b[5] = op
	return b
}

// TestFromVXLANDrops sends what must not pass, each with its reason.
func TestFromVXLANDrops(t *testing.T) {
	w := newWire(t)
	f := frame(w.mac, there, ip4(100))
	want := make(map[string]uint64)
	// Frames of 5 come over 3.
	if err := w.PutPeer(5, PeerEntry{Flags: PeerKnown, From: [16]uint16{3}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what, from string
		src, dst   uint32
		ttl        int
		frame      []byte
		reason     string
	}{
		{"unknown remote", "192.0.2.9", 2, 1, 64, f, "unknown_remote"},
		{"no source", "192.0.2.2", 0, 1, 64, f, "vni"},
		{"own id as source", "192.0.2.2", 1, 1, 64, f, "vni"},
		{"unknown source", "192.0.2.2", 7, 1, 64, f, "vni"},
		{"unknown destination", "192.0.2.2", 2, 7, 64, f, "vni"},
		{"no destination", "192.0.2.2", 2, 0, 64, f, "vni"},
		{"group as source", "192.0.2.2", 2, 1, 64, frame(w.mac, all, ip4(100)), "source"},
		{"zero as source", "192.0.2.2", 2, 1, 64, frame(w.mac, [6]byte{}, ip4(100)), "source"},
		{"zero as source and destination", "192.0.2.2", 2, 1, 64, frame([6]byte{}, [6]byte{}, ip4(100)), "source"},
		{"probe for another", "192.0.2.2", 2, 3, 64, probeFrame(1, [16]byte{}, 100), "vni"},
		{"probe with another's id", "192.0.2.2", 3, 1, 64, probeFrame(1, [16]byte{}, 100), "spoofed"},
		{"probe of an unknown kind", "192.0.2.2", 2, 1, 64, probeFrame(3, [16]byte{}, 100), "source"},
		{"probe to somebody", "192.0.2.2", 2, 1, 64, with(probeFrame(1, [16]byte{}, 100), 4, 1), "source"},
		{"probe of another ethertype", "192.0.2.2", 2, 1, 64, with(probeFrame(1, [16]byte{}, 100), 12, 9), "source"},
		{"short probe", "192.0.2.2", 2, 1, 64, probeFrame(1, [16]byte{}, 0)[:MinProbeLen-1], "format"},
		{"old", "192.0.2.2", 2, 3, 1, f, "ttl"},
		{"back", "192.0.2.3", 5, 3, 64, f, "loop"},
		{"in another neighbour's name", "192.0.2.3", 2, 1, 64, f, "misrouted"},
		{"in the name of a peer that comes over another", "192.0.2.2", 5, 1, 64, f, "misrouted"},
		{"likewise, to be relayed", "192.0.2.2", 5, 3, 64, f, "misrouted"},
	} {
		w.send(c.from, c.src, c.dst, c.ttl, c.frame)
		want[c.reason]++
		t.Log(c.what)
		w.drops(want)
	}
	if err := w.Lease(-time.Second); err != nil {
		t.Fatal(err)
	}
	w.send("192.0.2.2", 2, 1, 64, f)
	w.send("192.0.2.2", 2, 1, 64, probeFrame(1, [16]byte{}, 100))
	want["expired"] = 2
	w.drops(want)
	if err := w.Lease(time.Hour); err != nil {
		t.Fatal(err)
	}
	if tr := w.traffic(2); tr != (Traffic{}) {
		t.Errorf("counted %+v", tr)
	}
	w.stop()
	w.do(func() (err error) { w.Datapath, err = openKernel(w.opts); return err })
	w.send("192.0.2.2", 2, 1, 64, probeFrame(2, [16]byte{}, 100))
	w.put(3, "192.0.2.3", PeerKnown, labMTU)
	w.send("192.0.2.2", 2, 3, 64, f)
	want["no_tap"] = 2
	w.drops(want)
}

// openKernel reads the pinned maps again without a TAP, as after a router's end.
func openKernel(o Options) (*Datapath, error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, err
	}
	d := &Datapath{opts: o, dir: o.PinDir + "/" + layoutVersion(spec)}
	d.c, err = load(spec, d.dir)
	d.ns = -1
	if err == nil {
		err = d.c.Config.Lookup(uint32(0), &d.config)
	}
	return d, err
}

// TestProbe asks and is asked.
func TestProbe(t *testing.T) {
	w := newWire(t)
	nonce := [16]byte{1, 2, 3, 15: 9}
	ask := func() []byte {
		t.Helper()
		p := AppendProbe(nil, Probe{Src: 1, Dst: 2, To: outerThere, Nonce: nonce}, labMTU+14)
		if err := w.tap.NewWriter().Write(ProbeHeader, [][]byte{p}); err != nil {
			t.Fatal(err)
		}
		vni, ttl, ask := w.receive("192.0.2.2")
		if vni != 2<<12|1 || ttl != 64 {
			t.Errorf("VNI %#x, TTL %d", vni, ttl)
		}
		return ask
	}
	// echo sends an echo and returns what comes up of it.
	echo := func(b []byte) (summed bool) {
		t.Helper()
		w.send("192.0.2.2", 2, 1, 61, b)
		up := w.comesUp(func(f []byte) bool { _, ok := ParseMetadata(f); return ok })
		if tag, _ := ParseMetadata(up); tag != (Metadata{Op: MetadataEcho, Src: 2, Dst: 1, TTL: 61, Addr: outerThere}) {
			t.Errorf("the tag is %+v", tag)
		}
		n, summed, ok := ParseEcho(up[MetadataLen:])
		if !ok || n != nonce || len(up) != MetadataLen+labMTU+14 {
			t.Errorf("the echo is %d bytes: % x", len(up), up[:60])
		}
		return summed
	}
	// This underlay has no card that would make the checksum, and so it comes as
	// by one that makes wrong ones.
	asked := ask()
	if !bytes.Equal(asked, probeFrame(1, nonce, labMTU+14)) {
		t.Errorf("probe of %d bytes: % x", len(asked), asked[:40])
	}
	if echo(probeFrame(2, nonce, labMTU+14)) {
		t.Error("an partial checksums is taken for right")
	}
	if err := w.SumInSoftware(); err != nil {
		t.Fatal(err)
	}
	asked = ask()
	asked[5] = 2
	if !echo(asked) {
		t.Error("a checksum made in software is wrong")
	}
	// The kernel answers, whether there is a router or not.
	for range 2 {
		w.send("192.0.2.2", 2, 1, 64, probeFrame(1, nonce, 1000))
		vni, ttl, echo := w.receive("192.0.2.2")
		if vni != 2<<12|1 || ttl != 64 || !bytes.Equal(echo, probeFrame(2, nonce, 1000)) {
			t.Errorf("VNI %#x, TTL %d, echo of %d bytes: % x", vni, ttl, len(echo), echo[:40])
		}
		w.stop()
	}
	// The next router tries the card again.
	w.start()
	if asked := ask(); !bytes.Equal(asked, probeFrame(1, nonce, labMTU+14)) {
		t.Errorf("probe of %d bytes: % x", len(asked), asked[:40])
	}
}

// TestDelivery checks what a frame for this host does besides being delivered.
func TestDelivery(t *testing.T) {
	w := newWire(t)
	b := bench{host: w.host}
	var got []Event
	seen, ctx := make(chan Event, 100), t.Context()
	go func() { _ = b.Events(ctx, func(e Event) { seen <- e }) }()
	wait := func() Event {
		select {
		case e := <-seen:
			got = append(got, e)
			return e
		case <-time.After(timeout):
			t.Fatalf("no event; there were %+v", got)
		}
		return Event{}
	}
	waitFor := func(want Event) {
		t.Helper()
		for wait() != want {
		}
	}
	f := frame(w.mac, there, ip4(100))
	w.send("192.0.2.2", 2, 1, 64, f)
	waitFor(Event{Addr: there, Peer: 2})
	w.putMAC(there, 2, 0, false)
	w.send("192.0.2.2", 2, 1, 64, f)
	n := uint64(len(f))
	eventually(t, "counters", func() bool { return w.traffic(2).RxPackets == 2 })
	if tr, s, d := w.traffic(2), w.entry(there), w.entry(w.mac); tr != (Traffic{RxPackets: 2, RxBytes: 2 * n}) ||
		s.TxPackets != 1 || s.TxBytes != n || d.RxPackets != 2 || d.RxBytes != 2*n {
		t.Errorf("counted %+v, %+v, %+v", tr, s, d)
	}
	w.put(3, "192.0.2.3", PeerKnown, labMTU)
	eventually(t, "an event of the move", func() bool {
		w.send("192.0.2.3", 3, 1, 64, f)
		select {
		case e := <-seen:
			return e == Event{Addr: there, Peer: 3, Old: 2}
		case <-time.After(10 * time.Millisecond):
			return false
		}
	})
	if len(w.Drops()) > 0 {
		t.Errorf("drops are %v", w.Drops())
	}
}

// TestPassOn checks what becomes of frames between two other peers.
func TestPassOn(t *testing.T) {
	w := newWire(t)
	f := frame(other, there, ip4(1000))
	w.send("192.0.2.2", 2, 3, 9, f)
	vni, ttl, got := w.receive("192.0.2.3")
	if vni != 3<<12|2 || ttl != 8 || !bytes.Equal(got, f) {
		t.Errorf("VNI %#x, TTL %d, frame % x", vni, ttl, got[:20])
	}
	if tr := w.traffic(3); tr != (Traffic{RelayedPackets: 1, RelayedBytes: uint64(len(f))}) {
		t.Errorf("counted %+v", tr)
	}
	tagged := func(f []byte) bool { _, ok := ParseMetadata(f); return ok }
	for reason, change := range map[MetadataReason]func(){
		ReasonBig:  func() { w.put(3, "192.0.2.3", PeerKnown|PeerFast, 999) },
		ReasonSlow: func() { w.put(3, "192.0.2.3", PeerKnown, labMTU) },
	} {
		change()
		w.send("192.0.2.2", 2, 3, 9, f)
		up := w.comesUp(tagged)
		if tag, _ := ParseMetadata(up); tag != (Metadata{Op: MetadataRelay, Reason: reason, Src: 2, Dst: 3, TTL: 9, Addr: outerThere}) || !bytes.Equal(up[MetadataLen:], f) {
			t.Errorf("%+v, frame % x", tag, up[MetadataLen:MetadataLen+20])
		}
	}
	if len(w.Drops()) > 0 {
		t.Errorf("drops are %v", w.Drops())
	}
}
