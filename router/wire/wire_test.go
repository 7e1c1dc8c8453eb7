package wire

import (
	"bytes"
	"testing"

	"github.com/weft-net/weft/mesh/peer"
)

func TestHeaderLayout(t *testing.T) {
	b := make([]byte, Overhead)
	Header{Type: Data, Index: 0x0a0b0c, Lane: 0x11, Sequence: 0x22334455667788}.Put(b)
	want := []byte{1, 0x0a, 0x0b, 0x0c, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88}
	if !bytes.Equal(b[:HeaderLen], want) {
		t.Errorf("got % x, want % x", b[:HeaderLen], want)
	}
}

// TestOverheadSum proves the drawing of the package comment, and the promise
// of at most 80 bytes.
func TestOverheadSum(t *testing.T) {
	const around = 14 + 20 + 8 + HeaderLen + AuthTagLen
	if around+DirectLen != 71 || around+RoutedLen != 79 || around+RoutedLongLen != 83 {
		t.Error("the overhead is not what is drawn")
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(bytes.Repeat([]byte{0x81}, Overhead))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeader(b)
		if (err == nil) != (len(b) >= Overhead) {
			t.Fatalf("%d bytes: %v", len(b), err)
		}
		if err == nil {
			again := make([]byte, HeaderLen)
			h.Put(again)
			if !bytes.Equal(again, b[:HeaderLen]) {
				t.Fatalf("% x became % x", b[:HeaderLen], again)
			}
		}
	})
}

func FuzzHead(f *testing.F) {
	n := peer.Name{2, 0, 0, 0, 0, 7}
	for _, h := range []Head{
		{Kind: Direct, Hops: 31}, {Kind: Routed, Hops: 3, SrcID: 1, DstID: EveryID},
		{Kind: RoutedLong, Src: n, Dst: peer.Broadcast}, {Kind: Routed, Sealed: true, SrcID: 1, DstID: 2},
		{Kind: RoutedLong, Sealed: true, Src: n, Dst: n},
	} {
		b := make([]byte, h.Len())
		h.Put(b)
		f.Add(b)
	}
	f.Add([]byte{0})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := ParseHead(b)
		if err != nil {
			return
		}
		if h.Sealed && (h.ToAll() || h.Kind == Direct) {
			t.Fatalf("nobody can open %+v", h)
		}
		again := make([]byte, h.Len())
		h.Put(again)
		if n != h.Len() || !bytes.Equal(again, b[:n]) {
			t.Fatalf("% x became % x", b[:n], again)
		}
		SetHops(again, h.Hops-1)
		if g, _, err := ParseHead(again); err != nil || g.Hops != (h.Hops-1)&MaxHops || g.SrcID != h.SrcID || g.Kind != h.Kind {
			t.Fatalf("SetHops broke %+v: %+v", h, g)
		}
	})
}

func FuzzBatch(f *testing.F) {
	f.Add([]byte{0, 1, 'a', 0, 2, 'b', 'c'})
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var again []byte
		rest := b
		for len(rest) > 0 {
			frame, r, err := NextInBatch(rest)
			if err != nil {
				return
			}
			again = append(again, 0, 0)
			PutBatchLen(again[len(again)-2:], len(frame))
			again = append(again, frame...)
			rest = r
		}
		if !bytes.Equal(again, b) {
			t.Fatalf("% x became % x", b, again)
		}
	})
}

func FuzzFragment(f *testing.F) {
	b := make([]byte, FragmentHeadLen, 20)
	FragmentHead{ID: 7, Total: 100, Offset: 90}.Put(b)
	f.Add(append(b, "0123456789"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, part, err := ParseFragment(b)
		if err != nil {
			return
		}
		if len(part) == 0 || h.Offset+len(part) > h.Total || h.Total > MaxTotal {
			t.Fatalf("%+v with %d bytes", h, len(part))
		}
		again := make([]byte, FragmentHeadLen)
		h.Put(again)
		if !bytes.Equal(append(again, part...), b) {
			t.Fatalf("% x became % x", b, again)
		}
	})
}

func FuzzProbe(f *testing.F) {
	b := make([]byte, ProbeLen)
	ProbeBody{Answer: true, ID: 1, Size: 1500}.Put(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseProbe(b)
		if err != nil {
			return
		}
		again := make([]byte, ProbeLen)
		p.Put(again)
		if !bytes.Equal(again, b[:ProbeLen]) {
			t.Fatalf("% x became % x", b, again)
		}
	})
}

func FuzzControl(f *testing.F) {
	for _, c := range []Control{
		{Type: Offer, Round: 1, Index: 2, Key: [32]byte{3}, Suites: 6}, {Type: Answer, Round: 1, Index: MaxIndex, Suite: 1, Offer: 77},
		{Type: Confirm, Round: 9}, {Type: Renew}, {Type: Fast, Verdict: FastNoID, ShortID: MaxShortID, Port: 6784},
		{Type: Fast, ShortID: 1, Port: 6784, Tunnel: Tunnel{Port: 6785, Key: [32]byte{1, 2}}},
	} {
		f.Add(c.Append(nil))
	}
	f.Add([]byte{200, 1, 2})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, known, err := ParseControl(b)
		if err != nil || !known {
			return
		}
		again := c.Append(nil)
		if !bytes.Equal(again, b[:len(again)]) {
			t.Fatalf("% x became % x", b, again)
		}
	})
}
