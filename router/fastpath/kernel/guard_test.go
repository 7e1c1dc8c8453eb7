package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/weft-net/weft/internal/checksum"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

// guardBench has the program of the spoof guard, which tests run on frames instead of attaching
// it. The port is lo of a namespace of its own.
type guardBench struct {
	*Guard
	t  testing.TB
	ns string
}

var (
	ownV4, ownV6     = netip.MustParseAddr("10.32.0.5"), netip.MustParseAddr("fd00::5")
	otherV4, otherV6 = netip.MustParseAddr("10.32.0.6"), netip.MustParseAddr("fd00::6")
	zeroV4, zeroV6   = netip.IPv4Unspecified(), netip.IPv6Unspecified()
)

func newGuardBench(t testing.TB, addrs ...netip.Addr) *guardBench {
	t.Helper()
	b := &guardBench{t: t, ns: nstest.New(t, "guard")}
	pins := filepath.Join(t.TempDir(), "bpf")
	in(t, b.ns, func() (err error) { b.Guard, err = OpenGuard(pins); return err })
	t.Cleanup(func() {
		_ = b.Close()
		in(t, b.ns, func() error { return errors.Join(RemoveGuard(pins), Remove(Options{PinDir: pins})) })
	})
	if err := b.write(GuardPort{}, GuardPort{Ifindex: loopback, MAC: here, Addrs: addrs}); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *guardBench) run(frame []byte) uint32 {
	b.t.Helper()
	o := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: &skb{Ifindex: loopback}}
	var verdict uint32
	in(b.t, b.ns, func() (err error) { verdict, err = b.objs.Guard.Run(&o); return err })
	return verdict
}

func (b *guardBench) drops() GuardDrops {
	b.t.Helper()
	all, err := b.Drops()
	if err != nil {
		b.t.Fatal(err)
	}
	return all[loopback]
}

// canRun reports whether BPF_PROG_TEST_RUN takes a frame: it refuses one that ends in the header
// of IP.
func canRun(f []byte) bool {
	if len(f) < 14 || len(f) > 2000 {
		return false
	}
	switch binary.BigEndian.Uint16(f[12:]) {
	case 0x0800:
		return len(f) >= 14+20
	case 0x86dd:
		return len(f) >= 14+40
	}
	return len(f) > 14
}

// check runs a frame, and checks that it is dropped for a reason, or passes if that is "".
func (b *guardBench) check(what string, frame []byte, reason string) {
	b.t.Helper()
	before := b.drops().ByReason()
	verdict := b.run(frame)
	after := b.drops()
	var counted []string
	for r, n := range after.ByReason() {
		if n != before[r] {
			counted = append(counted, r)
		}
	}
	switch {
	case reason == "" && (verdict != next || counted != nil):
		b.t.Errorf("%s: verdict %d, counted %q, want it to pass", what, verdict, counted)
	case reason != "" && (verdict != shot || !slices.Equal(counted, []string{reason})):
		b.t.Errorf("%s: verdict %d, counted %q, want a drop for %q", what, verdict, counted, reason)
	case reason != "" && after.Reason.String() != reason:
		b.t.Errorf("%s: the last reason is %s, want %s", what, after.Reason, reason)
	}
}

// v4 is the payload of a frame with a UDP packet.
func v4(src netip.Addr, fragment uint16) []byte {
	b := []byte{8, 0, 0x45, 0, 0, 36, 0, 1, byte(fragment >> 8), byte(fragment), 64, 17, 0, 0}
	b = append(append(b, src.AsSlice()...), 10, 32, 0, 9)
	binary.BigEndian.PutUint16(b[12:], ^checksum.Sum(b[2:])) // a bridge with netfilter checks it
	return append(b, make([]byte, 16)...)
}

// arpOf is the payload of a frame with an ARP message.
func arpOf(op byte, mac [6]byte, sender netip.Addr) []byte {
	b := append([]byte{8, 6, 0, 1, 8, 0, 6, 4, 0, op}, mac[:]...)
	b = append(b, sender.AsSlice()...)
	return append(b, 0, 0, 0, 0, 0, 0, 10, 32, 0, 9)
}

// v6 is the payload of a frame with an IPv6 packet, whose headers are chained by the caller.
func v6(src netip.Addr, nextHeader byte, payload []byte) []byte {
	b := []byte{0x86, 0xdd, 0x60, 0, 0, 0, byte(len(payload) >> 8), byte(len(payload)), nextHeader, 255}
	b = append(append(b, src.AsSlice()...), netip.MustParseAddr("ff02::1").AsSlice()...)
	return append(b, payload...)
}

// nd is a message of neighbour discovery. Router solicitations have no target.
func nd(kind byte, target netip.Addr, options ...[]byte) []byte {
	b := []byte{kind, 0, 0, 0, 0x20, 0, 0, 0}
	if kind != 133 {
		b = append(b, target.AsSlice()...)
	}
	return append(b, slices.Concat(options...)...)
}

func macOption(kind byte, mac [6]byte) []byte { return append([]byte{kind, 1}, mac[:]...) }

// eui64 is the link-local address that is derived from a MAC address.
func eui64(m [6]byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

// unsized sets the length of an IPv6 packet to zero, as that of a jumbogram (RFC 2675) is. Linux takes all of
// the frame then.
func unsized(packet []byte) []byte { return with(packet, 6, 0, 0) }

func TestGuardChecksFrames(t *testing.T) {
	b := newGuardBench(t, ownV4, ownV6)
	own := func(payload []byte) []byte { return frame(all, here, payload) }
	privacy := netip.MustParseAddr("fe80::1234:5678:9abc:def0")
	nonce := []byte{14, 1, 1, 2, 3, 4, 5, 6} // RFC 7527
	const rs, ra, ns, na, redirect = 133, 134, 135, 136, 137
	icmp := func(src netip.Addr, message []byte) []byte { return own(v6(src, 58, message)) }
	hop, dest := []byte{58, 0, 1, 4, 0, 0, 0, 0}, []byte{60, 0, 1, 4, 0, 0, 0, 0}
	atomic := []byte{58, 0, 0, 0, 0, 0, 0, 1} // a fragment header of a packet that is whole
	forged := nd(na, otherV6, macOption(2, here))

	for _, c := range []struct {
		what   string
		frame  []byte
		reason string
	}{
		{"own IPv4", own(v4(ownV4, 0)), ""},
		{"own IPv4, fragment", own(v4(ownV4, 0x2001)), ""},
		{"DHCP", own(v4(zeroV4, 0)), ""},
		{"another's IPv4", own(v4(otherV4, 0)), "ipv4"},
		{"another's IPv4, fragment", own(v4(otherV4, 0x2001)), "ipv4"},
		{"IPv4 from a group", own(v4(netip.MustParseAddr("224.0.0.1"), 0)), "ipv4"},
		{"IPv6 that says it is IPv4", own(with(v4(ownV4, 0), 2, 0x60)), "malformed"},
		{"another's MAC", frame(all, here2, v4(ownV4, 0)), "mac"},
		{"no MAC", frame(all, [6]byte{}, v4(ownV4, 0)), "mac"},
		{"a group as MAC", frame(here, all, v4(ownV4, 0)), "mac"},
		{"another's MAC, other protocol", frame(all, here2, append([]byte{0x88, 0xb5}, make([]byte, 46)...)), "mac"},
		{"other protocol", own(append([]byte{0x88, 0xb5}, make([]byte, 46)...)), ""},
		{"spanning tree", own(append([]byte{0, 38, 0x42, 0x42, 3}, make([]byte, 40)...)), ""},

		{"ARP request", own(arpOf(1, here, ownV4)), ""},
		{"ARP reply", own(arpOf(2, here, ownV4)), ""},
		{"ARP probe", own(arpOf(1, here, zeroV4)), ""},
		{"ARP reply for another", own(arpOf(2, here, otherV4)), "arp"},
		{"ARP reply with another's MAC", own(arpOf(2, here2, ownV4)), "arp"},
		{"ARP probe with another's MAC", own(arpOf(1, here2, zeroV4)), "arp"},
		{"ARP of another hardware", own(with(arpOf(1, here, ownV4), 3, 6)), "malformed"},
		{"ARP with short addresses", own(with(arpOf(1, here, ownV4), 6, 2)), "malformed"},
		{"short ARP", own(arpOf(1, here, ownV4)[:20]), "malformed"},

		{"own IPv6", own(v6(ownV6, 17, make([]byte, 8))), ""},
		{"another's IPv6", own(v6(otherV6, 17, make([]byte, 8))), "ipv6"},
		{"own link-local", own(v6(eui64(here), 17, make([]byte, 8))), ""},
		{"link-local that no MAC is in", own(v6(privacy, 17, make([]byte, 8))), ""},
		{"another's link-local", own(v6(eui64(here2), 17, make([]byte, 8))), "ipv6"},
		{"no IPv6", own(v6(zeroV6, 0, slices.Concat(hop, []byte{143, 0, 0, 0}))), ""},
		{"IPv4-mapped", own(v6(netip.AddrFrom16(otherV4.As16()), 17, make([]byte, 8))), "ipv6"},
		{"own IPv4 as IPv6", own(v6(netip.AddrFrom16(ownV4.As16()), 17, make([]byte, 8))), "ipv6"},
		{"IPv4 that says it is IPv6", own(with(v6(ownV6, 17, nil), 2, 0x45)), "malformed"},

		{"ping", icmp(ownV6, []byte{128, 0, 0, 0, 0, 0, 0, 0}), ""},
		{"router solicitation", icmp(eui64(here), nd(rs, zeroV6, macOption(1, here))), ""},
		{"router solicitation with another's MAC", icmp(eui64(here), nd(rs, zeroV6, macOption(1, here2))), "nd"},
		{"router advertisement", icmp(eui64(here), nd(ra, zeroV6)), "router"},
		{"redirect", icmp(ownV6, nd(redirect, otherV6)), "router"},
		{"neighbour solicitation", icmp(ownV6, nd(ns, otherV6, macOption(1, here))), ""},
		{"neighbour solicitation with another's MAC", icmp(ownV6, nd(ns, otherV6, macOption(1, here2))), "nd"},
		{"duplicate address detection", icmp(zeroV6, nd(ns, ownV6, nonce)), ""},
		{"duplicate address detection, link-local", icmp(zeroV6, nd(ns, eui64(here), nonce)), ""},
		{"duplicate address detection of another's", icmp(zeroV6, nd(ns, otherV6)), "nd"},
		{"duplicate address detection of another's link-local", icmp(zeroV6, nd(ns, eui64(here2))), "nd"},
		{"neighbour advertisement", icmp(ownV6, nd(na, ownV6, macOption(2, here))), ""},
		{"neighbour advertisement from the link-local address", icmp(eui64(here), nd(na, ownV6, macOption(2, here))), ""},
		{"neighbour advertisement without MAC", icmp(ownV6, nd(na, ownV6)), ""},
		{"neighbour advertisement of link-local", icmp(eui64(here), nd(na, eui64(here), macOption(2, here))), ""},
		{"neighbour advertisement for another", icmp(ownV6, forged), "nd"},
		{"neighbour advertisement for no address", icmp(ownV6, nd(na, zeroV6)), "nd"},
		{"neighbour advertisement for another's link-local", icmp(ownV6, nd(na, eui64(here2), macOption(2, here))), "nd"},
		{"neighbour advertisement with another's MAC", icmp(ownV6, nd(na, ownV6, macOption(2, here2))), "nd"},
		{"neighbour advertisement with a second MAC", icmp(ownV6, nd(na, ownV6, nonce, macOption(2, here), macOption(2, here2))), "nd"},
		{"short neighbour advertisement", icmp(ownV6, nd(na, ownV6)[:20]), "malformed"},
		{"option of no length", icmp(ownV6, nd(na, ownV6, []byte{2, 0, 0, 0, 0, 0, 0, 0})), "malformed"},
		{"option that ends early", icmp(ownV6, nd(na, ownV6, macOption(2, here)[:6])), "malformed"},
		{"too many options", icmp(ownV6, nd(na, ownV6, bytes.Repeat(nonce, 9))), "malformed"},
		{"options behind the packet are none", append(icmp(ownV6, nd(na, ownV6)), macOption(2, here2)...), ""},

		// RFC 6980, 7112 and 7113: what can hide neighbour discovery.
		{"forged, behind options", own(v6(ownV6, 0, slices.Concat(hop, forged))), "nd"},
		{"forged, behind two headers", own(v6(ownV6, 0, slices.Concat(with(hop, 0, 60), with(dest, 0, 58), forged))), "nd"},
		{"forged, behind authentication", own(v6(ownV6, 51, slices.Concat([]byte{58, 4, 0, 0}, make([]byte, 20), forged))), "nd"},
		{"router advertisement behind options", own(v6(ownV6, 60, slices.Concat(hop, nd(ra, zeroV6)))), "router"},
		{"whole in a fragment", own(v6(ownV6, 44, slices.Concat(atomic, nd(na, ownV6)))), "malformed"},
		{"first fragment of a message", own(v6(ownV6, 44, slices.Concat(with(atomic, 3, 1), nd(ns, ownV6)))), "malformed"},
		{"first fragment without its message", own(v6(ownV6, 44, slices.Concat(with(atomic, 0, 60, 0, 0, 1), with(dest, 0, 58)))), "malformed"},
		{"first fragment of a ping", own(v6(ownV6, 44, slices.Concat(with(atomic, 3, 1), []byte{128, 0, 0, 0}))), ""},
		{"first fragment, and what its message should be behind the packet", append(own(v6(ownV6, 44, slices.Concat(with(atomic, 0, 60, 0, 0, 1), with(dest, 0, 58, 1)))), make([]byte, 16)...), "malformed"},
		{"jumbogram (BIG TCP)", own(unsized(v6(ownV6, 0, slices.Concat([]byte{6, 0, 0xc2, 4, 0, 2, 0, 0}, make([]byte, 40))))), ""},
		{"router solicitation of no size with another's MAC", own(unsized(v6(eui64(here), 0, slices.Concat(hop, nd(rs, zeroV6, macOption(1, here2)))))), "nd"},
		{"neighbour advertisement of no size for another", own(unsized(v6(ownV6, 0, slices.Concat(hop, forged)))), "nd"},
		{"another fragment", own(v6(ownV6, 44, with(atomic, 2, 1, 0))), ""},
		{"another fragment from another", own(v6(otherV6, 44, with(atomic, 2, 1, 0))), "ipv6"},
		{"fragment of UDP", own(v6(ownV6, 44, slices.Concat(with(atomic, 0, 17, 0, 0, 1), make([]byte, 8)))), ""},
		{"endless headers", own(v6(ownV6, 60, slices.Concat(bytes.Repeat(with(dest, 0, 60), 9), forged))), "malformed"},
		{"a header that ends early", own(v6(ownV6, 60, []byte{58, 9})), "malformed"},
		{"no next header", own(v6(ownV6, 59, nil)), ""},
		{"encrypted", own(v6(ownV6, 50, make([]byte, 16))), ""},

		{"VLAN", own(vlan(v4(ownV4, 0))), "tagged"},
		{"VLAN that hides another's address", own(vlan(v4(otherV4, 0))), "tagged"},
		{"provider's VLAN", own(append([]byte{0x88, 0xa8, 0, 0}, v4(otherV4, 0)...)), "tagged"},
	} {
		b.check(c.what, c.frame, c.reason)
	}

	b.run(own(v4(otherV4, 0)))
	if d := b.drops(); d.Addr != otherV4 || d.MAC.String() != net.HardwareAddr(here[:]).String() {
		t.Errorf("the last frame: %+v", d)
	}
	b.run(frame(all, here2, v4(otherV4, 0)))
	if d := b.drops(); d.Addr.IsValid() || d.MAC.String() != net.HardwareAddr(here2[:]).String() {
		t.Errorf("the last frame: %+v", d)
	}
}

// A port can have any number of addresses, and lose them.
func TestGuardKnowsManyAddresses(t *testing.T) {
	var addrs []netip.Addr
	for i := range byte(100) {
		addrs = append(addrs, netip.AddrFrom4([4]byte{10, 40, 0, i}), netip.AddrFrom16([16]byte{0xfd, 15: i + 1}))
	}
	b := newGuardBench(t, addrs...)
	check := func(from, to int) {
		t.Helper()
		for i, a := range addrs {
			payload, reason := v4(a, 0), "ipv4"
			if a.Is6() {
				payload, reason = v6(a, 17, nil), "ipv6"
			}
			if i >= from && i < to {
				reason = ""
			}
			b.check(a.String(), frame(all, here, payload), reason)
		}
	}
	old := GuardPort{Ifindex: loopback, MAC: here, Addrs: addrs}
	check(0, 200)
	for _, r := range [][2]int{{50, 130}, {0, 1}, {0, 0}, {150, 200}} {
		p := GuardPort{Ifindex: loopback, MAC: here, Addrs: addrs[r[0]:r[1]]}
		if err := b.write(old, p); err != nil {
			t.Fatal(err)
		}
		old = p
		check(r[0], r[1])
	}
	// Nothing is known of another port, so nothing may pass.
	if err := b.objs.Ports.Delete(uint32(loopback)); err != nil {
		t.Fatal(err)
	}
	if v := b.run(frame(all, here, v4(addrs[180], 0))); v != shot {
		t.Errorf("verdict %d for a port that is not known", v)
	}
}

// FuzzGuard looks for frames that pass and deceive, by another parser.
func FuzzGuard(f *testing.F) {
	for _, payload := range [][]byte{
		v4(ownV4, 0), arpOf(2, here, ownV4), v6(ownV6, 58, nd(136, ownV6, macOption(2, here))), v6(zeroV6, 58, nd(135, ownV6)),
		v6(ownV6, 0, slices.Concat([]byte{58, 0, 1, 4, 0, 0, 0, 0}, nd(133, zeroV6, macOption(1, here)))),
		v6(ownV6, 44, slices.Concat([]byte{58, 0, 0, 1, 0, 0, 0, 1}, nd(136, otherV6))), vlan(v4(ownV4, 0)),
	} {
		f.Add(frame(all, here, payload))
	}
	b := newGuardBench(f, ownV4, ownV6)
	f.Fuzz(func(t *testing.T, data []byte) {
		b.t = t
		if !canRun(data) {
			return
		}
		before := b.drops().Total()
		verdict := b.run(data)
		dropped := b.drops().Total() - before
		if verdict != next && verdict != shot || (verdict == shot) != (dropped == 1) {
			t.Fatalf("% x: verdict %d, %d counted", data, verdict, dropped)
		}
		if why := deceives(data); why != "" && verdict == next {
			t.Errorf("% x passes: %s", data, why)
		}
	})
}

// deceives says how a receiver would be deceived by a frame of the container, "" if it would
// not.
func deceives(f []byte) string {
	if [6]byte(f[6:]) != here {
		return "MAC address"
	}
	p := f[14:]
	switch binary.BigEndian.Uint16(f[12:]) {
	case 0x8100, 0x88a8:
		return "VLAN"
	case 0x0800:
		if a := netip.AddrFrom4([4]byte(pad(p, 20)[12:])); a != ownV4 && a != zeroV4 {
			return "IPv4 source"
		}
	case 0x0806:
		m := pad(p, 28)
		if a := netip.AddrFrom4([4]byte(m[14:])); a != ownV4 && a != zeroV4 || [6]byte(m[8:]) != here {
			return "ARP sender"
		}
	case 0x86dd:
		return deceives6(p)
	}
	return ""
}

func deceives6(p []byte) string {
	if len(p) < 40 {
		return ""
	}
	mayUse := func(a netip.Addr) bool {
		return a == ownV6 || a == eui64(here) || a.IsLinkLocalUnicast() && !isEUI64(a)
	}
	src := netip.AddrFrom16([16]byte(p[8:]))
	if src != zeroV6 && !mayUse(src) {
		return "IPv6 source"
	}
	nextHeader, size := p[6], int(binary.BigEndian.Uint16(p[4:]))
	if len(p) < 40+size {
		return ""
	}
	for p = p[40 : 40+size]; slices.Contains([]byte{0, 43, 60, 135, 139, 140, 51}, nextHeader); {
		if len(p) < 8 {
			return ""
		}
		n := (int(p[1]) + 1) * 8
		if nextHeader == 51 {
			n = (int(p[1]) + 2) * 4
		}
		if len(p) < n {
			return ""
		}
		nextHeader, p = p[0], p[n:]
	}
	if nextHeader != 58 || len(p) < 8 {
		return "" // RFC 6980: hosts ignore fragmented neighbour discovery
	}
	kind, body := p[0], p[8:]
	if kind == 134 || kind == 137 {
		return "router"
	}
	if kind < 133 || kind > 137 {
		return ""
	}
	if kind != 133 {
		if len(body) < 16 {
			return ""
		}
		if target := netip.AddrFrom16([16]byte(body)); (kind == 136 || src == zeroV6) && !mayUse(target) {
			return "target"
		}
		body = body[16:]
	}
	for len(body) >= 8 && body[1] > 0 {
		if (body[0] == 1 || body[0] == 2) && [6]byte(body[2:]) != here {
			return "MAC address in an option"
		}
		body = body[min(len(body), int(body[1])*8):]
	}
	return ""
}

func isEUI64(a netip.Addr) bool { b := a.As16(); return b[11] == 0xff && b[12] == 0xfe }

func pad(b []byte, n int) []byte { return append(slices.Clone(b), make([]byte, n)...) }

// TestGuardTwins compares each struct of bpf/guard.h with its twin in Go, and the reasons.
func TestGuardTwins(t *testing.T) {
	spec, err := loadGuard()
	if err != nil {
		t.Fatal(err)
	}
	for name, twin := range map[string]any{"guard_port": guardPort{}, "guard_key": guardKey{}, "guard_drops": guardDrops{}} {
		var c *btf.Struct
		if err := spec.Types.TypeByName(name, &c); err != nil {
			t.Errorf("struct %s: %v", name, err)
			continue
		}
		g := reflect.TypeOf(twin)
		if int(c.Size) != int(g.Size()) || len(c.Members) != g.NumField() {
			t.Errorf("struct %s has %d bytes and %d members, its twin %d and %d", name, c.Size, len(c.Members), g.Size(), g.NumField())
			continue
		}
		for i, m := range c.Members {
			if f := g.Field(i); !strings.EqualFold(m.Name, f.Name) || f.Offset != uintptr(m.Offset.Bytes()) {
				t.Errorf("struct %s has %s at %d, its twin %s at %d", name, m.Name, m.Offset.Bytes(), f.Name, f.Offset)
			}
		}
	}
	text, err := os.ReadFile("bpf/guard.h")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(text), "enum guard_reason {")
	list, _, _ = strings.Cut(list, "GUARD_REASONS")
	names := regexp.MustCompile(`(?m)^\s+GUARD_(\w+),`).FindAllStringSubmatch(list, -1)
	if len(names) != int(numGuardReasons) {
		t.Errorf("enum guard_reason has %d reasons, want %d", len(names), numGuardReasons)
	}
	for i, n := range names {
		if want := strings.ToLower(n[1]); GuardReason(i).String() != want {
			t.Errorf("reason %d is %s, want %s", i, GuardReason(i), want)
		}
	}
	for name, value := range map[string]int{"GUARD_V4": guardV4, "GUARD_V6": guardV6} {
		if !regexp.MustCompile(fmt.Sprintf(`(?m)^#define %s %d\b`, name, value)).Match(text) {
			t.Errorf("%s is not %d", name, value)
		}
	}
}
