package offload_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/offload/packets"
)

// gsoFrame makes a GSO packet of a spec as a kernel would hand it over: lengths
// right, checksum open.
func gsoFrame(t testing.TB, s packets.Spec, size int, ecn bool) (offload.Header, []byte) {
	b := s.Frame()
	l, ok := offload.Parse(b)
	if !ok {
		t.Fatalf("%+v is not parsed", s)
	}
	h := l.Partial()
	h.Size, h.ECN, h.HeaderLen = uint16(size), ecn, uint16(l.Payload)
	h.Kind = map[bool]map[bool]offload.Kind{false: {false: offload.TCP4, true: offload.TCP6}, true: {false: offload.UDP, true: offload.UDP}}[s.UDP][s.Six]
	binary.BigEndian.PutUint16(b[l.SumAt():], l.PseudoSum(b, l.End-l.L4))
	return h, b
}

func payload(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7)
	}
	return b
}

// TestSegmentsAreWhatASenderWithoutOffloadSends: each segment is compared with
// the frame that a plain sender would have made.
func TestSegmentsAreWhatASenderWithoutOffloadSends(t *testing.T) {
	const size = 1000
	for _, six := range []bool{false, true} {
		for _, udp := range []bool{false, true} {
			for tags := range 3 {
				for _, n := range []int{1, size, size + 1, 5*size - 1, 64 * size} {
					s := packets.Spec{Six: six, UDP: udp, Tags: tags, TOS: 3, TTL: 60, DF: true, ID: 65530, Seq: 0xffffff00, Ack: 5,
						Flags: 0x10 | 0x80 | 0x08 | 0x01, Window: 9, TCPOpts: 12, Stamp: 7, Payload: payload(n), Options: 8 * (tags & 1)}
					h, b := gsoFrame(t, s, size, true)
					var sp offload.Splitter
					if err := sp.Reset(h, b); err != nil {
						t.Fatalf("%+v: %v", s, err)
					}
					count := (n + size - 1) / size
					if sp.Count() != count {
						t.Fatalf("%d segments of %d bytes, want %d", sp.Count(), n, count)
					}
					for i := range count {
						w := s
						w.Payload = s.Payload[i*size : min(n, (i+1)*size)]
						w.ID += uint16(i)
						w.Seq += uint32(i * size)
						if i > 0 {
							w.Flags &^= 0x80
						}
						if i < count-1 {
							w.Flags &^= 0x09
						}
						want := w.Frame()
						got := make([]byte, sp.Len(i))
						sp.PutComplete(got, i)
						if !bytes.Equal(got, want) {
							t.Fatalf("six %v udp %v tags %d: segment %d of %d:\n% x\nwant\n% x", six, udp, tags, i, count, got[:80], want[:80])
						}
						// Left open, it becomes the same when it is completed.
						sp.PutPartial(got, i)
						l, _ := offload.Parse(got)
						if !offload.Complete(l.Partial(), got) || !bytes.Equal(got, want) {
							t.Fatalf("segment %d of %d, completed, differs", i, count)
						}
					}
				}
			}
		}
	}
}

func TestInvalidGSOPackets(t *testing.T) {
	tcp := packets.Spec{Payload: payload(3000)}
	h, b := gsoFrame(t, tcp, 1000, false)
	var s offload.Splitter
	if err := s.Reset(h, b); err != nil {
		t.Fatal(err)
	}
	try := func(what string, change func(h *offload.Header, b []byte) []byte) {
		h := h
		changed := change(&h, bytes.Clone(b))
		if err := s.Reset(h, changed); !errors.Is(err, offload.ErrGSO) {
			t.Errorf("%s: %v", what, err)
		}
	}
	try("no size", func(h *offload.Header, b []byte) []byte { h.Size = 0; return b })
	try("ordinary", func(h *offload.Header, b []byte) []byte { h.Kind = offload.None; return b })
	try("of IPv6", func(h *offload.Header, b []byte) []byte { h.Kind = offload.TCP6; return b })
	try("of UDP", func(h *offload.Header, b []byte) []byte { h.Kind = offload.UDP; return b })
	try("unknown kind", func(h *offload.Header, b []byte) []byte { h.Kind = 77; return b })
	try("too many segments", func(h *offload.Header, b []byte) []byte { h.Size = 1; return b })
	try("cut", func(h *offload.Header, b []byte) []byte { return b[:len(b)-1] })
	try("fragment", func(h *offload.Header, b []byte) []byte { b[14+6] |= 0x20; return b })
	try("ICMP", func(h *offload.Header, b []byte) []byte { b[14+9] = 1; return b })
}

// FuzzParse: no frame makes Parse, Split or Complete panic, and what Parse says
// lies within the frame.
func FuzzParse(f *testing.F) {
	for i := range 16 {
		s := packets.Spec{Six: i&1 != 0, UDP: i&2 != 0, Tags: i >> 2 & 1, Options: 8 * (i >> 3), Payload: payload(100)}
		h, b := gsoFrame(f, s, 30, false)
		var v [offload.HeaderLen]byte
		h.Put(v[:])
		f.Add(v[:], b)
		s.Fragment = 0x2000
		f.Add(v[:], s.Frame())
	}
	f.Fuzz(func(t *testing.T, v, b []byte) {
		h, err := offload.ParseHeader(v)
		if err != nil {
			return
		}
		var again [offload.HeaderLen]byte
		h.Put(again[:])
		if h2, _ := offload.ParseHeader(again[:]); h2 != h {
			t.Fatalf("%+v becomes %+v", h, h2)
		}
		offload.Complete(h, bytes.Clone(b))
		l, ok := offload.Parse(b)
		if !ok {
			return
		}
		if !(14 <= l.IP && l.IP < l.L4 && l.L4 < l.Payload && l.Payload <= l.End && l.End <= len(b)) {
			t.Fatalf("%+v in %d bytes", l, len(b))
		}
		var s offload.Splitter
		if s.Reset(h, b) != nil {
			return
		}
		total := 0
		for i := range s.Count() {
			seg := make([]byte, s.Len(i))
			s.PutComplete(seg, i)
			sl, ok := offload.Parse(seg)
			if !ok || sl.End != len(seg) || !sl.Valid(seg) || !sl.ValidIP(seg) || sl.Payload != l.Payload || i > 0 && sl.Payload == sl.End {
				t.Fatalf("segment %d of %d: %+v", i, s.Count(), sl)
			}
			if !bytes.Equal(seg[sl.Payload:], b[l.Payload+total:][:sl.End-sl.Payload]) {
				t.Fatalf("segment %d has another's payload", i)
			}
			total += sl.End - sl.Payload
		}
		if total != l.End-l.Payload {
			t.Fatalf("%d bytes of %d in segments", total, l.End-l.Payload)
		}
	})
}

func TestNoAllocation(t *testing.T) {
	h, b := gsoFrame(t, packets.Spec{Payload: payload(60000)}, 1324, false)
	var s offload.Splitter
	out := make([]byte, 2000)
	if n := testing.AllocsPerRun(100, func() {
		if err := s.Reset(h, b); err != nil {
			t.Error(err)
		}
		for i := range s.Count() {
			s.PutComplete(out, i)
			s.PutPartial(out, i)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkSplit(b *testing.B) {
	h, frame := gsoFrame(b, packets.Spec{Payload: payload(64000)}, 1324, false)
	out := make([]byte, 80000)
	for name, put := range map[string]func(*offload.Splitter, []byte, int){
		"partial": (*offload.Splitter).PutPartial, "complete": (*offload.Splitter).PutComplete,
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(64000)
			var s offload.Splitter
			for b.Loop() {
				_ = s.Reset(h, frame)
				for i := range s.Count() {
					put(&s, out[i*1400:], i)
				}
			}
		})
	}
}
