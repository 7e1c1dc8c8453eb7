// Package wire is the format of sleeve: the packets that two routers exchange over UDP,
// and the control messages over their session that set this up.
//
// A packet, big endian, lengths in bits and bytes:
//
//	 0       8                              32
//	+-------+-------------------------------+
//	| type  | receiver index                |  4   clear, authenticated
//	+-------+-------------------------------+
//	| lane  | sequence                      |  8   clear, authenticated
//	|       |                               |
//	+-------+-------------------------------+
//	| body, encrypted                       |
//	+---------------------------------------+
//	| authentication tag                    | 16
//	+---------------------------------------+
//
// The receiver index identifies, at the receiver that chose it, the key of the packet.
// Lane and sequence together are a counter of 64 bits that no two packets under one key
// share. It makes the nonce. The 12 bytes of header are the additional data of the AEAD.
//
// Lane 0 is for probes. Each other sender of a router has two lanes, the even one for
// packets of sparse flows. A receiver that has fallen behind handles even lanes first. As
// each lane has its own sequence, no packet looks late.
//
// Overhead of a frame beyond the IP packet in it, on an IPv4 underlay:
//
//	                  direct   routed   routed long
//	inner Ethernet        14       14       14
//	outer IPv4            20       20       20      (IPv6: 40)
//	outer UDP              8        8        8
//	header                12       12       12
//	frame head             1        9       13
//	authentication tag    16       16       16
//	sum                   71       79       83
//	sealed for the end             28       28      (header and authentication tag)
//	sum                           107      111
//
// The checksum of a Partial frame is partial: it has the sum of the pseudo-header only,
// as the sender's kernel left the rest to its device. The authentication tag protects
// the frame on the path. The receiver passes the partial checksum to its kernel as
// verified, or completes it if the kernel does not accept that. So no CPU computes
// checksums of bulk data.
//
// Routed long is for meshes in which two peers share the low half of their name, which
// is one in four thousand million pairs.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Type is the type of a packet's body. Numbers are append-only.
type Type uint8

// Types.
const (
	Data     Type = 1 // one frame: head and frame, to the end
	Batch    Type = 2 // several frames, each with its length
	Fragment Type = 3 // a fragment of one frame, head included
	Probe    Type = 4 // heartbeat and path MTU probe
	Partial  Type = 6 // as Data, of a TCP segment or a UDP datagram with a partial checksum
)

// Lengths in bytes.
const (
	HeaderLen  = 12
	AuthTagLen = 16
	// Overhead is the length of a packet without its body.
	Overhead = HeaderLen + AuthTagLen
)

// Limits of the fields of a Header.
const (
	MaxIndex    = 1<<24 - 1
	MaxSequence = 1<<56 - 1
	MaxLanes    = 256
)

// Parse errors.
var (
	ErrShort  = errors.New("shorter than its format")
	ErrFormat = errors.New("malformed")
)

// Header is the part of a packet that is not encrypted.
type Header struct {
	Type     Type
	Index    uint32 // receiver index, 24 bits; 0 is never used
	Lane     uint8
	Sequence uint64 // 56 bits
}

// Urgent reports whether a packet may be handled before earlier ones. The packet need
// not be authentic.
func Urgent(b []byte) bool { return len(b) >= HeaderLen && b[4]&1 == 0 }

// Put writes the header to b[:HeaderLen].
func (h Header) Put(b []byte) {
	binary.BigEndian.PutUint32(b, uint32(h.Type)<<24|h.Index&MaxIndex)
	binary.BigEndian.PutUint64(b[4:], uint64(h.Lane)<<56|h.Sequence&MaxSequence)
}

// ParseHeader reads the header of a packet that may have a body.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < Overhead {
		return Header{}, ErrShort
	}
	a, c := binary.BigEndian.Uint32(b), binary.BigEndian.Uint64(b[4:])
	return Header{Type: Type(a >> 24), Index: a & MaxIndex, Lane: uint8(c >> 56), Sequence: c & MaxSequence}, nil
}

// Batch bodies contain one or more frames:
//
//	| length 2 | head | frame | length 2 | head | frame | ...
//
// The length counts head and frame.

// BatchLen is the overhead of a frame in a batch, besides its head.
const BatchLen = 2

// PutBatchLen writes the length of the next frame of a batch to b[:BatchLen].
func PutBatchLen(b []byte, n int) { binary.BigEndian.PutUint16(b, uint16(n)) }

// NextInBatch splits the first frame, head included, from a batch body. Both
// results are part of b.
func NextInBatch(b []byte) (frame, rest []byte, err error) {
	if len(b) < BatchLen {
		return nil, nil, ErrShort
	}
	n := int(binary.BigEndian.Uint16(b))
	if n == 0 || BatchLen+n > len(b) {
		return nil, nil, ErrFormat
	}
	return b[BatchLen : BatchLen+n : BatchLen+n], b[BatchLen+n:], nil
}

// FragmentHead precedes the fragment in a Fragment body:
//
//	| id 4 | total 3 | offset 3 | part
//
// Total is the length of the frame with its head, and offset the position of the
// fragment in it. The sender chooses the id: its lane and a counter.
type FragmentHead struct {
	ID            uint32
	Total, Offset int // 24 bits each
}

// FragmentHeadLen is the length of a FragmentHead in bytes.
const FragmentHeadLen = 10

// MaxTotal is the largest frame with its head that may be sent in fragments.
const MaxTotal = 1 << 17

// Put writes the head to b[:FragmentHeadLen].
func (f FragmentHead) Put(b []byte) {
	binary.BigEndian.PutUint32(b, f.ID)
	put24(b[4:], f.Total)
	put24(b[7:], f.Offset)
}

// ParseFragment splits a Fragment body. The fragment is part of b, not empty, and within
// the total.
func ParseFragment(b []byte) (f FragmentHead, part []byte, err error) {
	if len(b) <= FragmentHeadLen {
		return f, nil, ErrShort
	}
	f = FragmentHead{ID: binary.BigEndian.Uint32(b), Total: get24(b[4:]), Offset: get24(b[7:])}
	part = b[FragmentHeadLen:]
	if f.Total > MaxTotal || f.Offset+len(part) > f.Total {
		return f, nil, ErrFormat
	}
	return f, part, nil
}

func put24(b []byte, v int) { b[0], b[1], b[2] = byte(v>>16), byte(v>>8), byte(v) }
func get24(b []byte) int    { return int(b[0])<<16 | int(b[1])<<8 | int(b[2]) }

// ProbeBody requests an answer from the other end, or is the answer:
//
//	| flags 1 | id 8 | size 2 | zeros
//
// The id is random, so an answer shows that the other end received the request. Flag bit 0
// marks an answer, which repeats id and size. Size is the length of
// the request's IP packet, to which the zeros pad it; 0 for a heartbeat without padding.
// An answer has no zeros. Bytes that follow are ignored.
type ProbeBody struct {
	Answer bool
	ID     uint64
	Size   uint16
}

// ProbeLen is the length of a ProbeBody without its padding, in bytes.
const ProbeLen = 11

// Put writes the body to b[:ProbeLen].
func (p ProbeBody) Put(b []byte) {
	b[0] = 0
	if p.Answer {
		b[0] = 1
	}
	binary.BigEndian.PutUint64(b[1:], p.ID)
	binary.BigEndian.PutUint16(b[9:], p.Size)
}

// ParseProbe reads a Probe body.
func ParseProbe(b []byte) (ProbeBody, error) {
	if len(b) < ProbeLen {
		return ProbeBody{}, ErrShort
	}
	if b[0] > 1 {
		return ProbeBody{}, fmt.Errorf("probe flags %#x: %w", b[0], ErrFormat)
	}
	return ProbeBody{Answer: b[0] == 1, ID: binary.BigEndian.Uint64(b[1:]), Size: binary.BigEndian.Uint16(b[9:])}, nil
}
