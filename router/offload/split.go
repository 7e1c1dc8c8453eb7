package offload

import (
	"encoding/binary"
	"errors"

	"github.com/weft-net/weft/internal/checksum"
)

// TCP flags that segmentation cares for (RFC 9293 section 3.1, RFC 3168).
const (
	flagFIN = 0x01
	flagPSH = 0x08
	flagCWR = 0x80
)

// MaxSegments is how many segments a GSO packet may have: one of 64 KB with 32
// bytes each. The kernel's least TCP segment is 48 bytes long, and it cuts
// datagrams into 128 parts at most.
const MaxSegments = 2048

// ErrSuper is returned for what is no GSO packet, or contradicts its header.
var ErrGSO = errors.New("not the GSO packet that its header says")

// Splitter cuts a GSO packet in segments as the kernel would, in
// tcp_gso_segment and __udp_gso_segment. Each segment has the headers of the
// GSO packet, and in them is its own:
//
//	IPv4         length; identification, one more for each; checksum
//	IPv6         length
//	TCP          sequence number; FIN and PSH on the last only, CWR on the first only
//	UDP          length
//	TCP and UDP  checksum
//
// Make it ready by Reset. It keeps no memory but the frame's.
type Splitter struct {
	layout Layout
	frame  []byte
	size   int
	count  int
	sum    uint16 // of the pseudo-header without the length
}

// Reset makes the splitter ready for a GSO packet, which is borrowed for as
// long as the splitter is used.
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

// of reports whether frames of a layout can be of this kind.
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

// Layout is that of the GSO packet and, but for End, of each segment.
func (s *Splitter) Layout() *Layout { return &s.layout }

// Count is the number of segments, at least one.
func (s *Splitter) Count() int { return s.count }

// Len is the length of segment i as a frame, in bytes. The first has the most.
func (s *Splitter) Len(i int) int {
	if i < s.count-1 {
		return s.layout.Payload + s.size
	}
	return s.layout.End - (s.count-1)*s.size
}

// Put writes segment i to b[:s.Len(i)]. Its checksum is complete if sum, else
// that of the pseudo-header only, as Header.NeedsSum says.
func (s *Splitter) Put(b []byte, i int, sum bool) {
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
	if sum {
		putSum(b[l.SumAt():], checksum.Sum(b[l.L4:]))
	}
}
