// Package neighbour reads and writes the frames in which hosts on an Ethernet ask for the MAC
// address of an IP address, or say it: ARP (RFC 826, RFC 5227) for IPv4, neighbour discovery
// (RFC 4861) for IPv6.
//
// ARP, op 1 for a request and 2 for a reply:
//
//	0     6     12     14     16     18  19  20   22    28    32    38    42 bytes, big endian
//	| dst | src | 0806 | 0001 | 0800 | 6 | 4 | op | sha | spa | tha | tpa |
//
// Neighbour discovery, type 135 for a solicitation and 136 for an advertisement. A solicitation has
// no flags; an advertisement has 40 (it answers a solicitation) and 20 (it replaces what is known):
//
//	0     6     12     14            54     55  56    58      59   62       78
//	| dst | src | 86dd | IPv6 header | type | 0 | sum | flags | 0 | target | options
//
//	one option: | type | length in units of 8 bytes | ... |
//	            | 1 or 2 | 1 | MAC address of the source or of the target |
//
// Parse looks at frames to group addresses only. What goes to one host is its own matter: its
// answer to a unicast solicitation proves that the path to it works.
//
// Nothing here allocates, except when a slice that the caller gives is too short.
package neighbour

import (
	"encoding/binary"
	"net/netip"

	"github.com/weft-net/weft/internal/checksum"
)

// MAC is an Ethernet address, in the order of the wire.
type MAC = [6]byte

// MaxLen is the length of the longest frame that this package writes, in bytes.
const MaxLen = naLen

const (
	headerLen = 14
	arpLen    = headerLen + 28
	ip6At     = headerLen
	icmpAt    = ip6At + 40
	optionsAt = icmpAt + 24
	naLen     = optionsAt + optionLen
	optionLen = 8 // of a link-layer address of Ethernet

	typeARP  = 0x0806
	typeIPv6 = 0x86dd

	opRequest = 1
	opReply   = 2

	solicitation  = 135
	advertisement = 136
	sourceOption  = 1
	targetOption  = 2
	flagSolicited = 0x40
	flagOverride  = 0x20

	protoICMPv6 = 58
	hopLimit    = 255 // no router has forwarded the packet, RFC 4861, section 3.1
)

var (
	broadcast   = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodesMAC = MAC{0x33, 0x33, 0, 0, 0, 1}
	allNodes    = [16]byte{0: 0xff, 1: 0x02, 15: 1}
)

// Message is what a frame to a group asks, and what it says.
type Message struct {
	// Target is the address whose MAC address is asked for. It is invalid if nothing is asked: in
	// announcements, in replies, and in requests whose answer would go to another MAC address than
	// the source of the frame.
	Target netip.Addr
	// From is an address that the frame says to be at MAC. It is invalid if the frame says nothing,
	// as a probe that asks whether somebody has Target (RFC 5227, section 2.1.1, and RFC 4862,
	// section 5.4.2).
	From netip.Addr
	// MAC is that of the sender.
	MAC MAC
}

// Parse reads a frame without VLAN tags to a group address. It is false for any other frame, and for
// one that a host has to ignore.
func Parse(frame []byte) (m Message, ok bool) {
	if len(frame) < arpLen || frame[0]&1 == 0 {
		return Message{}, false
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case typeARP:
		return parseARP(frame)
	case typeIPv6:
		return parseND(frame)
	}
	return Message{}, false
}

func parseARP(b []byte) (m Message, ok bool) {
	if [6]byte(b[14:20]) != [6]byte{0, 1, 8, 0, 6, 4} {
		return Message{}, false
	}
	op := binary.BigEndian.Uint16(b[20:])
	if m.MAC = MAC(b[22:28]); op != opRequest && op != opReply || !isUnicast(m.MAC) {
		return Message{}, false
	}
	if from := netip.AddrFrom4([4]byte(b[28:32])); !from.IsUnspecified() {
		m.From = from
	}
	target := netip.AddrFrom4([4]byte(b[38:42]))
	if op == opRequest && target != m.From && !target.IsUnspecified() && m.MAC == MAC(b[6:12]) {
		m.Target = target
	}
	return m, m.Target.IsValid() || m.From.IsValid()
}

func isUnicast(m MAC) bool { return m[0]&1 == 0 && m != MAC{} }

// parseND checks all that RFC 4861 demands in sections 7.1.1 and 7.1.2.
func parseND(b []byte) (m Message, ok bool) {
	if len(b) < optionsAt || b[ip6At]>>4 != 6 || b[ip6At+6] != protoICMPv6 || b[ip6At+7] != hopLimit {
		return Message{}, false
	}
	n := int(binary.BigEndian.Uint16(b[ip6At+4:]))
	if n < optionsAt-icmpAt || icmpAt+n > len(b) {
		return Message{}, false
	}
	b = b[:icmpAt+n] // the rest pads the frame
	kind := b[icmpAt]
	if kind != solicitation && kind != advertisement || b[icmpAt+1] != 0 || sum(b) != 0xffff {
		return Message{}, false
	}
	src, dst := netip.AddrFrom16([16]byte(b[22:38])), [16]byte(b[38:54])
	target := netip.AddrFrom16([16]byte(b[icmpAt+8 : optionsAt]))
	if target.IsMulticast() || target.IsUnspecified() || src.IsMulticast() {
		return Message{}, false
	}
	source, ofTarget, ok := options(b[optionsAt:])
	if !ok {
		return Message{}, false
	}
	ether := MAC(b[6:12])
	switch {
	case kind == advertisement:
		return Message{From: target, MAC: ofTarget}, isUnicast(ofTarget)
	case dst != solicitedNode(target):
		return Message{}, false
	case src.IsUnspecified():
		return Message{Target: target, MAC: ether}, source == MAC{} && isUnicast(ether)
	case !isUnicast(source):
		return Message{}, false
	}
	if m = (Message{From: src, MAC: source}); source == ether && target != src {
		m.Target = target
	}
	return m, true
}

// options returns the link-layer addresses, zero if there are none.
func options(b []byte) (source, target MAC, ok bool) {
	for len(b) > 0 {
		if len(b) < 2 || b[1] == 0 || len(b) < int(b[1])*optionLen {
			return source, target, false
		}
		switch {
		case b[1] != 1: // not that of Ethernet
		case b[0] == sourceOption:
			source = MAC(b[2:8])
		case b[0] == targetOption:
			target = MAC(b[2:8])
		}
		b = b[int(b[1])*optionLen:]
	}
	return source, target, true
}

// solicitedNode returns the group to which solicitations for an address go (RFC 4291, section
// 2.7.1).
func solicitedNode(a netip.Addr) [16]byte {
	t := a.As16()
	return [16]byte{0xff, 0x02, 11: 1, 12: 0xff, 13: t[13], 14: t[14], 15: t[15]}
}

// sum returns the checksum of an ICMPv6 message in a frame, without inverting it. It is 0xffff if
// the message has the right one.
func sum(b []byte) uint16 {
	// The pseudo-header is that of RFC 8200, section 8.1.
	s := checksum.Add(checksum.Sum(b[22:icmpAt]), uint16(len(b)-icmpAt))
	return checksum.Add(checksum.Add(s, protoICMPv6), checksum.Sum(b[icmpAt:]))
}

// AppendAnswer appends the frame that answers a message with a Target: Target is at mac. The answer to
// a probe shows the asker that it must not use the address. It goes to all hosts over IPv6 (RFC 4861,
// section 7.2.4).
//
// An advertisement has the override flag. Who asks may know the MAC address that Target had before,
// and has to forget it.
func AppendAnswer(b []byte, m Message, mac MAC) []byte {
	if m.Target.Is4() {
		from := netip.IPv4Unspecified()
		if m.From.IsValid() {
			from = m.From
		}
		return appendARP(b, opReply, mac, m.Target, m.MAC, m.MAC, from)
	}
	if !m.From.IsValid() {
		return appendNA(b, mac, m.Target, allNodesMAC, allNodes, flagOverride)
	}
	return appendNA(b, mac, m.Target, m.MAC, m.From.As16(), flagSolicited|flagOverride)
}

// AppendAnnouncement appends a frame that tells all hosts on an Ethernet that a is at mac now: an ARP
// announcement (RFC 5227, section 3) or an unsolicited advertisement (RFC 4861, section 7.2.6).
func AppendAnnouncement(b []byte, a netip.Addr, mac MAC) []byte {
	if a.Is4() {
		return appendARP(b, opRequest, mac, a, broadcast, MAC{}, a)
	}
	return appendNA(b, mac, a, allNodesMAC, allNodes, flagOverride)
}

// appendARP appends an ARP packet: from is at mac, and to is, as far as is known, at tha.
func appendARP(b []byte, op uint16, mac MAC, from netip.Addr, dst, tha MAC, to netip.Addr) []byte {
	spa, tpa := from.As4(), to.As4()
	b = append(append(b, dst[:]...), mac[:]...)
	b = binary.BigEndian.AppendUint16(b, typeARP)
	b = append(b, 0, 1, 8, 0, 6, 4)
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(append(b, mac[:]...), spa[:]...)
	return append(append(b, tha[:]...), tpa[:]...)
}

// appendNA appends a neighbour advertisement that target is at mac.
func appendNA(b []byte, mac MAC, target netip.Addr, ether MAC, dst [16]byte, flags byte) []byte {
	at, src := len(b), target.As16()
	b = append(append(b, ether[:]...), mac[:]...)
	b = binary.BigEndian.AppendUint16(b, typeIPv6)
	b = append(b, 0x60, 0, 0, 0, 0, naLen-icmpAt, protoICMPv6, hopLimit)
	b = append(append(b, src[:]...), dst[:]...)
	b = append(b, advertisement, 0, 0, 0, flags, 0, 0, 0)
	b = append(b, src[:]...)
	b = append(append(b, targetOption, 1), mac[:]...)
	binary.BigEndian.PutUint16(b[at+icmpAt+2:], ^sum(b[at:]))
	return b
}
