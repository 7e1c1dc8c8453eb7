package checksum_test

import (
	"encoding/binary"
	"testing"

	"github.com/weft-net/weft/internal/checksum"
)

// slow is RFC 1071, section 4.1, word by word.
func slow(b []byte) uint16 {
	var s uint32
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
		s = s>>16 + s&0xffff
	}
	if len(b) > 0 {
		s += uint32(b[0]) << 8
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func TestExampleOfRFC1071(t *testing.T) {
	if s := checksum.Sum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}); s != 0xddf2 {
		t.Errorf("section 3 says ddf2, Sum says %04x", s)
	}
}

func FuzzSum(f *testing.F) {
	ones := make([]byte, 200)
	for i := range ones {
		ones[i] = 0xff
	}
	for n := range 140 {
		f.Add(ones[:n], uint8(n/2))
	}
	f.Add([]byte{1}, uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, at uint8) {
		if got, want := checksum.Sum(b), slow(b); got != want {
			t.Fatalf("Sum is %04x, want %04x", got, want)
		}
		cut := min(int(at)*2, len(b)&^1)
		// Zero has two forms; a sum of parts may have the other.
		got, want := checksum.Add(checksum.Sum(b[:cut]), checksum.Sum(b[cut:])), slow(b)
		if got != want && (got%0xffff != 0 || want%0xffff != 0) {
			t.Fatalf("cut at %d: %04x, want %04x", cut, got, want)
		}
	})
}

func BenchmarkSum(b *testing.B) {
	buf := make([]byte, 1324)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		checksum.Sum(buf)
	}
}
