package kernel

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// TagLen is the length of a tag, which doc.go draws.
const MetadataLen = 40

// etherType is of tags and of probes: IEEE 802, local experimental ethertype 1.
const etherType = 0x88b5

// TagOp says what a tag is for. Append only.
type MetadataOp uint8

// Operations.
const (
	MetadataRelay MetadataOp = 1 // a frame between two peers that the kernel cannot pass on
	MetadataEcho  MetadataOp = 2 // an echo that came back
)

// TagReason says why a frame comes with TagRelay. Append only.
type MetadataReason uint8

// Reasons.
const (
	ReasonSlow MetadataReason = 1 // the next hop is not fast
	ReasonBig  MetadataReason = 2 // it does not fit the next hop's MTU
)

// Tag is what the kernel puts in front of a frame on the TAP.
type Metadata struct {
	Op     MetadataOp
	Reason MetadataReason
	Src    uint16 // short ids
	Dst    uint16
	TTL    uint8      // of the outer packet, as it came
	Addr   netip.Addr // the host that it came from
}

// AppendTag appends t to b.
func AppendMetadata(b []byte, t Metadata) []byte {
	b = slices.Grow(b, MetadataLen)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, etherType)
	b = append(b, byte(t.Op), byte(t.Reason))
	b = binary.BigEndian.AppendUint16(b, t.Src)
	b = binary.BigEndian.AppendUint16(b, t.Dst)
	b = append(b, t.TTL, 0, 0, 0)
	a := AddrOf(t.Addr)
	return append(b, a[:]...)
}

// ParseTag reads the tag in front of b. It is false if there is none, as with
// every frame of a MAC address.
func ParseMetadata(b []byte) (t Metadata, ok bool) {
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
