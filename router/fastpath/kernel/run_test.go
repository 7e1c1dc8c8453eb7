package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// skb is struct __sk_buff of linux/bpf.h, of which a test may set some.
type skb struct {
	_       [9]uint32
	_       uint32 // ingress_ifindex
	Ifindex uint32
	_       [29]uint32
	WireLen uint32
	GSOSegs uint32
	_       [2]uint32
	GSOSize uint32
	_       [3]uint32
}

// Verdicts of linux/pkt_cls.h.
const (
	next     = 0xffffffff // TC_ACT_UNSPEC
	shot     = 2
	redirect = 7
)

// bench has the programs of one host. Tests run them on frames (BPF_PROG_TEST_RUN)
// instead of attaching them.
type bench struct {
	*host
	mu     sync.Mutex
	events []Event
	before map[string]uint64
}

// MAC addresses. That of the container is h.mac.
var (
	here  = [6]byte{2, 1, 0, 0, 0, 1} // of this host, peer 1
	here2 = [6]byte{2, 1, 0, 0, 0, 2} // of this host, on another veth
	there = [6]byte{2, 2, 0, 0, 0, 1} // behind peer 2
	other = [6]byte{2, 9, 9, 9, 9, 9} // nobody knows it
	all   = [6]byte{255, 255, 255, 255, 255, 255}
)

var (
	outerHere  = netip.MustParseAddr("192.0.2.1")
	outerThere = netip.MustParseAddr("192.0.2.2")
)

const benchMTU = 1400

func newBench(t *testing.T) *bench {
	b := &bench{host: newHost(t, 1, lab{express: true})}
	b.put(PeerKnown | PeerFast | PeerExpress)
	b.check(b.PutRemote(outerThere, Remote{Peer: 2, Local: AddrOf(outerHere)}))
	b.putMAC(here, 1, uint32(b.veth), true)
	b.putMAC(here2, 1, 9999, true)
	b.putMAC(there, 2, 0, false)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		done <- b.Events(ctx, func(e Event) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.events = append(b.events, e)
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bench) check(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// put writes peer 2.
func (b *bench) put(f PeerFlags) {
	b.t.Helper()
	b.check(b.PutPeer(2, PeerEntry{Flags: f, Next: 2, MTU: benchMTU, Ifindex: 1, Remote: AddrOf(outerThere), Local: AddrOf(outerHere), Gateway: AddrOf(outerThere)}))
}

// run runs a program and returns its verdict and the resulting frame.
func (b *bench) run(p *ebpf.Program, frame []byte, ctx skb) (uint32, []byte) {
	b.t.Helper()
	b.before = b.Drops()
	o := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: &ctx}
	var verdict uint32
	b.do(func() (err error) { verdict, err = p.Run(&o); return err })
	return verdict, o.DataOut
}

// dropped checks that the last run counted this reason, or none if it is empty.
func (b *bench) dropped(reason string) {
	b.t.Helper()
	want := maps.Clone(b.before)
	if reason != "" {
		want[reason]++
	}
	if got := b.Drops(); !maps.Equal(got, want) {
		b.t.Errorf("drops are %v, were %v, want one more for %q", got, b.before, reason)
	}
}

// event waits for an event of a MAC address.
func (b *bench) event(want Event) {
	b.t.Helper()
	eventually(b.t, "event", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return slices.Contains(b.events, want)
	})
}

func frame(dst, src [6]byte, payload []byte) []byte { return slices.Concat(dst[:], src[:], payload) }

// ip4 is the payload of a frame with an IPv4 packet of n bytes, TCP with a header
// of 32 bytes.
func ip4(n int) []byte {
	b := make([]byte, 2+n)
	binary.BigEndian.PutUint16(b, 0x0800)
	b[2] = 0x45
	binary.BigEndian.PutUint16(b[4:], uint16(n))
	b[2+9] = 6
	if n >= 52 {
		b[2+20+12] = 8 << 4
	}
	return b
}

func ip6(n int) []byte {
	b := make([]byte, 2+n)
	binary.BigEndian.PutUint16(b, 0x86dd)
	b[2] = 0x60
	b[2+6] = 6
	b[2+40+12] = 8 << 4
	return b
}

func with(b []byte, at int, v ...byte) []byte {
	b = bytes.Clone(b)
	copy(b[at:], v)
	return b
}

func vlan(payload []byte) []byte { return append([]byte{0x81, 0, 0, 5}, payload...) }

var arp = append([]byte{8, 6}, make([]byte, 46)...)

func TestFromPort(t *testing.T) {
	b := newBench(t)
	run := func(f []byte, ctx skb) uint32 {
		t.Helper()
		v, out := b.run(b.Datapath.c.fromPort, f, ctx)
		if !bytes.Equal(out, f) {
			t.Errorf("the frame was changed")
		}
		return v
	}
	want := func(v, verdict uint32, reason string) {
		t.Helper()
		if v != verdict {
			t.Errorf("verdict is %d, want %d", v, verdict)
		}
		b.dropped(reason)
	}
	// counts reports whether the frame was sent to peer 2 by VXLAN.
	counts := func(f []byte, ctx skb) (packets, octets uint64) {
		t.Helper()
		old := b.traffic(2)
		want(run(f, ctx), redirect, "")
		tr := b.traffic(2)
		return tr.TxPackets - old.TxPackets, tr.TxBytes - old.TxBytes
	}

	t.Run("source", func(t *testing.T) {
		want(run(frame(there, [6]byte{}, arp), skb{}), shot, "source")
		want(run(frame(there, all, arp), skb{}), shot, "source")
		tag := AppendMetadata(nil, Metadata{Op: MetadataEcho, Src: 1, Dst: 2, Addr: outerThere})
		want(run(append(tag, make([]byte, 60)...), skb{}), shot, "source")
	})
	t.Run("to router", func(t *testing.T) {
		want(run(frame(all, other, arp), skb{}), redirect, "")
		b.event(Event{Addr: other, Peer: 1})
		want(run(frame(other, here, ip4(100)), skb{}), redirect, "")
		if n, _ := counts(frame(all, here, arp), skb{}); n != 0 {
			t.Error("a group went to a peer")
		}
	})
	t.Run("moved", func(t *testing.T) {
		want(run(frame(all, there, arp), skb{}), redirect, "")
		b.event(Event{Addr: there, Peer: 1, Old: 2})
	})
	t.Run("one event at a time", func(t *testing.T) {
		m := [6]byte{2, 7, 7, 7, 7, 7}
		// The clock between two runs may be held up for longer than the gap, so
		// it counts runs until two are close.
		eventually(t, "two runs close together", func() bool {
			start := time.Now()
			m[0] ^= 4
			m[5]++
			for range 10 {
				run(frame(all, m, arp), skb{})
			}
			return time.Since(start) < 50*time.Millisecond
		})
		b.event(Event{Addr: m, Peer: 1})
		run(frame(all, [6]byte{2, 8}, arp), skb{})
		b.event(Event{Addr: [6]byte{2, 8}, Peer: 1}) // the ring is in order
		b.mu.Lock()
		defer b.mu.Unlock()
		n := 0
		for _, e := range b.events {
			if e.Addr == m {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d events, want 1", n)
		}
	})
	t.Run("to peer", func(t *testing.T) {
		old := b.entry(here)
		f := frame(there, here, ip4(200))
		if n, o := counts(f, skb{}); n != 1 || o != uint64(len(f)) {
			t.Errorf("counted %d, %d bytes", n, o)
		}
		e := b.entry(here)
		if e.TxPackets != old.TxPackets+1 || e.TxBytes != old.TxBytes+uint64(len(f)) {
			t.Errorf("entry was %+v, is %+v", old, e)
		}
		if n, o := counts(f, skb{GSOSize: 50, GSOSegs: 7}); n != 7 || o != uint64(len(f)) {
			t.Errorf("counted %d, %d bytes", n, o)
		}
		if n, _ := counts(f, skb{GSOSize: 50}); n != 5 {
			t.Errorf("counted %d segments, want 5", n)
		}
	})
	t.Run("seen", func(t *testing.T) {
		e := b.entry(here)
		e.Seen = 1
		b.check(b.Datapath.c.Macs.Put(&MACKey{Addr: here}, &e))
		run(frame(there, here, ip4(200)), skb{})
		first := b.entry(here).Seen
		if now := BootTime(); first == 1 || first > now || now-first > uint64(timeout) {
			t.Errorf("seen at %d, now is %d", first, now)
		}
	})
	t.Run("sizes", func(t *testing.T) {
		gso := func(n uint32) skb { return skb{GSOSize: n} }
		gsoFrame := frame(there, here, ip4(3000))
		for _, c := range []struct {
			what string
			f    []byte
			ctx  skb
			fits bool
		}{
			{"fits", frame(there, here, ip4(benchMTU)), skb{}, true},
			{"one too many", frame(there, here, ip4(benchMTU+1)), skb{}, false},
			{"small segments", gsoFrame, gso(1000), true},
			{"TCP over IPv4", gsoFrame, gso(benchMTU - 52), true},
			{"TCP over IPv4, too big", gsoFrame, gso(benchMTU - 51), false},
			{"IPv4 options", with(gsoFrame, 14, 0x47), gso(benchMTU - 52), false},
			{"TCP behind IPv4 options", with(with(gsoFrame, 14, 0x46), 14+24+12, 0x50), gso(benchMTU - 44), true},
			{"UDP over IPv4", with(gsoFrame, 14+9, 17), gso(benchMTU - 28), true},
			{"UDP over IPv4, too big", with(gsoFrame, 14+9, 17), gso(benchMTU - 27), false},
			{"neither TCP nor UDP", with(gsoFrame, 14+9, 132), gso(benchMTU - 100), false},
			{"TCP over IPv6", frame(there, here, ip6(3000)), gso(benchMTU - 72), true},
			{"TCP over IPv6, too big", frame(there, here, ip6(3000)), gso(benchMTU - 71), false},
			{"extension headers", with(frame(there, here, ip6(3000)), 14+6, 0), gso(benchMTU - 110), false},
			{"VLAN", frame(there, here, vlan(ip4(3000))), gso(benchMTU - 56), true},
			{"VLAN, too big", frame(there, here, vlan(ip4(3000))), gso(benchMTU - 55), false},
			{"two VLANs", frame(there, here, vlan(vlan(ip4(3000)))), gso(benchMTU - 100), false},
			{"not IP", with(gsoFrame, 12, 0x88, 0xb7), gso(benchMTU - 100), false},
		} {
			if n, _ := counts(c.f, c.ctx); (n != 0) != c.fits {
				t.Errorf("%s: %d packets to the peer, want fits=%v", c.what, n, c.fits)
			}
		}
	})
	t.Run("not fast", func(t *testing.T) {
		b.put(PeerKnown)
		defer b.put(PeerKnown | PeerFast | PeerExpress)
		if n, _ := counts(frame(there, here, ip4(200)), skb{}); n != 0 {
			t.Error("it went to the peer")
		}
	})
	t.Run("past the VXLAN device", func(t *testing.T) {
		b.put(PeerKnown | PeerFast | PeerExpress | PeerDirect)
		defer b.put(PeerKnown | PeerFast | PeerExpress)
		b.check(b.SetExpress(false)) // as if rules filter bridged frames
		defer func() { b.check(b.SetExpress(true)) }()
		old, f := b.traffic(2), frame(there, here, ip4(200))
		v, out := b.run(b.Datapath.c.fromPort, f, skb{})
		want(v, redirect, "")
		if tr := b.traffic(2); tr.TxPackets != old.TxPackets+1 || tr.TxBytes != old.TxBytes+uint64(len(f)) {
			t.Errorf("counted %+v, were %+v", tr, old)
		}
		packed := outside(2<<12|1, 0, f)
		copy(packed[:12], out)
		copy(packed[34:36], out[34:])
		if !bytes.Equal(out, packed) {
			t.Errorf("sent\n% x, want\n% x", out, packed)
		}
		for _, f := range [][]byte{frame(there, here, arp), frame(there, here, vlan(ip4(200)))} {
			if n, _ := counts(f, skb{}); n != 1 {
				t.Errorf("% x did not go by the device", f)
			}
		}
		if n, _ := counts(frame(there, here, ip4(benchMTU+1)), skb{}); n != 0 {
			t.Error("what does not fit went to the peer")
		}
	})
	t.Run("of this host", func(t *testing.T) {
		want(run(frame(here2, here, ip4(200)), skb{}), shot, "")
	})
	t.Run("router away", func(t *testing.T) {
		c := b.config
		b.check(b.putConfig(Config{Port: c.Port, VXLAN: c.VXLAN, Self: 1, VXLANPort: c.VXLANPort}))
		want(run(frame(all, here, arp), skb{}), shot, "no_tap")
		want(run(frame(there, here, ip4(benchMTU+1)), skb{}), shot, "no_tap")
		if n, _ := counts(frame(there, here, ip4(200)), skb{}); n != 1 {
			t.Error("it did not go to the peer")
		}
		b.check(b.putConfig(Config{Port: c.Port, TAP: c.TAP, Self: 1}))
		if n, _ := counts(frame(there, here, ip4(200)), skb{}); n != 0 {
			t.Error("it went to the peer without a VXLAN device")
		}
		b.check(b.putConfig(c))
	})
}

func TestFromTAP(t *testing.T) {
	b := newBench(t)
	run := func(f []byte, verdict uint32, reason string) []byte {
		t.Helper()
		v, out := b.run(b.Datapath.c.fromTap, f, skb{})
		if v != verdict {
			t.Errorf("verdict is %d, want %d", v, verdict)
		}
		b.dropped(reason)
		return out
	}
	old := b.entry(here)
	f := frame(here, there, ip4(100))
	if out := run(f, redirect, ""); !bytes.Equal(out, f) {
		t.Error("the frame was changed")
	}
	run(frame(all, there, arp), redirect, "")
	if e := b.entry(here); e.RxPackets != old.RxPackets+1 || e.RxBytes != old.RxBytes+uint64(len(f)) {
		t.Errorf("entry was %+v, is %+v", old, e)
	}

	p := Probe{Src: 1, Dst: 2, To: outerThere, Nonce: [NonceLen]byte{1, 2, 3, 15: 16}}
	ask := AppendProbe(nil, p, 1000)
	out := run(ask, redirect, "")
	if !bytes.Equal(out, ask) {
		t.Errorf("the probe is % x", out[:60])
	}
	p.To = netip.MustParseAddr("2001:db8::2")
	run(AppendProbe(nil, p, 0), redirect, "")

	run(ask[:MinProbeLen-1], shot, "format")
	run(with(ask, probeIDs+2, 0x10), shot, "format") // an id of 13 bits
	c := b.config
	b.check(b.putConfig(Config{Port: c.Port, TAP: c.TAP, Self: 1}))
	run(ask, shot, "redirect")
	b.check(b.putConfig(c))
}

func TestFromVXLANWithoutKey(t *testing.T) {
	b := newBench(t)
	v, _ := b.run(b.Datapath.c.fromVxlan, frame(here, there, ip4(100)), skb{})
	if v != shot {
		t.Errorf("verdict is %d", v)
	}
	b.dropped("unknown_remote")
}

// outside puts the outer headers of express around a frame.
func outside(vni uint32, dscp byte, f []byte) []byte {
	n := len(f) + 36
	b := make([]byte, 14, 14+n+14)
	b[12] = 8
	b = append(b, 0x45, dscp, byte(n>>8), byte(n), 0, 0, 0x40, 0, 64, 17, 0, 0)
	b = append(b, outerHere.AsSlice()...)
	b = append(b, outerThere.AsSlice()...)
	var sum uint32
	for i := 14; i < 34; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	binary.BigEndian.PutUint16(b[24:], ^uint16(sum+sum>>16))
	n -= 20
	b = append(b, 0, 0, labPort>>8, labPort&0xff, byte(n>>8), byte(n), 0, 0)
	b = append(b, 8, 0, 0, 0, byte(vni>>16), byte(vni>>8), byte(vni), 0)
	return append(b, f...)
}

func TestFromContainer(t *testing.T) {
	b := newBench(t)
	good := frame(there, here, ip4(200))
	on := skb{Ifindex: uint32(b.veth)}
	pass := func(f []byte, ctx skb) {
		t.Helper()
		old := b.traffic(2)
		v, out := b.run(b.Datapath.c.fromContainer, f, ctx)
		if v != next {
			t.Errorf("verdict is %d, want the frame to go on", v)
		}
		if !bytes.Equal(out, f) {
			t.Error("the frame was changed")
		}
		if tr := b.traffic(2); tr != old {
			t.Error("it was counted")
		}
		b.dropped("")
	}
	goes := func(f []byte, ctx skb, tos byte) {
		t.Helper()
		old, oldMAC := b.traffic(2), b.entry(here)
		v, out := b.run(b.Datapath.c.fromContainer, f, ctx)
		if v != redirect {
			t.Fatalf("verdict is %d, want redirect", v)
		}
		b.dropped("")
		want := outside(2<<12|1, tos, f)
		if port := binary.BigEndian.Uint16(out[34:]); port < 49152 {
			t.Errorf("source port is %d", port)
		}
		copy(out[34:36], want[34:])
		copy(out[:12], want) // the neighbour's, which redirect_neigh writes
		if !bytes.Equal(out, want) {
			t.Errorf("sent\n% x, want\n% x", out[:80], want[:80])
		}
		tr, e := b.traffic(2), b.entry(here)
		if tr.TxBytes != old.TxBytes+uint64(len(f)) || e.TxBytes != oldMAC.TxBytes+uint64(len(f)) || e.TxPackets == oldMAC.TxPackets {
			t.Errorf("counted %+v, %+v", tr, e)
		}
	}

	goes(good, on, 0)
	goes(frame(there, here, ip6(200)), on, 0)
	for ecn, want := range []byte{0, 1, 2, 2} {
		goes(with(good, 15, 0xb8|byte(ecn)), on, want)
		goes(with(frame(there, here, ip6(200)), 15, byte(ecn)<<4), on, want)
	}
	goes(frame(there, here, ip4(benchMTU)), on, 0)
	// GSO packets that fit are for path_test.go: here the kernel leaves gso_type
	// open, and adjust_room takes only TCP and UDP.
	pass(frame(there, here, ip4(benchMTU+1)), on)
	pass(frame(there, here, ip4(3000)), skb{Ifindex: on.Ifindex, GSOSize: benchMTU - 51})

	pass(frame(there, here, arp), on)
	pass(frame(there, here, vlan(ip4(200))), on)
	pass(frame(all, here, ip4(200)), on)
	pass(frame(other, here, ip4(200)), on)
	pass(frame(there, all, ip4(200)), on)
	pass(frame(there, [6]byte{}, ip4(200)), on)

	// Sources that are not where they come from.
	m := [6]byte{2, 6, 0, 0, 0, 1}
	pass(frame(there, m, ip4(200)), on)
	b.event(Event{Addr: m, Peer: 1, Ifindex: on.Ifindex})
	pass(frame(there, here2, ip4(200)), on)
	b.event(Event{Addr: here2, Peer: 1, Ifindex: on.Ifindex, Old: 1})
	pass(frame(there, there, ip4(200)), on)
	b.event(Event{Addr: there, Peer: 1, Ifindex: on.Ifindex, Old: 2})

	// To a container of this host.
	old, old2 := b.entry(here), b.entry(here2)
	f := frame(here2, here, arp)
	if v, out := b.run(b.Datapath.c.fromContainer, f, on); v != redirect || !bytes.Equal(out, f) {
		t.Errorf("verdict is %d", v)
	}
	if e, e2 := b.entry(here), b.entry(here2); e.TxBytes != old.TxBytes+uint64(len(f)) || e2.RxBytes != old2.RxBytes+uint64(len(f)) || e2.RxPackets != old2.RxPackets+1 {
		t.Errorf("counted %+v, %+v", e, e2)
	}
	pass(frame(here, here, arp), on)
	b.putMAC(here2, 1, 9999, false)
	pass(f, on)
	b.putMAC(here2, 1, 0, true)
	pass(f, on)

	// What the router forbids.
	b.putMAC(here, 1, on.Ifindex, false)
	pass(good, on)
	b.putMAC(here, 1, on.Ifindex, true)
	for _, flags := range []PeerFlags{0, PeerKnown, PeerKnown | PeerFast, PeerKnown | PeerExpress} {
		b.put(flags)
		pass(good, on)
	}
	v6, e := AddrOf(netip.MustParseAddr("2001:db8::1")), PeerEntry{}
	b.put(PeerKnown | PeerFast | PeerExpress)
	b.check(b.Datapath.c.Peers.Lookup(uint32(2), &e))
	for _, change := range []func(*PeerEntry){
		func(e *PeerEntry) { e.Remote = v6 }, func(e *PeerEntry) { e.Local = v6 }, func(e *PeerEntry) { e.Gateway = v6 },
		func(e *PeerEntry) { e.Ifindex = 0 }, func(e *PeerEntry) { e.MTU = 100 },
	} {
		changed := e
		change(&changed)
		b.check(b.PutPeer(2, changed))
		pass(good, on)
	}
	b.check(b.PutPeer(2, e))
	goes(good, on, 0)
	b.check(b.SetExpress(false))
	unseen := [6]byte{2, 6, 0, 0, 0, 2}
	pass(frame(there, unseen, ip4(200)), on)
	pass(good, on)
	b.check(b.SetExpress(true))
	b.check(b.SetSelf(0))
	pass(good, on)
	b.check(b.SetSelf(1))
	pass(frame(there, [6]byte{2, 6, 0, 0, 0, 3}, ip4(200)), on)
	b.event(Event{Addr: [6]byte{2, 6, 0, 0, 0, 3}, Peer: 1, Ifindex: on.Ifindex})
	b.mu.Lock()
	defer b.mu.Unlock()
	// Events come in order.
	if slices.ContainsFunc(b.events, func(e Event) bool { return e.Addr == unseen }) {
		t.Error("an event while express was off")
	}
}

func TestFromUnderlay(t *testing.T) {
	b := newBench(t)
	// The other way round: from peer 2 to this host.
	wrap := func(vni uint32, f []byte) []byte {
		p := outside(vni, 0, f)
		copy(p[26:], outerThere.AsSlice())
		copy(p[30:], outerHere.AsSlice())
		return p
	}
	const vni = 1<<12 | 2
	inner := frame(here, there, ip4(200))
	good := wrap(vni, inner)
	pass := func(what string, f []byte) {
		t.Helper()
		old := b.traffic(2)
		v, out := b.run(b.Datapath.c.fromUnderlay, f, skb{})
		if v != next {
			t.Errorf("%s: verdict is %d, want the packet to go on", what, v)
		}
		if !bytes.Equal(out, f) {
			t.Errorf("%s: the packet was changed", what)
		}
		if tr := b.traffic(2); tr != old {
			t.Errorf("%s: it was counted", what)
		}
		b.dropped("")
	}
	comes := func(what string, f, inner []byte) {
		t.Helper()
		old, s, d := b.traffic(2), b.entry(there), b.entry(here)
		v, out := b.run(b.Datapath.c.fromUnderlay, f, skb{})
		if v != redirect {
			t.Errorf("%s: verdict is %d, want redirect", what, v)
		}
		if !bytes.Equal(out, inner) {
			t.Errorf("%s: delivered\n% x, want\n% x", what, out[:min(len(out), 80)], inner[:60])
		}
		n := uint64(len(inner))
		tr, s2, d2 := b.traffic(2), b.entry(there), b.entry(here)
		if tr.RxBytes != old.RxBytes+n || s2.TxBytes != s.TxBytes+n || d2.RxBytes != d.RxBytes+n || d2.RxPackets == d.RxPackets {
			t.Errorf("%s: counted %+v, %+v, %+v", what, tr, s2, d2)
		}
		b.dropped("")
	}

	comes("IPv4", good, inner)
	six := frame(here, there, ip6(200))
	comes("IPv6", wrap(vni, six), six)
	comes("ECT", with(good, 15, 2), inner)

	pass("other ethertype", with(good, 12, 0x86, 0xdd))
	pass("VLAN", append(with(good[:14], 12, 0x81, 0, 0, 5), good[12:]...))
	pass("another host's", with(good, 0, 2, 2, 2, 2, 2, 2))
	pass("TCP", with(good, 23, 6))
	pass("port", with(good, 36, 0, 53))
	pass("options", with(good, 14, 0x46))
	pass("fragment", with(good, 20, 0x20))
	pass("last fragment", with(good, 21, 1))
	pass("checksum", with(good, 41, 1))
	pass("congestion", with(good, 15, 3))
	pass("padding", append(bytes.Clone(good), 0, 0))
	pass("flags", with(good, 42, 0))
	pass("more flags", with(good, 42, 0x88))
	pass("ARP inside", wrap(vni, frame(here, there, arp)))
	pass("short", good[:60])
	pass("for another peer", wrap(3<<12|2, inner))
	pass("from nobody", wrap(1<<12, inner))
	pass("from itself", wrap(1<<12|1, inner))
	pass("from an unknown peer", wrap(1<<12|3, inner))
	pass("unknown remote", with(good, 29, 9))
	pass("to another address", with(good, 33, 9))
	pass("unknown source", wrap(vni, frame(here, other, ip4(200))))
	pass("source of this host", wrap(vni, frame(here, here2, ip4(200))))
	pass("unknown destination", wrap(vni, frame(other, there, ip4(200))))
	pass("group", wrap(vni, frame(all, there, ip4(200))))
	pass("destination elsewhere", wrap(vni, frame(there, there, ip4(200))))
	pass("probe", wrap(vni, frame([6]byte{}, [6]byte{}, append([]byte{0x88, 0xb5, 1}, make([]byte, 60)...))))

	// The router is away, for a while and for too long.
	b.check(b.Lease(time.Hour))
	comes("router away for a while", good, inner)
	b.check(b.Lease(-time.Second))
	pass("router away for too long", good)
	if v, _ := b.run(b.Datapath.c.fromContainer, frame(there, here, ip4(200)), skb{Ifindex: uint32(b.veth)}); v != next {
		t.Errorf("a frame for another host, router away for too long: verdict %d", v)
	}
	b.check(b.Lease(time.Hour))

	// A frame of another peer, relayed by the neighbour.
	b.putMAC(there, 3, 0, false)
	relayed := wrap(1<<12|3, inner)
	for _, e := range []struct {
		entry PeerEntry
		ok    bool
	}{
		{PeerEntry{Flags: PeerKnown}, false},
		{PeerEntry{Flags: PeerKnown, From: [16]uint16{4, 5}}, false},
		{PeerEntry{Flags: PeerKnown, From: [16]uint16{4, 2}}, true},
		{PeerEntry{Flags: PeerKnown, From: [16]uint16{15: 2}}, true},
		{PeerEntry{Flags: PeerKnown | PeerAny}, true},
	} {
		b.check(b.PutPeer(3, e.entry))
		v, out := b.run(b.Datapath.c.fromUnderlay, relayed, skb{})
		if e.ok && (v != redirect || !bytes.Equal(out, inner)) || !e.ok && (v != next || !bytes.Equal(out, relayed)) {
			t.Errorf("relayed, the entry of its peer is %+v: verdict %d", e.entry, v)
		}
	}
	b.check(b.DeletePeer(3))
	b.putMAC(there, 2, 0, false)

	// Where it goes, path_test.go shows.
	b.putMAC(here, 1, uint32(b.veth), false)
	comes("MAC address that is not express", good, inner)
	b.putMAC(here, 1, 0, true)
	comes("MAC address without a veth", good, inner)
	b.putMAC(here, 1, uint32(b.veth), true)
	b.put(PeerKnown | PeerFast)
	pass("neighbour that is not express", good)
	b.put(PeerKnown | PeerFast | PeerExpress)
	var e PeerEntry
	b.check(b.Datapath.c.Peers.Lookup(uint32(2), &e))
	e.Ifindex++
	b.check(b.PutPeer(2, e))
	pass("by another interface than goes there", good)
	b.put(PeerKnown | PeerFast | PeerExpress)
	b.check(b.SetExpress(false))
	comes("bridged", good, inner)
	b.check(b.SetExpress(true))
	b.check(b.SetSelf(0))
	pass("no id", good)
	b.check(b.SetSelf(1))
	comes("IPv4 again", good, inner)
}
