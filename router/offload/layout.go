package offload

import (
	"encoding/binary"

	"github.com/weft-net/weft/internal/checksum"
	"github.com/weft-net/weft/router/ethernet"
)

// IP protocol numbers.
const (
	ProtoTCP = 6
	ProtoUDP = 17
)

// Lengths and offsets in headers, in bytes.
const (
	ip4Len = 20
	ip6Len = 40
	tcpLen = 20
	udpLen = 8
	tcpSum = 16 // the checksum in a TCP header
	udpSum = 6
)

// Layout is the layout of a frame with a TCP segment or a UDP datagram. Offsets count
// from the beginning of the frame.
type Layout struct {
	Six     bool  // IPv6
	Plain   bool  // neither IPv4 options nor IPv6 extension headers
	Proto   uint8 // ProtoTCP or ProtoUDP
	IP      int   // the IP header
	L4      int   // the TCP or UDP header
	Payload int   // of TCP or UDP
	End     int   // of the IP packet; padding may follow
}

// SumAt returns the offset of the transport checksum.
func (l *Layout) SumAt() int {
	if l.Proto == ProtoTCP {
		return l.L4 + tcpSum
	}
	return l.L4 + udpSum
}

// Parse returns the layout of a frame. It skips VLAN tags, IPv4 options and IPv6
// extension headers. ok is false if the frame has neither TCP nor UDP, or only a fragment
// of it, or if its lengths contradict each other.
func Parse(frame []byte) (l Layout, ok bool) {
	t, at, ok := ethernet.Payload(frame)
	if !ok {
		return l, false
	}
	b := frame[at:]
	l.IP = at
	switch {
	case t == ethernet.TypeIPv4 && len(b) >= ip4Len && b[0]>>4 == 4:
		n := int(binary.BigEndian.Uint16(b[2:]))
		hl := int(b[0]&15) * 4
		// More fragments, or an offset: RFC 791, section 3.1.
		if hl < ip4Len || n < hl || n > len(b) || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
			return l, false
		}
		l.Proto, l.L4, l.End, l.Plain = b[9], at+hl, at+n, hl == ip4Len
	case t == ethernet.TypeIPv6 && len(b) >= ip6Len && b[0]>>4 == 6:
		n := ip6Len + int(binary.BigEndian.Uint16(b[4:]))
		if n > len(b) {
			return l, false
		}
		l.Six, l.Proto, l.L4, l.End, l.Plain = true, b[6], at+ip6Len, at+n, true
		if l.Proto != ProtoTCP && l.Proto != ProtoUDP {
			ip, _, ok := ethernet.ParseIP(frame)
			if !ok || ip.HasFragment {
				return l, false
			}
			l.Proto, l.L4, l.Plain = ip.Protocol, at+ip.ProtocolAt, false
		}
	default:
		return l, false
	}
	switch rest := frame[l.L4:l.End]; l.Proto {
	case ProtoTCP:
		if len(rest) < tcpLen {
			return l, false
		}
		hl := int(rest[12]>>4) * 4
		if hl < tcpLen || hl > len(rest) {
			return l, false
		}
		l.Payload = l.L4 + hl
	case ProtoUDP:
		if len(rest) < udpLen || int(binary.BigEndian.Uint16(rest[4:])) != len(rest) {
			return l, false
		}
		l.Payload = l.L4 + udpLen
	default:
		return l, false
	}
	return l, true
}

// addressSum returns the sum of a pseudo-header without its length: source, destination
// and protocol (RFC 9293 section 3.1, RFC 8200 section 8.1).
func (l *Layout) addressSum(frame []byte) uint16 {
	from, to := l.IP+12, l.IP+ip4Len
	if l.Six {
		from, to = l.IP+8, l.IP+ip6Len
	}
	return checksum.Add(checksum.Sum(frame[from:to]), uint16(l.Proto))
}

// PseudoSum is the pseudo-header's sum of a frame whose transport header and
// payload have n bytes. It is what the checksum field holds while the checksum
// is not filled in.
func (l *Layout) PseudoSum(frame []byte, n int) uint16 {
	return checksum.Add(l.addressSum(frame), uint16(n))
}

// Valid reports whether the transport checksum is right. It is false for a UDP datagram
// without a checksum.
func (l *Layout) Valid(frame []byte) bool {
	if l.Proto == ProtoUDP && binary.BigEndian.Uint16(frame[l.SumAt():]) == 0 {
		return false
	}
	s := checksum.Add(l.PseudoSum(frame, l.End-l.L4), checksum.Sum(frame[l.L4:l.End]))
	return s == 0xffff
}

// ValidIP reports whether the checksum of an IPv4 header is right; IPv6 has none.
func (l *Layout) ValidIP(frame []byte) bool {
	return l.Six || checksum.Sum(frame[l.IP:l.IP+int(frame[l.IP]&15)*4]) == 0xffff
}

// Partial returns the header that leaves the transport checksum to the kernel.
// The field must hold the pseudo-header's sum.
func (l *Layout) Partial() Header {
	return Header{NeedsSum: true, Start: uint16(l.L4), Offset: uint16(l.SumAt() - l.L4)}
}

// SetLen updates the headers of a frame whose IP packet now ends at end: the lengths of
// IP and UDP, and the IPv4 checksum.
func (l *Layout) SetLen(frame []byte, end int) {
	if l.Six {
		binary.BigEndian.PutUint16(frame[l.IP+4:], uint16(end-l.IP-ip6Len))
	} else {
		binary.BigEndian.PutUint16(frame[l.IP+2:], uint16(end-l.IP))
		l.sumIP4(frame)
	}
	if l.Proto == ProtoUDP {
		binary.BigEndian.PutUint16(frame[l.L4+4:], uint16(end-l.L4))
	}
}

// sumIP4 fills in the checksum of an IPv4 header.
func (l *Layout) sumIP4(frame []byte) {
	h := frame[l.IP : l.IP+int(frame[l.IP]&15)*4]
	h[10], h[11] = 0, 0
	binary.BigEndian.PutUint16(h[10:], ^checksum.Sum(h))
}
