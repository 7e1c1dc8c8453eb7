// Package checksum computes the Internet checksum (RFC 1071), fast enough for bulk data:
// 64 bytes in each round.
//
// A sum is a one's complement sum of 16-bit big-endian words, folded to 16 bits and not
// inverted. The checksum in a header is the inverse of the sum.
package checksum

import (
	"encoding/binary"
	"math/bits"
)

// Sum returns the sum of the words of b. An odd byte at the end is the high byte of a
// word.
func Sum(b []byte) uint16 {
	// RFC 1071, section 2(B): the sum of byte-swapped words is the byte-swapped
	// sum. So it loads eight bytes at a time in the byte order of this CPU, and adds
	// the carry of each addition to the next one.
	var s, c uint64
	for len(b) >= 64 {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), 0)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[8:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[16:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[24:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[32:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[40:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[48:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[56:]), c)
		s += c // cannot carry: a sum that carried is less than the largest value
		b = b[64:]
	}
	for len(b) >= 8 {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), 0)
		s += c
		b = b[8:]
	}
	if len(b) > 0 {
		var last [8]byte
		copy(last[:], b)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(last[:]), 0)
		s += c
	}
	return bits.ReverseBytes16(fold(s))
}

// fold reduces a sum to 16 bits.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff // less than 2^33 before, so less than 2^18 now
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}

// Add returns the sum of two sums. If the bytes of the second follow those of the first,
// the first must cover an even number of bytes.
func Add(a, b uint16) uint16 {
	s, c := bits.Add32(uint32(a)<<16, uint32(b)<<16, 0)
	return uint16(s>>16) + uint16(c)
}
