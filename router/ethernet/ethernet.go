// Package ethernet reads Ethernet frames and the IP packets in them, without copying
// them and without trusting their bytes.
package ethernet

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
)

// Lengths in bytes.
const (
	MACLen    = 6
	HeaderLen = 14 // destination, source, type
	TagLen    = 4  // one VLAN tag
)

// Ethertypes.
const (
	TypeIPv4 = 0x0800
	TypeARP  = 0x0806
	TypeIPv6 = 0x86dd
	typeCTag = 0x8100 // IEEE 802.1Q customer tag
	typeSTag = 0x88a8 // IEEE 802.1ad service tag
	typeQinQ = 0x9100 // what some switches used before 802.1ad
)

// maxTags is how many VLAN tags Payload skips: a service tag, a customer tag, and one
// more.
const maxTags = 3

// MAC is an Ethernet address.
type MAC [MACLen]byte

// Broadcast is the broadcast address.
var Broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// IsGroup reports whether m is a multicast or the broadcast address.
func (m MAC) IsGroup() bool { return m[0]&1 != 0 }

// IsUnicast reports whether m is a unicast address other than zero: it may be the
// source of a frame.
func (m MAC) IsUnicast() bool { return !m.IsGroup() && m != MAC{} }

// IsReserved reports whether m is one of 01:80:c2:00:00:00 to 0f, which no bridge
// forwards (IEEE 802.1Q, table 8-1): spanning tree, LLDP, pause and the like.
func (m MAC) IsReserved() bool {
	return m[0] == 1 && m[1] == 0x80 && m[2] == 0xc2 && m[3] == 0 && m[4] == 0 && m[5]&0xf0 == 0
}

// String returns the usual colon form.
func (m MAC) String() string {
	var b [MACLen*3 - 1]byte
	for i, v := range m {
		if i > 0 {
			b[i*3-1] = ':'
		}
		hex.Encode(b[i*3:i*3+2], []byte{v})
	}
	return string(b[:])
}

// Addresses returns destination and source of a frame; ok is false if it is
// too short for a header.
//
//	0     6     12   14                                  big endian
//	| dst | src | type | payload             no tag
//	| dst | src | 8100 | tag | type | payload      a VLAN tag, and so on
func Addresses(frame []byte) (dst, src MAC, ok bool) {
	if len(frame) < HeaderLen {
		return dst, src, false
	}
	return MAC(frame[0:6]), MAC(frame[6:12]), true
}

// Payload returns the ethertype behind all VLAN tags and the offset of what
// follows it. ok is false if the frame ends before or has too many tags.
func Payload(frame []byte) (ethertype uint16, offset int, ok bool) {
	offset = HeaderLen
	for range maxTags + 1 {
		if len(frame) < offset {
			return 0, 0, false
		}
		switch t := binary.BigEndian.Uint16(frame[offset-2:]); t {
		case typeCTag, typeSTag, typeQinQ:
			offset += TagLen
		default:
			return t, offset, true
		}
	}
	return 0, 0, false
}

// IP is what the switch needs to know about an IPv4 or IPv6 packet.
type IP struct {
	Version      int // 4 or 6
	Src, Dst     netip.Addr
	HeaderLen    int  // IPv4 header with options; 40 for IPv6
	Len          int  // of the packet, as its header says, but at most what the frame has
	DontFragment bool // the DF bit; true for IPv6, which routers never fragment
	FirstPart    bool // not a fragment, or the first one
	HasFragment  bool // a fragment, also one that is the whole packet (RFC 6946)
	Protocol     uint8
	ProtocolAt   int // offset in the packet of the header that Protocol names
}

// ParseIP reads the IP packet in a frame. It skips VLAN tags and, for IPv6, extension
// headers. ok is false if there is no valid packet. Offset is where in the frame the
// packet begins.
func ParseIP(frame []byte) (ip IP, offset int, ok bool) {
	t, offset, ok := Payload(frame)
	if !ok {
		return IP{}, 0, false
	}
	b := frame[offset:]
	switch t {
	case TypeIPv4:
		ip, ok = parse4(b)
	case TypeIPv6:
		ip, ok = parse6(b)
	default:
		ok = false
	}
	return ip, offset, ok
}

// parse4 reads an RFC 791 header.
func parse4(b []byte) (ip IP, ok bool) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return IP{}, false
	}
	hl, n := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if hl < 20 || n < hl || n > len(b) {
		return IP{}, false
	}
	flags := binary.BigEndian.Uint16(b[6:])
	return IP{
		Version: 4, Src: netip.AddrFrom4([4]byte(b[12:16])), Dst: netip.AddrFrom4([4]byte(b[16:20])),
		HeaderLen: hl, Len: n, DontFragment: flags&0x4000 != 0, FirstPart: flags&0x1fff == 0, HasFragment: flags&0x3fff != 0,
		Protocol: b[9], ProtocolAt: hl,
	}, true
}

// Extension headers of IPv6 that may stand before the payload, RFC 8200
// section 4.
const (
	hopByHop    = 0
	routing     = 43
	fragment    = 44
	destination = 60
)

// parse6 reads an RFC 8200 header and walks its extension headers.
func parse6(b []byte) (ip IP, ok bool) {
	if len(b) < 40 || b[0]>>4 != 6 {
		return IP{}, false
	}
	n := 40 + int(binary.BigEndian.Uint16(b[4:]))
	if n > len(b) {
		return IP{}, false
	}
	ip = IP{
		Version: 6, Src: netip.AddrFrom16([16]byte(b[8:24])), Dst: netip.AddrFrom16([16]byte(b[24:40])),
		HeaderLen: 40, Len: n, DontFragment: true, FirstPart: true,
		Protocol: b[6], ProtocolAt: 40,
	}
	for {
		var size int
		rest := b[ip.ProtocolAt:n]
		switch ip.Protocol {
		case hopByHop, routing, destination:
			if len(rest) < 8 {
				return IP{}, false
			}
			size = 8 + int(rest[1])*8
		case fragment:
			if len(rest) < 8 {
				return IP{}, false
			}
			size = 8
			ip.HasFragment = true
			ip.FirstPart = binary.BigEndian.Uint16(rest[2:])&0xfff8 == 0
		default:
			return ip, true
		}
		if size > len(rest) {
			return IP{}, false
		}
		ip.Protocol = rest[0]
		ip.ProtocolAt += size
		if !ip.FirstPart {
			return ip, true // the rest is the middle of a payload
		}
	}
}
