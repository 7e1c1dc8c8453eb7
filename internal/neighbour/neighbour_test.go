package neighbour

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
)

var (
	mine   = MAC{2, 0, 0, 0, 0, 1}
	theirs = MAC{2, 0, 0, 0, 0, 2}
	ip1    = netip.MustParseAddr("10.32.0.1")
	ip2    = netip.MustParseAddr("10.32.0.2")
	six1   = netip.MustParseAddr("fd00::1")
	six2   = netip.MustParseAddr("fd00::ab:cdef")
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// arp makes a packet of RFC 826 from its words.
func arp(op byte, dst, src, sha MAC, spa netip.Addr, tpa netip.Addr) []byte {
	b := append(append(append([]byte{}, dst[:]...), src[:]...), 8, 6, 0, 1, 8, 0, 6, 4, 0, op)
	b = append(append(append(b, sha[:]...), spa.AsSlice()...), make([]byte, 6)...)
	return append(b, tpa.AsSlice()...)
}

// icmp makes a frame of neighbour discovery. change is called before the checksum is filled in.
func icmp(kind byte, dst MAC, src, to, target netip.Addr, options []byte, change func(b []byte)) []byte {
	b := append(append(append([]byte{}, dst[:]...), mine[:]...), 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(24+len(options)), 58, 255)
	b = append(append(append(b, src.AsSlice()...), to.AsSlice()...), kind, 0, 0, 0, 0, 0, 0, 0)
	b = append(append(b, target.AsSlice()...), options...)
	if change != nil {
		change(b)
	}
	binary.BigEndian.PutUint16(b[56:], slowSum(b))
	return b
}

// slowSum is the checksum of RFC 4443, section 2.3, word by word.
func slowSum(b []byte) uint16 {
	words := append(append([]byte{}, b[22:54]...), 0, 0, 0, byte(len(b)-54), 0, 0, 0, 58)
	words = append(append(words, b[54:56]...), 0, 0)
	words = append(words, b[58:]...)
	if len(words)%2 == 1 {
		words = append(words, 0)
	}
	var s uint32
	for ; len(words) > 0; words = words[2:] {
		s += uint32(binary.BigEndian.Uint16(words))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

func option(kind byte, m MAC) []byte { return append([]byte{kind, 1}, m[:]...) }

var (
	solicited = netip.MustParseAddr("ff02::1:ffab:cdef") // of six2
	groupMAC  = MAC{0x33, 0x33, 0xff, 0xab, 0xcd, 0xef}
	all       = netip.MustParseAddr("ff02::1")
)

func ns(src netip.Addr, options []byte, change func(b []byte)) []byte {
	return icmp(135, groupMAC, src, solicited, six2, options, change)
}

func na(options []byte, change func(b []byte)) []byte {
	return icmp(136, allNodesMAC, six1, all, six1, options, change)
}

func TestParse(t *testing.T) {
	asks4 := arp(1, broadcast, mine, mine, ip1, ip2)
	asks6 := ns(six1, option(1, mine), nil)
	set := func(b []byte, at int, v byte) []byte { b = bytes.Clone(b); b[at] = v; return b }
	for _, c := range []struct {
		what  string
		frame []byte
		want  Message // the zero Message if the frame is not read
	}{
		{"ARP request", asks4, Message{ip2, ip1, mine}},
		{"ARP request that is padded", append(bytes.Clone(asks4), make([]byte, 18)...), Message{ip2, ip1, mine}},
		{"ARP probe", arp(1, broadcast, mine, mine, netip.IPv4Unspecified(), ip2), Message{Target: ip2, MAC: mine}},
		{"ARP announcement", arp(1, broadcast, mine, mine, ip1, ip1), Message{From: ip1, MAC: mine}},
		{"ARP announcement as a reply", arp(2, broadcast, mine, mine, ip1, ip1), Message{From: ip1, MAC: mine}},
		{"ARP reply to all", arp(2, broadcast, mine, mine, ip1, ip2), Message{From: ip1, MAC: mine}},
		{"ARP request for another sender", arp(1, broadcast, mine, theirs, ip1, ip2), Message{From: ip1, MAC: theirs}},
		{"ARP probe for another sender", arp(1, broadcast, mine, theirs, netip.IPv4Unspecified(), ip2), Message{}},
		{"ARP request from a group", arp(1, broadcast, mine, broadcast, ip1, ip2), Message{}},
		{"ARP request from the zero address", arp(1, broadcast, mine, MAC{}, ip1, ip2), Message{}},
		{"ARP request to one host", arp(1, theirs, mine, mine, ip1, ip2), Message{}},
		{"reverse ARP", arp(3, broadcast, mine, mine, ip1, ip2), Message{}},
		{"ARP of another hardware", set(asks4, 15, 6), Message{}},
		{"ARP of another protocol", set(asks4, 17, 6), Message{}},
		{"ARP with long addresses", set(asks4, 18, 8), Message{}},
		{"ARP that is cut off", asks4[:41], Message{}},
		{"ARP with a VLAN tag", append(append(bytes.Clone(asks4[:12]), 0x81, 0, 0, 5), asks4[12:]...), Message{}},

		{"solicitation", asks6, Message{six2, six1, mine}},
		{"solicitation that is padded", append(bytes.Clone(asks6), 1, 2, 3), Message{six2, six1, mine}},
		{"solicitation with another option", ns(six1, append([]byte{14, 1, 1, 2, 3, 4, 5, 6}, option(1, mine)...), nil), Message{six2, six1, mine}},
		{"solicitation for another sender", ns(six1, option(1, theirs), nil), Message{From: six1, MAC: theirs}},
		{"solicitation without a MAC address", ns(six1, nil, nil), Message{}},
		{"solicitation from a group", ns(six1, option(1, broadcast), nil), Message{}},
		{"solicitation of a multicast source", ns(all, option(1, mine), nil), Message{}},
		{"duplicate address detection", ns(netip.IPv6Unspecified(), nil, nil), Message{Target: six2, MAC: mine}},
		{"enhanced duplicate address detection (RFC 7527)", ns(netip.IPv6Unspecified(), []byte{14, 1, 1, 2, 3, 4, 5, 6}, nil), Message{Target: six2, MAC: mine}},
		{"duplicate address detection with a MAC address", ns(netip.IPv6Unspecified(), option(1, mine), nil), Message{}},
		{"solicitation to another group", icmp(135, allNodesMAC, six1, all, six2, option(1, mine), nil), Message{}},
		{"solicitation to one host", icmp(135, theirs, six1, six2, six2, option(1, mine), nil), Message{}},
		{"solicitation for a group", icmp(135, groupMAC, six1, solicited, solicited, option(1, mine), nil), Message{}},
		{"solicitation for the zero address", icmp(135, groupMAC, six1, netip.MustParseAddr("ff02::1:ff00:0"), netip.IPv6Unspecified(), option(1, mine), nil), Message{}},
		{"solicitation over a router", ns(six1, option(1, mine), func(b []byte) { b[21] = 254 }), Message{}},
		{"solicitation with a code", ns(six1, option(1, mine), func(b []byte) { b[55] = 1 }), Message{}},
		{"solicitation with a wrong checksum", set(asks6, 60, 1), Message{}},
		{"option of no length", ns(six1, append(option(1, mine), 14, 0, 0, 0, 0, 0, 0, 0), nil), Message{}},
		{"option that is cut off", ns(six1, append(option(1, mine), 14, 2, 0, 0, 0, 0, 0, 0), nil), Message{}},
		{"half an option", ns(six1, append(option(1, mine), 14), nil), Message{}},
		{"short message", ns(six1, nil, func(b []byte) { b[19] = 23 }), Message{}},
		{"long message", ns(six1, nil, func(b []byte) { b[19] = 32 }), Message{}},
		{"other protocol", ns(six1, option(1, mine), func(b []byte) { b[20] = 17 }), Message{}},
		{"not IPv6", ns(six1, option(1, mine), func(b []byte) { b[14] = 0x40 }), Message{}},
		{"router solicitation", icmp(133, allNodesMAC, six1, all, six2, option(1, mine), nil), Message{}},

		{"advertisement", na(option(2, mine), nil), Message{From: six1, MAC: mine}},
		{"advertisement of another MAC address", na(option(2, theirs), nil), Message{From: six1, MAC: theirs}},
		{"advertisement without a MAC address", na(nil, nil), Message{}},
		{"IPv4", append(append([]byte{}, broadcast[:]...), make([]byte, 60)...), Message{}},
		{"nothing", nil, Message{}},
	} {
		got, ok := Parse(c.frame)
		if !ok {
			got = Message{}
		}
		if got != c.want || ok != (c.want != Message{}) {
			t.Errorf("%s: %+v %v, want %+v", c.what, got, ok, c.want)
		}
	}
}

func TestAnswersAndAnnouncements(t *testing.T) {
	for _, c := range []struct {
		what string
		got  []byte
		want string
	}{
		{"ARP reply", AppendAnswer(nil, Message{ip2, ip1, mine}, theirs),
			"020000000001 020000000002 0806 0001 0800 06 04 0002 020000000002 0a200002 020000000001 0a200001"},
		{"to a probe", AppendAnswer(nil, Message{Target: ip2, MAC: mine}, theirs),
			"020000000001 020000000002 0806 0001 0800 06 04 0002 020000000002 0a200002 020000000001 00000000"},
		{"ARP announcement", AppendAnnouncement(nil, ip2, theirs),
			"ffffffffffff 020000000002 0806 0001 0800 06 04 0001 020000000002 0a200002 000000000000 0a200002"},
		{"advertisement", AppendAnswer(nil, Message{six2, six1, mine}, theirs),
			"020000000001 020000000002 86dd 60000000 0020 3a ff fd000000000000000000000000abcdef fd000000000000000000000000000001" +
				"8800 SUM 60000000 fd000000000000000000000000abcdef 02 01 020000000002"},
		{"to duplicate address detection", AppendAnswer(nil, Message{Target: six2, MAC: mine}, theirs),
			"333300000001 020000000002 86dd 60000000 0020 3a ff fd000000000000000000000000abcdef ff020000000000000000000000000001" +
				"8800 SUM 20000000 fd000000000000000000000000abcdef 02 01 020000000002"},
		{"unsolicited advertisement", AppendAnnouncement(nil, six2, theirs),
			"333300000001 020000000002 86dd 60000000 0020 3a ff fd000000000000000000000000abcdef ff020000000000000000000000000001" +
				"8800 SUM 20000000 fd000000000000000000000000abcdef 02 01 020000000002"},
	} {
		want := unhex(t, strings.Replace(c.want, "SUM", "0000", 1))
		if strings.Contains(c.want, "SUM") {
			binary.BigEndian.PutUint16(want[56:], slowSum(want))
		}
		if !bytes.Equal(c.got, want) || len(c.got) > MaxLen {
			t.Errorf("%s:\n%x, want\n%x", c.what, c.got, want)
		}
	}
}

func TestNothingIsAllocated(t *testing.T) {
	frames := [][]byte{arp(1, broadcast, mine, mine, ip1, ip2), ns(six1, option(1, mine), nil), ns(netip.IPv6Unspecified(), nil, nil)}
	var out [MaxLen]byte
	if n := testing.AllocsPerRun(100, func() {
		for _, b := range frames {
			m, ok := Parse(b)
			if !ok || len(AppendAnswer(out[:0], m, theirs)) == 0 || len(AppendAnnouncement(out[:0], m.Target, theirs)) == 0 {
				t.Error("no answer")
			}
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// Whatever comes in, an answer goes to the asker or to all and says what was asked, and what is written
// can be read.
func FuzzParse(f *testing.F) {
	for _, b := range [][]byte{
		arp(1, broadcast, mine, mine, ip1, ip2), arp(2, broadcast, mine, mine, ip1, ip2), ns(six1, option(1, mine), nil),
		ns(netip.IPv6Unspecified(), nil, nil), na(option(2, mine), nil),
	} {
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if fix && len(b) >= 58 && b[12] == 0x86 {
			if n := 54 + int(binary.BigEndian.Uint16(b[18:])); n >= 58 && n <= len(b) && n < 256 {
				binary.BigEndian.PutUint16(b[56:], slowSum(b[:n]))
			}
		}
		before := bytes.Clone(b)
		m, ok := Parse(b)
		if !bytes.Equal(b, before) {
			t.Fatal("the frame changed")
		}
		if !ok {
			return
		}
		if !isUnicast(m.MAC) || !m.Target.IsValid() && !m.From.IsValid() || m.Target.IsValid() && m.Target == m.From {
			t.Fatalf("%+v", m)
		}
		for _, a := range []netip.Addr{m.Target, m.From} {
			if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
				continue
			}
			if got, ok := Parse(AppendAnnouncement(nil, a, theirs)); !ok || got != (Message{From: a, MAC: theirs}) {
				t.Fatalf("the announcement of %s is read as %+v", a, got)
			}
		}
		if !m.Target.IsValid() {
			return
		}
		answer := AppendAnswer([]byte("before"), m, theirs)[6:]
		if to := MAC(answer); m.MAC != MAC(b[6:12]) || to != m.MAC && (to != allNodesMAC || m.From.IsValid()) || MAC(answer[6:12]) != theirs {
			t.Fatalf("%+v is answered by %x", m, answer)
		}
		copy(answer, broadcast[:]) // Parse reads only what goes to groups
		if got, ok := Parse(answer); !ok || got.From != m.Target || got.MAC != theirs || got.Target.IsValid() {
			t.Fatalf("%+v is answered by %x, read as %+v", m, answer, got)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	frame := ns(six1, option(1, mine), nil)
	for b.Loop() {
		Parse(frame)
	}
}
