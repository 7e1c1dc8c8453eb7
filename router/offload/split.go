package offload

import (
	"encoding/binary"
	"errors"

	"github.com/weft-net/weft/internal/checksum"
)

// TCP flags that segmentation changes (RFC 9293 section 3.1, RFC 3168).
const (
	flagFIN = 0x01
	flagPSH = 0x08
	flagCWR = 0x80
)

// MaxSegments is the largest number of segments of a GSO packet: 64 KB with 32 bytes
// each. The smallest TCP segment of the kernel has 48 bytes, and it makes at most 128
// datagrams.
const MaxSegments = 2048

// ErrGSO is returned for a frame that is not a GSO packet, or contradicts its header.
var ErrGSO = errors.New("not the GSO packet that its header says")

// Splitter segments a GSO packet as tcp_gso_segment and __udp_gso_segment of the kernel
// do. Each segment has the headers of the GSO packet, except for:
//
//	IPv4         length; identification, one more for each; checksum
//	IPv6         length
//	TCP          sequence number; FIN and PSH on the last only, CWR on the first only
//	UDP          length
//	TCP and UDP  checksum
//
// Reset makes it ready. It refers to no memory but the frame's.
type Splitter struct {
	layout Layout
	frame  []byte
	size   int
	count  int
	sum    uint16 // of the pseudo-header without the length
}

// Reset prepares the splitter for a GSO packet, which is borrowed until the last use of
// the splitter.
func (s *Splitter) Reset(h Header, frame []byte) error {
	l, ok := Parse(frame)
	if !ok || !h.Kind.of(&l) || h.Size == 0 {
		return ErrGSO
	}
	n, size := l.End-l.Payload, int(h.Size)
	count := max(1, (n+size-1)/size)
	if count > MaxSegments {
		return ErrGSO
	}
	*s = Splitter{layout: l, frame: frame, size: size, count: count, sum: l.addressSum(frame)}
	return nil
}

// of reports whether frames with a layout can be of this kind.
func (k Kind) of(l *Layout) bool {
	switch k {
	case TCP4:
		return l.Proto == ProtoTCP && !l.Six
	case TCP6:
		return l.Proto == ProtoTCP && l.Six
	case UDP:
		return l.Proto == ProtoUDP
	}
	return false
}

// Layout returns the layout of the GSO packet and, except for End, of each segment.
func (s *Splitter) Layout() *Layout { return &s.layout }

// Count returns the number of segments, at least one.
func (s *Splitter) Count() int { return s.count }

// Len returns the length of segment i as a frame, in bytes. The first is the longest.
func (s *Splitter) Len(i int) int {
	if i < s.count-1 {
		return s.layout.Payload + s.size
	}
	return s.layout.End - (s.count-1)*s.size
}

// PutComplete writes segment i, with its checksum, to b[:s.Len(i)].
func (s *Splitter) PutComplete(b []byte, i int) {
	s.PutPartial(b, i)
	l := &s.layout
	putSum(b[l.SumAt():], checksum.Sum(b[l.L4:s.Len(i)]))
}

// PutPartial writes segment i to b[:s.Len(i)]. Its checksum is partial (see
// Header.NeedsSum).
func (s *Splitter) PutPartial(b []byte, i int) {
	l, n := &s.layout, s.Len(i)
	b = b[:n]
	head := l.Payload
	copy(b, s.frame[:head])
	copy(b[head:], s.frame[head+i*s.size:])
	if !l.Six {
		id := b[l.IP+4:]
		binary.BigEndian.PutUint16(id, binary.BigEndian.Uint16(id)+uint16(i))
	}
	l.SetLen(b, n)
	if l.Proto == ProtoTCP {
		h := b[l.L4:]
		binary.BigEndian.PutUint32(h[4:], binary.BigEndian.Uint32(h[4:])+uint32(i*s.size))
		if i > 0 {
			h[13] &^= flagCWR
		}
		if i < s.count-1 {
			h[13] &^= flagFIN | flagPSH
		}
	}
	binary.BigEndian.PutUint16(b[l.SumAt():], checksum.Add(s.sum, uint16(n-l.L4)))
}
