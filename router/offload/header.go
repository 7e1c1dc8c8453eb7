// Package offload does in software what the kernel leaves to a device: it cuts
// GSO packets in segments and fills in checksums. It is the same work in both
// directions of a TAP with virtio-net headers; package gro does the reverse.
//
// A GSO packet is one Ethernet frame whose TCP or UDP payload is that of many
// packets of one flow, up to 64 KB, with one set of headers.
package offload

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/weft-net/weft/internal/checksum"
)

// HeaderLen is the length of a Header in bytes.
const HeaderLen = 10

// Kind is what a GSO packet must be cut into. The numbers are those of
// VIRTIO_NET_HDR_GSO_* (virtio 1.3, section 5.1.6).
type Kind uint8

// Kinds.
const (
	None Kind = 0 // an ordinary frame
	TCP4 Kind = 1
	TCP6 Kind = 4
	UDP  Kind = 5 // datagrams, over IPv4 or IPv6
)

// String is the word for logs and status.
func (k Kind) String() string {
	switch k {
	case None:
		return "ordinary"
	case TCP4, TCP6:
		return "tcp"
	case UDP:
		return "udp"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// ecnBit in the type field says that the first segment has CWR set, which the
// others must not have.
const ecnBit = 0x80

// needsSum in the flags field says that the checksum at Start+Offset holds only
// the pseudo-header's sum.
const needsSum = 1

// Header precedes each frame on a TAP that was opened with IFF_VNET_HDR: struct
// virtio_net_hdr of the kernel, in the byte order of this CPU.
//
//	0       1      2          4          6       8         10
//	| flags | type | header 2 | size 2   | start 2 | offset 2 |
//
// The zero Header says that the frame is complete as it is.
type Header struct {
	Kind Kind
	ECN  bool
	// NeedsSum: the 16 bits at Start+Offset are to become the checksum of
	// everything from Start on; they hold what is not in there, the
	// pseudo-header's sum.
	NeedsSum bool
	// HeaderLen is the length of all headers of a GSO packet. The kernel takes
	// it as a hint and gives it as one.
	HeaderLen uint16
	// Size is the payload of each segment, in bytes; the last may have less.
	Size uint16
	// Start is where in the frame the transport header begins, and Offset where
	// in that the checksum is.
	Start, Offset uint16
}

// Put writes the header to b[:HeaderLen].
func (h *Header) Put(b []byte) {
	_ = b[HeaderLen-1]
	b[0], b[1] = 0, byte(h.Kind)
	if h.NeedsSum {
		b[0] = needsSum
	}
	if h.ECN {
		b[1] |= ecnBit
	}
	binary.NativeEndian.PutUint16(b[2:], h.HeaderLen)
	binary.NativeEndian.PutUint16(b[4:], h.Size)
	binary.NativeEndian.PutUint16(b[6:], h.Start)
	binary.NativeEndian.PutUint16(b[8:], h.Offset)
}

// ErrShort is returned for what is shorter than its format.
var ErrShort = errors.New("shorter than its format")

// ParseHeader reads b[:HeaderLen]. What it says of a frame is not checked.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderLen {
		return Header{}, ErrShort
	}
	return Header{
		Kind: Kind(b[1] &^ ecnBit), ECN: b[1]&ecnBit != 0, NeedsSum: b[0]&needsSum != 0,
		HeaderLen: binary.NativeEndian.Uint16(b[2:]), Size: binary.NativeEndian.Uint16(b[4:]),
		Start: binary.NativeEndian.Uint16(b[6:]), Offset: binary.NativeEndian.Uint16(b[8:]),
	}, nil
}

// Complete fills in the checksum that h says is missing in an ordinary frame.
// It is false if the header points outside the frame.
func Complete(h Header, frame []byte) bool {
	at := int(h.Start) + int(h.Offset)
	if at+2 > len(frame) {
		return false
	}
	putSum(frame[at:], checksum.Sum(frame[h.Start:]))
	return true
}

// putSum writes the checksum for a sum. Zero is written in its other form, as
// in UDP it would say that there is no checksum, and elsewhere it makes no
// difference (RFC 768).
func putSum(b []byte, sum uint16) {
	if sum = ^sum; sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(b, sum)
}
