package kernel

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// MetadataLen is the length of a metadata header, which doc.go draws, in bytes.
const MetadataLen = 40

// etherType is that of metadata headers and probes: IEEE 802, local experimental ethertype
// 1.
const etherType = 0x88b5

// MetadataOp is the purpose of a metadata header. Append only.
type MetadataOp uint8

// Operations.
const (
	MetadataRelay MetadataOp = 1 // a frame between two other peers that the kernel cannot forward
	MetadataEcho  MetadataOp = 2 // an echo of a probe
)

// MetadataReason is why the kernel cannot forward a frame. Append only.
type MetadataReason uint8

// Reasons.
const (
	ReasonSlow MetadataReason = 1 // the next hop is not fast
	ReasonBig  MetadataReason = 2 // it does not fit the next hop's MTU
)

// Metadata is the header that the kernel puts in front of a frame on the TAP.
type Metadata struct {
	Op     MetadataOp
	Reason MetadataReason
	Src    uint16 // short ids
	Dst    uint16
	TTL    uint8      // of the outer packet, as it came
	Addr   netip.Addr // of the host that it came from
}

// AppendMetadata appends m to b.
func AppendMetadata(b []byte, m Metadata) []byte {
	b = slices.Grow(b, MetadataLen)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, etherType)
	b = append(b, byte(m.Op), byte(m.Reason))
	b = binary.BigEndian.AppendUint16(b, m.Src)
	b = binary.BigEndian.AppendUint16(b, m.Dst)
	b = append(b, m.TTL, 0, 0, 0)
	a := AddrOf(m.Addr)
	return append(b, a[:]...)
}

// ParseMetadata reads the metadata header at the beginning of b. It is false if there is
// none, as with every frame that an interface sent.
func ParseMetadata(b []byte) (m Metadata, ok bool) {
	if len(b) < MetadataLen || [12]byte(b) != [12]byte{} || binary.BigEndian.Uint16(b[12:]) != etherType {
		return Metadata{}, false
	}
	return Metadata{
		Op:     MetadataOp(b[14]),
		Reason: MetadataReason(b[15]),
		Src:    binary.BigEndian.Uint16(b[16:]),
		Dst:    binary.BigEndian.Uint16(b[18:]),
		TTL:    b[20],
		Addr:   ToAddr(Addr(b[24:])),
	}, true
}
