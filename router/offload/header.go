// Package offload does in software what the kernel leaves to a network card: it segments
// GSO packets and fills in checksums. Both directions of a TAP with virtio-net headers
// need it. Package gro does the reverse.
//
// A GSO packet (generic segmentation offload) is one Ethernet frame of up to 64 KB, with
// one set of headers and the payload of many TCP segments or UDP datagrams of one flow.
package offload

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/weft-net/weft/internal/checksum"
)

// HeaderLen is the length of a Header in bytes.
const HeaderLen = 10

// Kind is what a GSO packet is segmented into. The numbers are those of
// VIRTIO_NET_HDR_GSO_* (virtio 1.3, section 5.1.6).
type Kind uint8

// Kinds.
const (
	None Kind = 0 // an ordinary frame
	TCP4 Kind = 1
	TCP6 Kind = 4
	UDP  Kind = 5 // datagrams, over IPv4 or IPv6
)

// String returns the word for logs and status.
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
// The zero Header is that of a complete frame.
type Header struct {
	Kind Kind
	ECN  bool
	// NeedsSum reports a partial checksum (CHECKSUM_PARTIAL): the 16 bits at
	// Start+Offset contain the sum of the pseudo-header, and become the checksum of
	// everything from Start on.
	NeedsSum bool
	// HeaderLen is the length of all headers of a GSO packet. For the kernel and
	// from the kernel it is a hint only.
	HeaderLen uint16
	// Size is the payload of each segment, in bytes; the last may have less.
	Size uint16
	// Start is the position of the transport header in the frame, and Offset that of
	// the checksum in the transport header.
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

// ErrShort is returned for bytes that are shorter than their format.
var ErrShort = errors.New("shorter than its format")

// ParseHeader reads b[:HeaderLen]. It does not check the header against a frame.
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

// Complete fills in the checksum that is missing in an ordinary frame according to h. It
// is false if the header points outside the frame.
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
