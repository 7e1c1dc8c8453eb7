package gro_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/router/gro"
	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/offload/packets"
)

// open replaces the checksum of a right TCP or UDP frame by the pseudo-header's
// sum.
func open(b []byte) ([]byte, bool) {
	l, ok := offload.Parse(b)
	if !ok || !l.Valid(b) {
		return b, false
	}
	b = bytes.Clone(b)
	binary.BigEndian.PutUint16(b[l.SumAt():], l.PseudoSum(b, l.End-l.L4))
	return b, true
}

// finish does to a frame what a receiving kernel would: it cuts it and fills in
// its checksums.
func finish(t testing.TB, h offload.Header, parts [][]byte, frames int) (out [][]byte) {
	b := bytes.Join(parts, nil)
	if h.Kind == offload.None {
		if h.NeedsSum && !offload.Complete(h, b) {
			t.Fatal("the header points out of the frame")
		}
		if frames != 1 {
			t.Fatalf("an ordinary frame of %d", frames)
		}
		return [][]byte{b}
	}
	var s offload.Splitter
	if err := s.Reset(h, b); err != nil {
		t.Fatalf("%+v: %v", h, err)
	}
	l := s.Layout()
	if s.Count() != frames || !l.ValidIP(b) || !h.NeedsSum || int(h.HeaderLen) != l.Payload {
		t.Fatalf("a GSO packet of %d frames is cut in %d; %+v", frames, s.Count(), h)
	}
	if got := binary.BigEndian.Uint16(b[l.SumAt():]); got != l.PseudoSum(b, l.End-l.L4) {
		t.Fatalf("the pseudo-header's sum is %04x", got)
	}
	for i := range s.Count() {
		seg := make([]byte, s.Len(i))
		s.PutComplete(seg, i)
		out = append(out, seg)
	}
	return out
}

// check joins frames and compares what a receiving kernel makes of them with
// what was put in: for each flow, together with all frames that are of none,
// the same frames in the same order.
func check(t testing.TB, c *gro.Coalescer, in [][]byte, leaveOpen func(i int) bool) (gsoPackets int) {
	t.Helper()
	var out [][]byte
	flush := func() {
		for i := range c.Len() {
			h, parts, n := c.Frame(i)
			if n > 1 {
				gsoPackets++
			}
			out = append(out, finish(t, h, parts, n)...)
		}
		c.Reset()
	}
	flows := map[string]bool{"": true}
	for i, b := range in {
		if c.Full() {
			flush()
		}
		partial := false
		add := bytes.Clone(b)
		if leaveOpen(i) {
			add, partial = open(add)
		}
		c.Add(add, partial)
		flows[packets.Flow(b)] = true
	}
	flush()
	for flow := range flows {
		var want, got [][]byte
		for _, b := range in {
			if f := packets.Flow(b); f == flow || f == "" {
				want = append(want, packets.Plain(b))
			}
		}
		for _, b := range out {
			if f := packets.Flow(b); f == flow || f == "" {
				got = append(got, packets.Plain(b))
			}
		}
		if len(got) != len(want) {
			t.Fatalf("flow %q: %d frames, want %d", flow, len(got), len(want))
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("flow %q, frame %d:\n% x\nwant\n% x", flow, i, head(got[i]), head(want[i]))
			}
		}
	}
	return gsoPackets
}

func head(b []byte) []byte { return b[:min(len(b), 90)] }

// TestRandomMixes compares the coalescing path with the plain one.
func TestRandomMixes(t *testing.T) {
	c := gro.New()
	gsoPackets := 0
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 1))
		in := packets.Mix(r, 400)
		how := r.IntN(3)
		func() {
			defer func() {
				if t.Failed() {
					t.Logf("seed %d", seed)
				}
			}()
			gsoPackets += check(t, c, in, func(int) bool { return how == 1 || how == 2 && r.IntN(2) == 0 })
		}()
	}
	if gsoPackets < 5000 {
		t.Errorf("only %d GSO packets in 400 mixes", gsoPackets)
	}
}

// TestMoreThanFits: a batch may be larger than a Coalescer.
func TestMoreThanFits(t *testing.T) {
	r := seed.Rand(t)
	check(t, gro.New(), packets.Mix(r, 3000), func(int) bool { return false })
}

// joined returns of how many frames each frame that comes out is made.
func joined(t *testing.T, c *gro.Coalescer, in ...packets.Spec) (n []int) {
	t.Helper()
	for _, s := range in {
		c.Add(s.Frame(), false)
	}
	for i := range c.Len() {
		h, parts, k := c.Frame(i)
		finish(t, h, parts, k)
		n = append(n, k)
	}
	c.Reset()
	return n
}

// TestRules has a pair of frames for each rule: the second continues the first,
// but for one change.
func TestRules(t *testing.T) {
	tcp := packets.Spec{TTL: 64, DF: true, ID: 7, Seq: 100, Ack: 1, Flags: 0x10, Window: 5, TCPOpts: 12, Stamp: 3, Payload: make([]byte, 500)}
	udp := packets.Spec{TTL: 64, UDP: true, ID: 7, Payload: make([]byte, 500)}
	for _, c := range []struct {
		what   string
		base   packets.Spec
		first  func(s *packets.Spec)
		second func(s *packets.Spec)
		join   bool
	}{
		{"the next segment", tcp, nil, nil, true},
		{"a shorter one", tcp, nil, func(s *packets.Spec) { s.Payload = s.Payload[:9] }, true},
		{"a longer one", tcp, nil, func(s *packets.Spec) { s.Payload = make([]byte, 501) }, false},
		{"no payload", tcp, nil, func(s *packets.Spec) { s.Payload = nil }, false},
		{"a gap", tcp, nil, func(s *packets.Spec) { s.Seq++ }, false},
		{"a repetition", tcp, nil, func(s *packets.Spec) { s.Seq -= 500 }, false},
		{"another acknowledgement", tcp, nil, func(s *packets.Spec) { s.Ack++ }, false},
		{"another window", tcp, nil, func(s *packets.Spec) { s.Window++ }, false},
		{"another timestamp", tcp, nil, func(s *packets.Spec) { s.Stamp++ }, false},
		{"fewer options", tcp, nil, func(s *packets.Spec) { s.TCPOpts = 0 }, false},
		{"an urgent pointer", tcp, nil, func(s *packets.Spec) { s.Urgent = 1 }, false},
		{"PSH on the second", tcp, nil, func(s *packets.Spec) { s.Flags |= 0x08 }, true},
		{"PSH on the first", tcp, func(s *packets.Spec) { s.Flags |= 0x08 }, nil, false},
		{"PSH on both", tcp, func(s *packets.Spec) { s.Flags |= 0x08 }, func(s *packets.Spec) { s.Flags |= 0x08 }, false},
		{"FIN on the second", tcp, nil, func(s *packets.Spec) { s.Flags |= 0x01 }, true},
		{"FIN on the first", tcp, func(s *packets.Spec) { s.Flags |= 0x01 }, nil, false},
		{"SYN on both", tcp, func(s *packets.Spec) { s.Flags = 2 }, func(s *packets.Spec) { s.Flags = 2 }, false},
		{"RST on the second", tcp, nil, func(s *packets.Spec) { s.Flags |= 4 }, false},
		{"URG on both", tcp, func(s *packets.Spec) { s.Flags |= 0x20 }, func(s *packets.Spec) { s.Flags |= 0x20 }, false},
		{"ECE on the second", tcp, nil, func(s *packets.Spec) { s.Flags |= 0x40 }, false},
		{"ECE on both", tcp, func(s *packets.Spec) { s.Flags |= 0x40 }, func(s *packets.Spec) { s.Flags |= 0x40 }, true},
		{"CWR on the first", tcp, func(s *packets.Spec) { s.Flags |= 0x80 }, nil, true},
		{"CWR on the second", tcp, nil, func(s *packets.Spec) { s.Flags |= 0x80 }, false},
		{"CE on the second", tcp, func(s *packets.Spec) { s.TOS = 2 }, func(s *packets.Spec) { s.TOS = 3 }, false},
		{"CE on both", tcp, func(s *packets.Spec) { s.TOS = 3 }, func(s *packets.Spec) { s.TOS = 3 }, true},
		{"another TTL", tcp, nil, func(s *packets.Spec) { s.TTL-- }, false},
		{"DF on one", tcp, nil, func(s *packets.Spec) { s.DF = false }, false},
		{"the same identification with DF", tcp, nil, func(s *packets.Spec) { s.ID = 7 }, true},
		{"the same identification without", tcp, func(s *packets.Spec) { s.DF = false }, func(s *packets.Spec) { s.DF, s.ID = false, 7 }, false},
		{"a jump of the identification", tcp, nil, func(s *packets.Spec) { s.ID++ }, false},
		{"IPv4 options", tcp, func(s *packets.Spec) { s.Options = 8 }, func(s *packets.Spec) { s.Options = 8 }, false},
		{"a wrong checksum on the first", tcp, func(s *packets.Spec) { s.BadSum = true }, nil, false},
		{"a wrong checksum on the second", tcp, nil, func(s *packets.Spec) { s.BadSum = true }, false},
		{"a wrong checksum of the IP header", tcp, nil, func(s *packets.Spec) { s.BadIPSum = true }, false},
		{"another flow", tcp, nil, func(s *packets.Spec) { s.Flow++ }, false},
		{"another VLAN", tcp, nil, func(s *packets.Spec) { s.Tags = 1 }, false},
		{"in a VLAN", tcp, func(s *packets.Spec) { s.Tags = 1 }, func(s *packets.Spec) { s.Tags = 1 }, true},
		{"a fragment", tcp, nil, func(s *packets.Spec) { s.DF, s.Fragment = false, 0x2000 }, false},
		{"padding", tcp, nil, func(s *packets.Spec) { s.Padding = 4 }, true},
		{"the next datagram", udp, nil, nil, true},
		{"a shorter datagram", udp, nil, func(s *packets.Spec) { s.Payload = s.Payload[:9] }, true},
		{"a longer datagram", udp, nil, func(s *packets.Spec) { s.Payload = make([]byte, 501) }, false},
		{"an empty datagram", udp, nil, func(s *packets.Spec) { s.Payload = nil }, false},
		{"no checksum", udp, nil, func(s *packets.Spec) { s.NoSum = true }, false},
		{"no checksum on both", udp, func(s *packets.Spec) { s.NoSum = true }, func(s *packets.Spec) { s.NoSum = true }, false},
		{"a wrong checksum of a datagram", udp, nil, func(s *packets.Spec) { s.BadSum = true }, false},
	} {
		for _, six := range []bool{false, true} {
			a := c.base
			a.Six = six
			if c.first != nil {
				c.first(&a)
			}
			b := a
			b.Flags, b.ID, b.Seq = c.base.Flags|a.Flags&^0x80&^0x08&^0x01, a.ID+1, a.Seq+uint32(len(a.Payload))
			if c.second != nil {
				c.second(&b)
			}
			join := c.join || six && b.Fragment == 0 && (a.DF != b.DF || a.ID != b.ID && b.ID != a.ID+1 || b.ID == a.ID || b.BadIPSum)
			want := "[1 1]"
			if join {
				want = "[2]"
			}
			if got := fmt.Sprint(joined(t, gro.New(), a, b)); got != want {
				t.Errorf("%s, IPv6 %v: came out as %s, want %s", c.what, six, got, want)
			}
		}
	}
}

// TestNothingOvertakes: what cannot be joined ends what its flow had, and a
// fragment, whose flow is not known, ends all.
func TestNothingOvertakes(t *testing.T) {
	seg := func(flow byte, i int) packets.Spec {
		return packets.Spec{TTL: 64, DF: true, Flow: flow, ID: uint16(i), Seq: uint32(i * 10), Flags: 0x10, Payload: make([]byte, 10)}
	}
	ack := seg(1, 9)
	ack.Payload = nil
	part := seg(9, 0)
	part.DF, part.Fragment = false, 0x2000
	c := gro.New()
	for _, v := range []struct {
		what string
		in   []packets.Spec
		want string
	}{
		{"two flows in turns", []packets.Spec{seg(1, 0), seg(2, 0), seg(1, 1), seg(2, 1), seg(1, 2)}, "[3 2]"},
		{"an acknowledgement between", []packets.Spec{seg(1, 0), seg(2, 0), ack, seg(1, 1), seg(2, 1), seg(1, 2)}, "[1 2 1 2]"},
		{"a fragment between", []packets.Spec{seg(1, 0), seg(2, 0), part, seg(1, 1), seg(2, 1), seg(1, 2)}, "[1 1 1 2 1]"},
	} {
		if got := fmt.Sprint(joined(t, c, v.in...)); got != v.want {
			t.Errorf("%s: came out as %s, want %s", v.what, got, v.want)
		}
	}
}

// TestLimits: a GSO packet is no larger than an IP packet can be, nor has it
// more parts than the kernel takes.
func TestLimits(t *testing.T) {
	stream := func(udp bool, n, size int) (in []packets.Spec) {
		for i := range n {
			in = append(in, packets.Spec{UDP: udp, TTL: 64, DF: true, ID: uint16(i), Seq: uint32(i * size), Flags: 0x10, Payload: make([]byte, size)})
		}
		return in
	}
	for _, v := range []struct {
		in   []packets.Spec
		want string
	}{
		{stream(false, 100, 1324), "[49 49 2]"},
		{stream(false, 300, 1), "[256 44]"},
		{stream(true, 100, 64), "[64 36]"},
	} {
		if got := fmt.Sprint(joined(t, gro.New(), v.in...)); got != v.want {
			t.Errorf("came out as %s, want %s", got, v.want)
		}
	}
	off := gro.New()
	off.TCP, off.UDP = false, false
	if got := joined(t, off, stream(false, 3, 100)...); len(got) != 3 {
		t.Errorf("switched off, it makes %v", got)
	}
	off.TCP = true
	if got := joined(t, off, append(stream(false, 3, 100), stream(true, 3, 100)...)...); len(got) != 4 {
		t.Errorf("switched off for datagrams, it makes %v", got)
	}
}

// FuzzCoalescer: whatever the frames are, the same come out. The first byte of
// each says its length and how it is changed from a random mix's.
func FuzzCoalescer(f *testing.F) {
	f.Add(uint64(1), []byte{})
	f.Add(uint64(2), []byte{0, 14, 255, 1, 23, 3, 9, 54, 16})
	f.Fuzz(func(t *testing.T, seed uint64, changes []byte) {
		r := rand.New(rand.NewPCG(seed, 2))
		in := packets.Mix(r, 60)
		for ; len(changes) >= 3; changes = changes[3:] {
			if b := in[int(changes[0])%len(in)]; len(b) > 0 {
				b[int(changes[1])%len(b)] ^= changes[2]
			}
		}
		check(t, gro.New(), in, func(i int) bool { return seed>>(i%64)&1 != 0 })
	})
}

func TestNoAllocation(t *testing.T) {
	c := gro.New()
	in := packets.Mix(rand.New(rand.NewPCG(3, 3)), 500)
	if n := testing.AllocsPerRun(50, func() {
		for _, b := range in {
			c.Add(b, false)
		}
		for i := range c.Len() {
			c.Frame(i)
		}
		c.Reset()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkCoalesce(b *testing.B) {
	const n, size = 48, 1324
	for _, partial := range []bool{true, false} {
		b.Run(fmt.Sprintf("open=%v", partial), func(b *testing.B) {
			var in [][]byte
			for i := range n {
				in = append(in, packets.Spec{TTL: 64, DF: true, ID: uint16(i), Seq: uint32(i * size), Flags: 0x10, TCPOpts: 12, Payload: make([]byte, size)}.Frame())
			}
			c := gro.New()
			b.SetBytes(n * size)
			for b.Loop() {
				first := bytes.Clone(in[0])
				c.Add(first, partial)
				for _, f := range in[1:] {
					c.Add(f, partial)
				}
				for i := range c.Len() {
					c.Frame(i)
				}
				c.Reset()
			}
		})
	}
}
