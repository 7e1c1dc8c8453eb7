package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/internal/checksum"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/seed"
)

// The hosts of TestPlain have no VXLAN: all that arrives came by plain packets.
func TestPlain(t *testing.T) {
	for name, l := range map[string]lab{
		"none": {encap: EncapNone}, "none, clsact": {encap: EncapNone, noTCX: true}, "none, bridged": {encap: EncapNone, bridged: true},
		"IPIP": {encap: EncapIPIP}, "IPIP, bridged": {encap: EncapIPIP, bridged: true},
	} {
		l.express = true
		t.Run(name, func(t *testing.T) {
			hosts := newLab(t, 2, l)
			a, b := hosts[0], hosts[1]
			if l.bridged {
				for _, h := range hosts {
					h.do(testbed.FilterBridged)
				}
			}
			a.reaches(b, 1000)
			a.streams(b)
			took(t, hosts, true)
			a.countedAs(b)
			if s := b.entry(a.mac); s.TxBytes < bulk {
				t.Errorf("counted %+v", s)
			}
		})
	}
}

// plainBench has an address of each family here and there, and takes plain packets from peer 2.
func newPlainBench(t *testing.T) *bench {
	b := newBench(t)
	b.plain(PeerKnown|PeerFast|PeerExpress|PeerDirect|PeerPlain, EncapNone)
	b.check(b.SetPlain(true))
	for a, n := range map[netip.Addr]Neighbour{
		ip4Here: {MAC: here, Peer: 1}, ip6Here: {MAC: here, Peer: 1}, ip4There: {MAC: there, Peer: 2}, ip6There: {MAC: there, Peer: 2},
	} {
		b.putNeighbour(a, n)
	}
	return b
}

func (b *bench) plain(f PeerFlags, e Encap) {
	b.t.Helper()
	b.check(b.PutPeer(2, PeerEntry{
		Flags: f, Next: 2, MTU: benchMTU, Ifindex: loopback, Encap4: e, Encap6: e,
		Remote: AddrOf(outerThere), Local: AddrOf(outerHere), Gateway: AddrOf(outerThere),
	}))
}

// ip is the payload of a frame with a packet of TCP.
func ip(from, to netip.Addr) []byte {
	if from.Is4() {
		p := ip4(60)
		copy(p[2+12:], from.AsSlice())
		copy(p[2+16:], to.AsSlice())
		return p
	}
	p := ip6(80)
	copy(p[2+8:], from.AsSlice())
	copy(p[2+24:], to.AsSlice())
	return p
}

// udpTo is the payload of a frame with a packet of UDP.
func udpTo(from, to netip.Addr, port uint16) []byte {
	p := ip(from, to)
	l4 := 2 + 40
	if from.Is4() {
		l4 = 2 + 20
		p[2+9] = protoUDP
	} else {
		p[2+6] = protoUDP
	}
	clear(p[l4:])
	binary.BigEndian.PutUint16(p[l4+2:], port)
	return p
}

// inIPIP puts the payload of a frame into IPIP.
func inIPIP(from, to netip.Addr, tos byte, payload []byte) []byte {
	p := ip4(20)
	p[2+1], p[2+9] = tos, 4
	if payload[0] == 0x86 {
		p[2+9] = 41
	}
	binary.BigEndian.PutUint16(p[4:], uint16(20+len(payload)-2))
	copy(p[2+12:], from.AsSlice())
	copy(p[2+16:], to.AsSlice())
	return append(p, payload[2:]...)
}

// lo is the address of the interface of the underlay in these tests.
var lo [6]byte

// Each packet that must pass as a plain one does, in both directions, and each that must not goes another way.
func TestWhatIsPlain(t *testing.T) {
	b := newPlainBench(t)
	sent := func(f []byte, plain bool, what string, want []byte) {
		t.Helper()
		v, out := b.run(b.Datapath.c.fromPort, f, skb{})
		if v != redirect || plain != bytes.Equal(out[12:], want) {
			t.Errorf("%s: verdict %d, plain should be %v: % x", what, v, plain, out)
		}
	}
	for _, a := range [][2]netip.Addr{{ip4Here, ip4There}, {ip6Here, ip6There}} {
		p := ip(a[0], a[1])
		// Without a neighbour entry an IPv6 packet cannot leave so; the lab test shows that it can.
		sent(frame(there, here, p), a[0].Is4(), "known addresses", p)
		b.plain(PeerKnown|PeerFast|PeerExpress|PeerDirect, EncapIPIP)
		sent(frame(there, here, p), true, "known addresses, IPIP", withSum(inIPIP(outerHere, outerThere, 0, p)))
		b.plain(PeerKnown|PeerFast|PeerExpress|PeerDirect, EncapNone)
		for what, f := range map[string][]byte{
			"another MAC address": frame(there, here2, p), "from another address": frame(there, here, ip(a[0].Next(), a[1])),
			"to another address": frame(there, here, ip(a[0], a[1].Next())), "back": frame(there, here, ip(a[1], a[0])),
			"with a VLAN tag": frame(there, here, vlan(p)), "ARP": frame(there, here, arp),
		} {
			v, out := b.run(b.Datapath.c.fromPort, f, skb{})
			if v != redirect || bytes.Equal(out[12:], f[12:]) && a[0].Is4() && what != "with a VLAN tag" && what != "ARP" {
				t.Errorf("%s: verdict %d: % x", what, v, out)
			}
		}
		now := Neighbour{MAC: there, Peer: 2, Since: BootTime()}
		b.putNeighbour(a[1], now)
		v, out := b.run(b.Datapath.c.fromPort, frame(there, here, p), skb{})
		if v != redirect || bytes.Equal(out[12:], p) {
			t.Errorf("an address that is new: verdict %d: % x", v, out)
		}
		now.Since += 1 << 40 // as if another CPU had written it later
		b.putNeighbour(a[1], now)
		if v, out := b.run(b.Datapath.c.fromPort, frame(there, here, p), skb{}); v != redirect || bytes.Equal(out[12:], p) {
			t.Errorf("an address that is newer than the frame: verdict %d: % x", v, out)
		}
		b.putNeighbour(a[1], Neighbour{MAC: there, Peer: 2})

		b.plain(PeerKnown|PeerFast|PeerExpress|PeerDirect, EncapIPIP)
		for port, plain := range map[uint16]bool{labPort: false, labPort + 1: true} {
			u := udpTo(a[0], a[1], port)
			sent(frame(there, here, u), plain, fmt.Sprint("UDP to port ", port), withSum(inIPIP(outerHere, outerThere, 0, u)))
		}
		b.plain(PeerKnown|PeerFast|PeerExpress|PeerDirect, EncapNone)
	}
	b.check(b.PutPeer(2, PeerEntry{
		Flags: PeerKnown | PeerFast | PeerExpress | PeerDirect, Next: 2, MTU: benchMTU, Ifindex: loopback, Encap4: EncapNone,
		Remote: AddrOf(outerThere), Local: AddrOf(outerHere), Gateway: AddrOf(outerThere.Next()),
	}))
	for ttl, plain := range map[byte]bool{1: false, 31: false, 32: true, 64: true, 254: true, 255: false} {
		p := with(ip(ip4Here, ip4There), 2+8, ttl)
		sent(frame(there, here, p), plain, fmt.Sprint("over a router with TTL ", ttl), p)
	}

	b.plain(PeerKnown|PeerFast|PeerExpress|PeerDirect|PeerPlain, EncapNone)
	got := func(what string, payload []byte, verdict uint32, reason string) {
		t.Helper()
		f := frame(lo, other, payload)
		v, out := b.run(b.Datapath.c.fromUnderlay, f, skb{})
		if v != verdict {
			t.Errorf("%s: verdict %d, want %d", what, v, verdict)
		}
		if v == next && !bytes.Equal(out, f) {
			t.Errorf("%s: changed to % x", what, out)
		}
		b.dropped(reason)
	}
	for _, a := range [][2]netip.Addr{{ip4There, ip4Here}, {ip6There, ip6Here}} {
		p := ip(a[0], a[1])
		for encap, payload := range map[Encap][]byte{EncapNone: p, EncapIPIP: inIPIP(outerThere, outerHere, 0, p)} {
			v, out := b.run(b.Datapath.c.fromUnderlay, frame(lo, other, payload), skb{})
			if v != redirect || !bytes.Equal(out, frame(here, there, p)) {
				t.Errorf("%s to %s, encapsulation %d: verdict %d: % x", a[0], a[1], encap, v, out)
			}
			b.dropped("")
			of := func(from, to netip.Addr) []byte {
				if encap == EncapIPIP {
					return inIPIP(outerThere, outerHere, 0, ip(from, to))
				}
				return ip(from, to)
			}
			got("from an address that nobody has", of(a[0].Next(), a[1]), next, "")
			got("to an address that nobody has", of(a[0], a[1].Next()), next, "")
			got("from this host", of(a[1], a[1]), next, "")
			got("to another host", of(a[0], a[0]), next, "")
			b.plain(PeerKnown|PeerFast|PeerExpress|PeerDirect, EncapNone)
			got("of a peer that may not send it", payload, next, "")
			b.plain(PeerKnown|PeerFast|PeerExpress|PeerDirect|PeerPlain, EncapNone)
			b.check(b.SetPlain(false))
			got("while nobody may send it", payload, next, "")
			b.check(b.SetPlain(true))
			b.check(b.Lease(-1))
			got("after the lease", payload, shot, "expired")
			b.check(b.Lease(1 << 50))
			b.check(b.PutPeer(2, PeerEntry{Flags: PeerKnown | PeerPlain, Next: 2, MTU: benchMTU, Ifindex: 99, Remote: AddrOf(outerThere), Local: AddrOf(outerHere), Gateway: AddrOf(outerThere)}))
			got("by another interface", payload, next, "")
			b.plain(PeerKnown|PeerFast|PeerExpress|PeerDirect|PeerPlain, EncapNone)
		}
		if a[0].Is4() { // IPIP of containers, as their own tunnels have it
			own := inIPIP(a[0], a[1], 0, p)
			for encap, payload := range map[Encap][]byte{EncapNone: own, EncapIPIP: inIPIP(outerThere, outerHere, 0, own)} {
				v, out := b.run(b.Datapath.c.fromUnderlay, frame(lo, other, payload), skb{})
				if v != redirect || !bytes.Equal(out, frame(here, there, own)) {
					t.Errorf("IPIP of a container, encapsulation %d: verdict %d: % x", encap, v, out)
				}
			}
		}
		got("IPIP from a host that is no peer", inIPIP(outerThere.Next(), outerHere, 0, p), next, "")
		got("IPIP to another address", inIPIP(outerThere, outerHere.Next(), 0, p), next, "")
		got("IPIP that is cut off", inIPIP(outerThere, outerHere, 0, p)[:2+20+10], next, "")
		got("IPIP in IPIP", inIPIP(outerThere, outerHere, 0, inIPIP(outerThere, outerHere, 0, p)), next, "")
		got("a fragment of IPIP", with(inIPIP(outerThere, outerHere, 0, p), 2+6, 0x20), next, "")
		got("marked by a router, not capable", inIPIP(outerThere, outerHere, 3, p), shot, "congestion")
		capable := with(p, 3, p[3]|2)
		if a[0].Is6() {
			capable = with(p, 3, 0x20)
		}
		v, out := b.run(b.Datapath.c.fromUnderlay, frame(lo, other, inIPIP(outerThere, outerHere, 3, capable)), skb{})
		if tos := out[15]; v != redirect || a[0].Is4() && tos&3 != 3 || a[0].Is6() && tos>>4&3 != 3 {
			t.Errorf("marked by a router: verdict %d: % x", v, out)
		}
	}
}

// withSum is a payload with an IPv4 header of its own as the programs make it.
func withSum(p []byte) []byte {
	p = bytes.Clone(p)
	ip := p[2:22]
	ip[6], ip[8] = 0x40, 64
	binary.BigEndian.PutUint16(ip[10:], 0)
	binary.BigEndian.PutUint16(ip[10:], ^checksum.Sum(ip))
	return p
}

// A probe by plain packets comes back to the router that sent it, from the kernel of the peer. It does not if the
// peer does not know its source, or does not take plain packets.
func TestPlainProbe(t *testing.T) {
	for name, l := range map[string]lab{"none": {encap: EncapNone}, "IPIP": {encap: EncapIPIP}} {
		l.express = true
		t.Run(name, func(t *testing.T) {
			hosts := newLab(t, 2, l)
			a, b := hosts[0], hosts[1]
			a.reaches(b, 100) // so that they know each other's MAC addresses on the underlay
			nonce := byte(0)
			probe := func(from, to netip.Addr, size int) {
				nonce++
				f, h := AppendPlainProbe(nil, PlainProbe{Src: 1, Dst: 2, Encap: l.encap, From: from, To: to, Port: labPort, Nonce: [16]byte{nonce}}, size)
				if err := a.tap.NewWriter().Write(h, [][]byte{f}); err != nil {
					t.Fatal(err)
				}
			}
			comes := func(what string) {
				t.Helper()
				a.comesUp(func(f []byte) bool {
					m, ok := ParseMetadata(f)
					if !ok || m.Op != MetadataEcho {
						return false
					}
					if m.Reason != MetadataReason(l.encap) || m.Addr != b.outer(1, l).Addr() || m.Src != 2 || m.Dst != 1 {
						t.Errorf("%s: %+v", what, m)
					}
					got, _, ok := ParsePlainEcho(f[MetadataLen:], l.encap)
					return ok && got == [16]byte{nonce}
				})
			}
			for _, size := range []int{64, 700, labMTU} {
				probe(a.addr(), b.addr(), size)
				comes("IPv4")
				probe(a.addr6(), b.addr6(), size)
				comes("IPv6")
			}
			lost := func(what string, from, to netip.Addr) {
				t.Helper()
				probe(from, to, 100)
				last := nonce
				probe(a.addr(), b.addr(), 100)
				a.comesUp(func(f []byte) bool {
					got, _, ok := ParsePlainEcho(f[min(MetadataLen, len(f)):], l.encap)
					if ok && got == [16]byte{last} {
						t.Errorf("%s: it came back", what)
					}
					return ok && got == [16]byte{nonce}
				})
			}
			lost("a source that the peer does not know", a.addr().Prev(), b.addr())
			lost("a destination that the peer does not have", a.addr(), a.addr())
			if err := b.DeleteNeighbour(a.addr6()); err != nil {
				t.Fatal(err)
			}
			lost("a source that the peer does not know any more", a.addr6(), b.addr6())
			a.quiet()
			b.quiet()
		})
	}
}

// plainEcho is an echo of a probe as it comes back, with a right checksum and padding.
func plainEcho(p PlainProbe, length int) []byte {
	f, h := AppendPlainProbe(nil, p, length)
	udp := f[h.Start:]
	udp[udpLen+plainOp] = probeEcho
	sum := ^checksum.Sum(udp) // which includes that of the pseudo-header
	binary.BigEndian.PutUint16(udp[h.Offset:], sum)
	f = append(f, 0xee, 0xee, 0xee)
	if p.Encap == EncapIPIP {
		f = append(f[:14:14], append(make([]byte, 20), f[14:]...)...)
	}
	return f
}

// A damaged echo is recognised, and what is no echo is not taken for one.
func TestParsePlainEcho(t *testing.T) {
	for _, a := range [][2]netip.Addr{{ip4Here, ip4There}, {ip6Here, ip6There}} {
		for _, encap := range []Encap{EncapNone, EncapIPIP} {
			p := PlainProbe{Src: 1, Dst: 2, Encap: encap, From: a[0], To: a[1], Port: labPort, Nonce: [16]byte{7}}
			f := plainEcho(p, 201)
			if n, summed, ok := ParsePlainEcho(f, encap); !ok || !summed || n != p.Nonce {
				t.Errorf("%s, %d: nonce % x, summed %v, ok %v", a[0], encap, n, summed, ok)
			}
			end := len(f) - 4 // the last byte of the packet
			if _, summed, ok := ParsePlainEcho(with(f, end, f[end]+1), encap); !ok || summed {
				t.Errorf("%s, %d: a damaged one: summed %v, ok %v", a[0], encap, summed, ok)
			}
			for n := range end + 1 {
				if _, _, ok := ParsePlainEcho(f[:n], encap); ok {
					t.Fatalf("%s, %d: the first %d bytes are taken for an echo", a[0], encap, n)
				}
			}
			if _, _, ok := ParsePlainEcho(f, EncapNone+EncapIPIP-encap); ok {
				t.Errorf("%s, %d: it is taken for one of another encapsulation", a[0], encap)
			}
		}
	}
}

// receives says what from_underlay makes of a packet on the bench of newPlainBench: the frame for the container, or
// nil if the packet goes on unchanged.
func receives(f []byte) (frameOut []byte, marked bool) {
	known := map[netip.Addr]byte{ip4Here: 1, ip6Here: 1, ip4There: 2, ip6There: 2}
	ends := func(at int, kind uint16) (from, to netip.Addr, ok bool) {
		switch {
		case kind == 0x0800 && len(f) >= at+20 && f[at]>>4 == 4:
			return netip.AddrFrom4([4]byte(f[at+12:])), netip.AddrFrom4([4]byte(f[at+16:])), true
		case kind == 0x86dd && len(f) >= at+40 && f[at]>>4 == 6:
			return netip.AddrFrom16([16]byte(f[at+8:])), netip.AddrFrom16([16]byte(f[at+24:])), true
		}
		return from, to, false
	}
	at, kind := 14, binary.BigEndian.Uint16(f[12:])
	from, to, ok := ends(at, kind)
	ipip := ok && kind == 0x0800 && (f[at+9] == 4 || f[at+9] == 41) && f[at]&15 == 5 && binary.BigEndian.Uint16(f[at+6:])&0x3fff == 0
	if ipip && from == outerThere { // else it is a packet of a container
		if to != outerHere {
			return nil, false
		}
		marked = f[at+1]&3 == 3
		if kind = 0x0800; f[at+9] == 41 {
			kind = 0x86dd
		}
		at += 20
		from, to, ok = ends(at, kind)
	}
	if !ok || known[to] != 1 || known[from] != 2 {
		return nil, false
	}
	return frame(here, there, append(binary.BigEndian.AppendUint16(nil, kind), f[at:]...)), marked
}

// Packets with random faults are taken or left as Go says.
func TestPlainAgainstTwin(t *testing.T) {
	b := newPlainBench(t)
	rng := seed.Rand(t)
	taken, left := 0, 0
	for range 4000 {
		var p []byte
		switch from, to := ip4There, ip4Here; rng.IntN(4) {
		case 0:
			p = ip(from, to)
		case 1:
			p = ip(ip6There, ip6Here)
		case 2:
			p = inIPIP(outerThere, outerHere, 0, ip(from, to))
		case 3:
			p = inIPIP(outerThere, outerHere, 0, ip(ip6There, ip6Here))
		}
		f := frame(lo, other, p)
		for range rng.IntN(3) {
			f[12+rng.IntN(len(f)-12)] = byte(rng.UintN(256))
		}
		if rng.IntN(4) == 0 {
			f = f[:34+rng.IntN(len(f)-34)]
		}
		if !canRun(f) {
			continue
		}
		want, marked := receives(f)
		v, out := b.run(b.Datapath.c.fromUnderlay, f, skb{})
		switch {
		case marked && want != nil: // the mark comes along, or the packet is dropped
			if v != redirect && v != shot {
				t.Errorf("% x\nverdict %d", f, v)
			}
		case want == nil:
			left++
			if v != next || !bytes.Equal(out, f) {
				t.Fatalf("% x\nverdict %d, changed to\n% x", f, v, out)
			}
		default:
			taken++
			if v != redirect || !bytes.Equal(out, want) {
				t.Fatalf("% x\nverdict %d, made\n% x, want\n% x", f, v, out, want)
			}
		}
	}
	if taken < 100 || left < 100 {
		t.Errorf("%d packets were taken and %d left", taken, left)
	}
}
