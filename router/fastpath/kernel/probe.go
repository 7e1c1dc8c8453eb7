package kernel

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/internal/checksum"
	"github.com/weft-net/weft/router/offload"
)

// NonceLen is the length of the nonce by which an echo is recognised, in bytes.
const NonceLen = 16

// Offsets in a probe, which doc.go draws.
const (
	probeIP    = 14
	probeUDP   = probeIP + 20
	probeSum   = probeUDP + 6
	probeNonce = probeUDP + 8
	probeTo    = probeNonce + NonceLen
	probeIDs   = probeTo + 16
	probeASK   = 1 // enum probe_op
	probeEcho  = 2
)

// MinProbeLen is the length of the shortest probe, in bytes of Ethernet frame.
const MinProbeLen = probeIDs + 4

// Probe checks whether VXLAN reaches a neighbour and comes back.
type Probe struct {
	Src, Dst uint16 // short ids of this host and of the neighbour
	To       netip.Addr
	Nonce    [NonceLen]byte
}

// ProbeHeader is the header of a frame of AppendProbe: the checksum is partial, as in
// packets of containers.
var ProbeHeader = offload.Header{NeedsSum: true, Start: probeUDP, Offset: probeSum - probeUDP}

// Addresses and ports in probes: those for documentation (RFC 5737), and discard. They
// never leave VXLAN.
var (
	probeFrom = [4]byte{192, 0, 2, 1}
	probeAt   = [4]byte{192, 0, 2, 2}
)

const probePort = 9

// AppendProbe appends the frame that the router writes to the TAP, with ProbeHeader,
// to send p. It has length bytes, or MinProbeLen if that is more. A probe of 14
// bytes more than an MTU shows whether packets of that MTU pass.
func AppendProbe(b []byte, p Probe, length int) []byte {
	length = max(length, MinProbeLen)
	b = slices.Grow(b, length)
	start := len(b)
	b = b[:start+length]
	f := b[start:]
	clear(f)
	f[5] = probeASK
	f[12] = 0x08
	ip := f[probeIP:probeUDP]
	ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, 64, 17
	binary.BigEndian.PutUint16(ip[2:], uint16(length-probeIP))
	copy(ip[12:], probeFrom[:])
	copy(ip[16:], probeAt[:])
	binary.BigEndian.PutUint16(ip[10:], ^checksum.Sum(ip))
	udp := f[probeUDP:]
	binary.BigEndian.PutUint16(udp, probePort)
	binary.BigEndian.PutUint16(udp[2:], probePort)
	binary.BigEndian.PutUint16(udp[4:], uint16(length-probeUDP))
	binary.BigEndian.PutUint16(udp[6:], pseudoSum(f))
	copy(f[probeNonce:], p.Nonce[:])
	to := AddrOf(p.To)
	copy(f[probeTo:], to[:])
	binary.BigEndian.PutUint16(f[probeIDs:], p.Src)
	binary.BigEndian.PutUint16(f[probeIDs+2:], p.Dst)
	return b
}

// pseudoSum returns the sum of the pseudo-header (RFC 768) of a probe.
func pseudoSum(f []byte) uint16 {
	s := checksum.Sum(f[probeIP+12 : probeUDP])
	return checksum.Add(checksum.Add(s, 17), binary.BigEndian.Uint16(f[probeUDP+4:]))
}

// ParseEcho reads the nonce of an echo, which is the frame behind a metadata header
// with MetadataEcho. summed reports whether the UDP checksum is right. If the echo
// crossed devices of this kernel only, the checksum may still be partial, as the
// header on the TAP says. The frame is as long as the probe.
func ParseEcho(f []byte) (nonce [NonceLen]byte, summed, ok bool) {
	if len(f) < MinProbeLen || [12]byte(f) != [12]byte{5: probeEcho} || binary.BigEndian.Uint16(f[12:]) != 0x0800 {
		return nonce, false, false
	}
	summed = checksum.Add(pseudoSum(f), checksum.Sum(f[probeUDP:])) == 0xffff
	return [NonceLen]byte(f[probeNonce:]), summed, true
}
