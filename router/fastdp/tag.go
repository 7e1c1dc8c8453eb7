package fastdp

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// TagLen is the length of a tag, which doc.go draws.
const TagLen = 40

// etherType is of tags and of probes: IEEE 802, local experimental ethertype 1.
const etherType = 0x88b5

// TagOp says what a tag is for. Append only.
type TagOp uint8

// Operations.
const (
	TagRelay TagOp = 1 // up: a frame between two peers that the kernel can not pass on
	TagEcho  TagOp = 2 // up: an echo that came back
	TagSend  TagOp = 3 // down: ask with a probe
)

// TagReason says why a frame comes with TagRelay. Append only.
type TagReason uint8

// Reasons.
const (
	ReasonSlow TagReason = 1 // the next hop is not fast
	ReasonBig  TagReason = 2 // it does not fit the next hop's MTU
)

// Tag is what is in front of a frame on the TAP.
type Tag struct {
	Op     TagOp
	Reason TagReason
	Src    uint16 // short ids
	Dst    uint16
	TTL    uint8      // of the outer packet, as it came
	Addr   netip.Addr // the host that it came from or goes to
}

// AppendTag appends t to b.
func AppendTag(b []byte, t Tag) []byte {
	b = slices.Grow(b, TagLen)
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
// every frame of a station.
func ParseTag(b []byte) (t Tag, ok bool) {
	if len(b) < TagLen || [12]byte(b) != [12]byte{} || binary.BigEndian.Uint16(b[12:]) != etherType {
		return Tag{}, false
	}
	return Tag{
		Op:     TagOp(b[14]),
		Reason: TagReason(b[15]),
		Src:    binary.BigEndian.Uint16(b[16:]),
		Dst:    binary.BigEndian.Uint16(b[18:]),
		TTL:    b[20],
		Addr:   ToAddr(Addr(b[24:])),
	}, true
}

// NonceLen is the length of what tells a probe's echo from others.
const NonceLen = 16

// MinProbeLen is the length of the shortest probe, in bytes of Ethernet frame.
const MinProbeLen = TagLen + NonceLen

// Probe asks a neighbour whether VXLAN gets there and back.
type Probe struct {
	Src, Dst uint16 // short ids of this host and of the neighbour
	To       netip.Addr
	Nonce    [NonceLen]byte
}

// AppendProbe appends what the router writes to the TAP to send p in a frame of
// length bytes, or of MinProbeLen if that is more. A probe of 14 bytes more than
// an MTU tells whether packets of that MTU pass.
func AppendProbe(b []byte, p Probe, length int) []byte {
	length = max(length, MinProbeLen)
	b = slices.Grow(b, length)
	end := len(b) + length
	b = AppendTag(b, Tag{Op: TagSend, Src: p.Src, Dst: p.Dst, Addr: p.To})
	b = append(b, p.Nonce[:]...)
	clear(b[len(b):end])
	return b[:end]
}

// ParseEcho reads the nonce of an echo, the frame behind a tag with TagEcho,
// which says the rest. The frame is as long as the probe was.
func ParseEcho(frame []byte) (p Probe, ok bool) {
	const (
		echo  = 2 // enum probe_op
		nonce = 16
	)
	if len(frame) < nonce+NonceLen || [12]byte(frame) != [12]byte{} || binary.BigEndian.Uint16(frame[12:]) != etherType || frame[14] != echo {
		return Probe{}, false
	}
	p.Nonce = [NonceLen]byte(frame[nonce:])
	return p, true
}
