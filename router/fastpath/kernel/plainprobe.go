package kernel

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/checksum"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/offload"
)

// Offsets in what follows the UDP header of a probe by plain packets, which doc.go draws.
const (
	plainMagic = 0x77656674 // "weft"
	plainSrc   = 4
	plainDst   = 6
	plainOp    = 8
	plainEncap = 9
	plainNonce = 12
	plainLen   = plainNonce + NonceLen
)

const (
	probePlain = 3 // enum probe_op
	udpLen     = 8
	protoUDP   = 17
)

// PlainProbe checks whether plain packets reach a neighbour and come back. It is one itself, between an
// address of a container of this host and one of the neighbour, so everything on the path treats it like
// those of containers.
type PlainProbe struct {
	Src, Dst uint16     // short ids of this host and of the neighbour
	Encap    Encap      // not EncapVXLAN
	From, To netip.Addr // of one family
	Port     uint16     // UDP port of VXLAN
	Nonce    [NonceLen]byte
}

// ipLen returns the length of the IP header of addresses like a.
func ipLen(a netip.Addr) int {
	if a.Is4() {
		return 20
	}
	return 40
}

// AppendPlainProbe appends the frame that the router writes to the TAP, with the header that it returns, to
// send p as an IP packet of length bytes, or of the fewest that it needs if that is more. The checksum is
// partial, as in packets of containers.
func AppendPlainProbe(b []byte, p PlainProbe, length int) ([]byte, offload.Header) {
	udpAt := ethernet.HeaderLen + ipLen(p.To)
	length = max(ethernet.HeaderLen+length, udpAt+udpLen+plainLen)
	b = slices.Grow(b, length)
	start := len(b)
	b = b[:start+length]
	f := b[start:]
	clear(f)
	f[5] = probePlain
	ip, udp := f[ethernet.HeaderLen:udpAt], f[udpAt:]
	if p.To.Is4() {
		binary.BigEndian.PutUint16(f[12:], 0x0800)
		ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, 64, protoUDP
		binary.BigEndian.PutUint16(ip[2:], uint16(length-ethernet.HeaderLen))
		copy(ip[12:], p.From.AsSlice())
		copy(ip[16:], p.To.AsSlice())
		binary.BigEndian.PutUint16(ip[10:], ^checksum.Sum(ip))
	} else {
		binary.BigEndian.PutUint16(f[12:], 0x86dd)
		ip[0], ip[6], ip[7] = 0x60, protoUDP, 64
		binary.BigEndian.PutUint16(ip[4:], uint16(len(udp)))
		copy(ip[8:], p.From.AsSlice())
		copy(ip[24:], p.To.AsSlice())
	}
	binary.BigEndian.PutUint16(udp, p.Port)
	binary.BigEndian.PutUint16(udp[2:], p.Port)
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	addrs := checksum.Add(checksum.Sum(p.From.AsSlice()), checksum.Sum(p.To.AsSlice()))
	binary.BigEndian.PutUint16(udp[6:], checksum.Add(checksum.Add(addrs, protoUDP), uint16(len(udp))))
	what := udp[udpLen:]
	binary.BigEndian.PutUint32(what, plainMagic)
	binary.BigEndian.PutUint16(what[plainSrc:], p.Src)
	binary.BigEndian.PutUint16(what[plainDst:], p.Dst)
	what[plainOp], what[plainEncap] = probeASK, byte(p.Encap)
	copy(what[plainNonce:], p.Nonce[:])
	return b, offload.Header{NeedsSum: true, Start: uint16(udpAt), Offset: 6}
}

// ParsePlainEcho reads the nonce of an echo of a probe by plain packets, which is the frame behind a metadata
// header with MetadataEcho, whose Reason is the encapsulation. summed is as in ParseEcho.
func ParsePlainEcho(f []byte, encap Encap) (nonce [NonceLen]byte, summed, ok bool) {
	at := ethernet.HeaderLen
	if encap == EncapIPIP {
		at += 20
	}
	if len(f) <= at {
		return nonce, false, false
	}
	var addrs []byte
	ip := f[at:]
	switch header := ip[0] >> 4; {
	case header == 4 && len(ip) >= 20:
		ip, addrs = ip[20:], ip[12:20]
	case header == 6 && len(ip) >= 40:
		ip, addrs = ip[40:], ip[8:40]
	default:
		return nonce, false, false
	}
	if len(ip) < udpLen+plainLen {
		return nonce, false, false
	}
	length := int(binary.BigEndian.Uint16(ip[4:])) // what is behind it pads the frame
	if length < udpLen+plainLen || length > len(ip) {
		return nonce, false, false
	}
	udp := ip[:length]
	what := udp[udpLen:]
	if binary.BigEndian.Uint32(what) != plainMagic || what[plainOp] != probeEcho || Encap(what[plainEncap]) != encap {
		return nonce, false, false
	}
	pseudo := checksum.Add(checksum.Add(checksum.Sum(addrs), protoUDP), uint16(length))
	summed = checksum.Add(pseudo, checksum.Sum(udp)) == 0xffff
	return [NonceLen]byte(what[plainNonce:]), summed, true
}
