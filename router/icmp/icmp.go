// Package icmp builds the ICMP message about a packet that is too big for a link, as a
// router on the path would send it, so that path MTU discovery of the sender works
// (RFC 1191, RFC 8201).
package icmp

import (
	"encoding/binary"

	"github.com/weft-net/weft/router/ethernet"
)

// Smallest MTUs to report: what every IPv4 host must accept (RFC 791), and what every
// IPv6 link must carry (RFC 8200, section 5).
const (
	MinMTU4 = 576
	MinMTU6 = 1280
)

// MaxLen is the largest length of a message in bytes: an Ethernet header with three
// VLAN tags and an IPv6 packet of MinMTU6.
const MaxLen = ethernet.HeaderLen + 3*ethernet.TagLen + MinMTU6

// quote4 is the most that an ICMPv4 message quotes of the packet, so that it fits into
// 576 bytes (RFC 1812, section 4.3.2.3).
const quote4 = MinMTU4 - 20 - 8

const (
	protoICMP   = 1
	protoICMPv6 = 58
)

// TooBig writes to out[:0] the Ethernet frame that reports to the sender of frame
// that its IP packets may have at most mtu bytes, and returns it. It returns nil if
// no message may be sent: if the packet is not IP, may be fragmented, or is no
// larger than the smallest MTU to report; or if RFC 1122 section 3.2.2 or RFC 4443
// section 2.4 forbid it (the packet is an ICMP error or a later fragment, or its
// source or destination is a group).
//
// The message comes from the destination of the packet, in both its IP and its
// Ethernet header, and has the same VLAN tags.
func TooBig(out, frame []byte, mtu int) []byte {
	dst, src, ok := ethernet.Addresses(frame)
	if !ok || dst.IsGroup() || !src.IsUnicast() {
		return nil
	}
	ip, offset, ok := ethernet.ParseIP(frame)
	if !ok || !ip.DontFragment || !ip.FirstPart || ip.Dst.IsMulticast() || ip.Src.IsMulticast() ||
		ip.Src.IsUnspecified() || ip.Src.IsLoopback() {
		return nil
	}
	packet := frame[offset : offset+ip.Len]
	out = append(out[:0], src[:]...)
	out = append(out, dst[:]...)
	out = append(out, frame[2*ethernet.MACLen:offset]...)
	if ip.Version == 4 {
		return tooBig4(out, packet, ip, max(mtu, MinMTU4))
	}
	return tooBig6(out, packet, ip, max(mtu, MinMTU6))
}

// tooBig4 appends an IPv4 header and an RFC 792 destination unreachable,
// fragmentation needed, with the MTU as of RFC 1191 section 4:
//
//	| 3 | 4 | checksum 2 | 0 2 | mtu 2 | beginning of the packet
func tooBig4(out, packet []byte, ip ethernet.IP, mtu int) []byte {
	if ip.Len <= mtu || ip.Dst.As4() == [4]byte{255, 255, 255, 255} {
		return nil
	}
	if ip.Protocol == protoICMP && ip.ProtocolAt < len(packet) && !isQuery4(packet[ip.ProtocolAt]) {
		return nil
	}
	quote := packet[:min(len(packet), quote4)]
	src, dst := ip.Dst.As4(), ip.Src.As4()
	at := len(out)
	out = append(out, 0x45, 0xc0) // precedence 6, RFC 1812 section 4.3.2.5
	out = binary.BigEndian.AppendUint16(out, uint16(20+8+len(quote)))
	out = append(out, 0, 0, 0x40, 0, 64, protoICMP, 0, 0)
	out = append(out, src[:]...)
	out = append(out, dst[:]...)
	binary.BigEndian.PutUint16(out[at+10:], checksum(0, out[at:]))
	at = len(out)
	out = append(out, 3, 4, 0, 0, 0, 0)
	out = binary.BigEndian.AppendUint16(out, uint16(mtu))
	out = append(out, quote...)
	binary.BigEndian.PutUint16(out[at+2:], checksum(0, out[at:]))
	return out
}

// isQuery4 reports whether an ICMPv4 type is a query or a reply, not an error: echo, timestamp, address mask, router discovery.
func isQuery4(t byte) bool {
	switch t {
	case 0, 8, 9, 10, 13, 14, 17, 18:
		return true
	}
	return false
}

// tooBig6 appends an IPv6 header and an RFC 4443 packet too big, with as much
// of the packet as fits in MinMTU6:
//
//	| 2 | 0 | checksum 2 | mtu 4 | beginning of the packet
func tooBig6(out, packet []byte, ip ethernet.IP, mtu int) []byte {
	if ip.Len <= mtu {
		return nil
	}
	// Types below 128 are errors, RFC 4443 section 2.1; 137 is a redirect.
	if ip.Protocol == protoICMPv6 && ip.ProtocolAt < len(packet) &&
		(packet[ip.ProtocolAt] < 128 || packet[ip.ProtocolAt] == 137) {
		return nil
	}
	quote := packet[:min(len(packet), MinMTU6-40-8)]
	src, dst := ip.Dst.As16(), ip.Src.As16()
	out = append(out, 0x60, 0, 0, 0)
	out = binary.BigEndian.AppendUint16(out, uint16(8+len(quote)))
	out = append(out, protoICMPv6, 64)
	at := len(out)
	out = append(out, src[:]...)
	out = append(out, dst[:]...)
	sum := sum(0, out[at:]) + uint32(8+len(quote)) + protoICMPv6 // the pseudo-header, RFC 8200 section 8.1
	at = len(out)
	out = append(out, 2, 0, 0, 0)
	out = binary.BigEndian.AppendUint32(out, uint32(mtu))
	out = append(out, quote...)
	binary.BigEndian.PutUint16(out[at+2:], checksum(sum, out[at:]))
	return out
}

// sum adds the 16-bit words of b, RFC 1071; an odd byte counts as the high one.
func sum(s uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func checksum(s uint32, b []byte) uint16 {
	s = sum(s, b)
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}
