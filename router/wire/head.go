package wire

import (
	"encoding/binary"

	"github.com/weft-net/weft/mesh/peer"
)

// Kind is how a head names the source and destination peers of a frame. Numbers are
// append-only and have 3 bits.
type Kind uint8

// Kinds.
const (
	Direct     Kind = 1 // from the sender of the packet to its receiver
	Routed     Kind = 2 // peers by Name.ID
	RoutedLong Kind = 3 // peers by whole Name
)

// MaxHops is the largest number of links that a frame may cross after this one.
const MaxHops = 31

// EveryID as the destination of a Routed frame means every peer, like peer.Broadcast for
// a RoutedLong one.
const EveryID = 0xffffffff

// Head precedes each frame, big endian:
//
//	 0    3      8
//	+----+------+
//	|kind| hops |                                   direct:       1 byte
//	+----+------+---------------+---------------+
//	|           | source 4      | destination 4 |   routed:       9 bytes
//	            +---------------+-----+---------+-----------+
//	|           | source 6            | destination 6       |   routed long: 13 bytes
//	            +---------------------+---------------------+
//
// A head of kind 4 or 5 is like one of kind 2 or 3, and a packet that the source has sealed
// for the destination follows in place of a frame: relays cannot read it.
//
// Hops is the number of links that the frame may cross after this one. Source is the
// peer behind which the frame entered the overlay.
type Head struct {
	Kind Kind
	Hops uint8
	// Sealed says that a packet follows, which the source has sealed for the
	// destination. Not of Direct, and not of frames to every peer.
	Sealed bool
	// Of Routed.
	SrcID, DstID uint32
	// Of RoutedLong.
	Src, Dst peer.Name
}

// sealed is the distance from a kind to that of sealed packets.
const sealed = 2

// Lengths of a Head in bytes.
const (
	DirectLen     = 1
	RoutedLen     = 9
	RoutedLongLen = 13
	MaxHeadLen    = RoutedLongLen
)

// Len returns the length of the head in bytes.
func (h *Head) Len() int {
	switch h.Kind {
	case Routed:
		return RoutedLen
	case RoutedLong:
		return RoutedLongLen
	}
	return DirectLen
}

// ToAll reports whether the frame is for every peer.
func (h *Head) ToAll() bool {
	return h.Kind == Routed && h.DstID == EveryID || h.Kind == RoutedLong && h.Dst == peer.Broadcast
}

// Put writes the head to b[:h.Len()].
func (h *Head) Put(b []byte) {
	kind := h.Kind
	if h.Sealed {
		kind += sealed
	}
	b[0] = byte(kind)<<5 | h.Hops&MaxHops
	switch h.Kind {
	case Routed:
		binary.BigEndian.PutUint32(b[1:], h.SrcID)
		binary.BigEndian.PutUint32(b[5:], h.DstID)
	case RoutedLong:
		copy(b[1:], h.Src[:])
		copy(b[7:], h.Dst[:])
	}
}

// SetHops changes the hops of the head at b.
func SetHops(b []byte, hops uint8) { b[0] = b[0]&^MaxHops | hops&MaxHops }

// ParseHead reads the head at the beginning of b and returns its length.
func ParseHead(b []byte) (h Head, n int, err error) {
	if len(b) < DirectLen {
		return h, 0, ErrShort
	}
	h.Kind, h.Hops = Kind(b[0]>>5), b[0]&MaxHops
	if h.Kind == Routed+sealed || h.Kind == RoutedLong+sealed {
		h.Kind, h.Sealed = h.Kind-sealed, true
	}
	switch n = h.Len(); h.Kind {
	case Direct:
	case Routed:
		if len(b) < n {
			return h, 0, ErrShort
		}
		h.SrcID, h.DstID = binary.BigEndian.Uint32(b[1:]), binary.BigEndian.Uint32(b[5:])
	case RoutedLong:
		if len(b) < n {
			return h, 0, ErrShort
		}
		h.Src, h.Dst = peer.NameFromBytes(b[1:]), peer.NameFromBytes(b[7:])
	default:
		return h, 0, ErrFormat
	}
	if h.Sealed && h.ToAll() {
		return h, 0, ErrFormat
	}
	return h, n, nil
}
