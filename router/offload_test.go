package router

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/udp"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/offload/packets"
	"github.com/weft-net/weft/router/seal"
	"github.com/weft-net/weft/router/tap"
	"github.com/weft-net/weft/router/wire"
)

// gsoPacket makes a GSO packet from node src to node dst, and the segments it
// stands for.
func gsoPacket(t testing.TB, src, dst ethernet.MAC, s packets.Spec, size int) (f memFrame, segs [][]byte) {
	b := s.Frame()
	copy(b, dst[:])
	copy(b[6:], src[:])
	l, ok := offload.Parse(b)
	if !ok {
		t.Fatalf("%+v is not parsed", s)
	}
	h := l.Partial()
	h.Size, h.HeaderLen = uint16(size), uint16(l.Payload)
	switch {
	case s.UDP:
		h.Kind = offload.UDP
	case s.Six:
		h.Kind = offload.TCP6
	default:
		h.Kind = offload.TCP4
	}
	binary.BigEndian.PutUint16(b[l.SumAt():], l.PseudoSum(b, l.End-l.L4))
	var sp offload.Splitter
	if err := sp.Reset(h, b); err != nil {
		t.Fatal(err)
	}
	for i := range sp.Count() {
		seg := make([]byte, sp.Len(i))
		sp.PutComplete(seg, i)
		segs = append(segs, seg)
	}
	return memFrame{h, b}, segs
}

// meet teaches every node of a mesh where each container is.
func (m *mesh) meet() {
	for i := range m.nodes {
		m.say(i, frameOf(ethernet.Broadcast, macOf(i), 60, 1))
	}
	m.got()
}

// sameFrames compares frames, and says little.
func sameFrames(t *testing.T, what string, got, want [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d frames came out, want %d", what, len(got), len(want))
		return
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Errorf("%s: frame %d of %d is not what was sent:\n% x\n% x", what, i, len(want), got[i][:60], want[i][:60])
			return
		}
	}
}

var kinds = []packets.Spec{
	{TTL: 64, DF: true, Flags: 0x18, Window: 9, TCPOpts: 12}, {Six: true, TTL: 64, Flags: 0x10, TCPOpts: 12},
	{UDP: true, TTL: 64, DF: true}, {UDP: true, Six: true, TTL: 64},
}

// TestGSOPackets: they come out as they went in, whatever the far end can and
// over a relay that does not need them.
func TestGSOPackets(t *testing.T) {
	for _, can := range []tap.Offloads{{Checksum: true, TCP: true, UDP: true}, {Checksum: true, TCP: true}, {Checksum: true}, {}} {
		inMeshOf(t, names(3), line(3), []tap.Offloads{{Checksum: true, TCP: true, UDP: true}, {}, can}, func(m *mesh) {
			m.meet()
			for i, s := range kinds {
				for _, size := range []int{40, 1300} {
					s.Payload = make([]byte, 16*size+5)
					for i := range s.Payload {
						s.Payload[i] = byte(i)
					}
					f, want := gsoPacket(t, macOf(0), macOf(2), s, size)
					before := m.nodes[2].tap.gsoPackets
					m.nodes[0].tap.in <- f
					synctest.Wait()
					what := fmt.Sprintf("kind %d, size %d, to one with %s", i, size, can)
					got := m.got()
					sameFrames(t, what, got[2], want)
					if len(got[0])+len(got[1]) > 0 {
						t.Errorf("%s: others hear of it", what)
					}
					if whole, able := m.nodes[2].tap.gsoPackets-before, s.UDP && can.UDP || !s.UDP && can.TCP; (whole > 0) != able {
						t.Errorf("%s: %d GSO packets came out", what, whole)
					}
					// To all: for both, once.
					f, want = gsoPacket(t, macOf(0), ethernet.Broadcast, s, size)
					m.nodes[0].tap.in <- f
					synctest.Wait()
					got = m.got()
					sameFrames(t, what+", to all", got[1], want)
					sameFrames(t, what+", to all", got[2], want)
				}
			}
		})
	}
}

// TestGSOPacketTooBig: its sender learns once by how much one segment is too
// much; without DF, and to groups, each segment goes in parts.
func TestGSOPacketTooBig(t *testing.T) {
	inMesh(t, names(3), line(3), func(m *mesh) {
		m.meet()
		const size, count = 1500, 10
		for i, s := range kinds {
			s.Payload = make([]byte, count*size)
			f, _ := gsoPacket(t, macOf(0), macOf(2), s, size)
			before := m.nodes[0].dropped(DropTooBig)
			m.nodes[0].tap.in <- f
			synctest.Wait()
			got := m.got()
			if len(got[2]) != 0 || len(got[0]) != 1 {
				t.Fatalf("kind %d: %d frames came out, and %d answers", i, len(got[2]), len(got[0]))
			}
			ip, _, ok := ethernet.ParseIP(got[0][0])
			if want := map[int]uint8{4: 1, 6: 58}[ip.Version]; !ok || ip.Protocol != want {
				t.Errorf("kind %d: the answer is % x", i, got[0][0])
			}
			if n := m.nodes[0].dropped(DropTooBig) - before; n != count {
				t.Errorf("kind %d: %d drops are counted", i, n)
			}

			f, want := gsoPacket(t, macOf(0), ethernet.Broadcast, s, size)
			m.nodes[0].tap.in <- f
			synctest.Wait()
			sameFrames(t, fmt.Sprintf("kind %d to all", i), m.got()[2], want)
			if s.Six {
				continue
			}
			s.DF = false
			f, want = gsoPacket(t, macOf(0), macOf(2), s, size)
			m.nodes[0].tap.in <- f
			synctest.Wait()
			sameFrames(t, fmt.Sprintf("kind %d without DF", i), m.got()[2], want)
		}
	})
}

// TestLostPacketsCostTheirSegmentsOnly sends streams over a relay while one
// packet in a hundred is lost and others overtake each other.
func TestLostPacketsCostTheirSegmentsOnly(t *testing.T) {
	inMesh(t, names(3), line(3), func(m *mesh) {
		m.meet()
		m.f.mu.Lock()
		m.f.loss, m.f.swap = 0.01, 0.05
		m.f.mu.Unlock()
		const size, count, gsoPackets = 1300, 40, 100
		s := kinds[0]
		sent := map[string]bool{}
		var got [][]byte
		for i := range gsoPackets {
			s.Payload = bytes.Repeat([]byte{byte(i)}, size*count)
			f, segs := gsoPacket(t, macOf(0), macOf(2), s, size)
			for _, b := range segs {
				sent[string(b)] = true
			}
			m.nodes[0].tap.in <- f
			synctest.Wait()
			got = append(got, m.got()[2]...)
			s.Seq += uint32(len(s.Payload))
			s.ID += count
		}
		for _, b := range got {
			if !sent[string(b)] {
				t.Fatal("a frame came out that was not sent, or twice")
			}
			delete(sent, string(b))
		}
		m.f.mu.Lock()
		defer m.f.mu.Unlock()
		lost := m.f.lost[wire.Partial]
		// One may still be held back on each link.
		if n := len(sent); n < lost || n > lost+2 || lost < 40 {
			t.Errorf("%d packets of %d were lost and %d frames are missing", lost, gsoPackets*count, n)
		}
		if m.nodes[2].tap.gsoPackets < gsoPackets {
			t.Errorf("only %d GSO packets came out", m.nodes[2].tap.gsoPackets)
		}
	})
}

// TestHostRefusesGSOPackets: some kernels say they take GSO packets and then
// do not. Nothing is lost by that, and they are not bothered again.
func TestHostRefusesGSOPackets(t *testing.T) {
	for _, errno := range []error{unix.EINVAL, unix.EIO} {
		inMesh(t, names(2), line(2), func(m *mesh) {
			m.meet()
			q := m.nodes[1].tap
			for _, kind := range []offload.Kind{offload.TCP4, offload.UDP} {
				q.mu.Lock()
				q.no = map[offload.Kind]error{kind: errno}
				q.mu.Unlock()
				for i, s := range kinds {
					if s.Six {
						continue
					}
					s.Payload = make([]byte, 20*1000)
					for range 3 {
						f, want := gsoPacket(t, macOf(0), macOf(1), s, 1000)
						m.nodes[0].tap.in <- f
						synctest.Wait()
						sameFrames(t, fmt.Sprintf("kind %d, %s refused with %v", i, kind, errno), m.got()[1], want)
					}
				}
				if s := m.nodes[1].Status(); !strings.Contains(s.TAPOffloads, "no "+kind.String()+" GSO packets") || s.Drops["tap"] != 0 {
					t.Errorf("%s refused: %+v", kind, s)
				}
			}
			if q.gsoPackets < 3 { // more, where a batch ended in the middle of one
				t.Errorf("%d GSO packets came out, want at least the 3 of datagrams before those were refused", q.gsoPackets)
			}
		})
	}
}

// TestFullLinksStayUp: a link that is full of GSO packets renews its keys, and
// nothing is lost by that.
func TestFullLinksStayUp(t *testing.T) {
	inMesh(t, names(2), line(2), func(m *mesh) {
		m.meet()
		s := kinds[0]
		s.Payload = make([]byte, 40*1300)
		f, segs := gsoPacket(t, macOf(0), macOf(1), s, 1300)
		for range 300 { // five minutes, so two renewals
			for range 20 {
				m.nodes[0].tap.in <- f
			}
			synctest.Wait()
			if got := m.got()[1]; len(got) != 20*len(segs) {
				t.Fatalf("%d frames came out of %d", len(got), 20*len(segs))
			}
			time.Sleep(time.Second)
		}
		if s := m.nodes[0].Status(); s.LinksLost != 0 || s.Links[0].Drops != nil {
			t.Errorf("%+v", s)
		}
	})
}

// gsoPaths are the paths of bulk data through the router that must cost no
// allocation.
func (s *still) gsoPaths(t testing.TB) map[string]func() {
	s.macs.Learn(macOf(1), nameOf(1), 0)
	spec := kinds[0]
	spec.Payload = make([]byte, 48*1300)
	f, _ := gsoPacket(t, macOf(0), macOf(1), spec, 1300)
	buf := make([]byte, tap.Headroom+len(f.b)+tap.Tailroom)
	_, back := gsoPacket(t, macOf(1), macOf(0), spec, 1300)
	msgs := make([]udp.Message, len(back))
	for i := range msgs {
		msgs[i].Buf = make([]byte, 2000)
		back[i] = body(wire.Head{Kind: wire.Direct}, back[i])
	}
	receive := func(typ wire.Type) func() {
		return func() {
			for i, b := range back {
				s.packet(t, &msgs[i], typ, b)
			}
			for i := range msgs {
				s.fromUDP(s.ln, &msgs[i])
			}
			s.ln.flush()
		}
	}
	return map[string]func(){
		"to a neighbour": func() {
			copy(buf[tap.Headroom:], f.b)
			s.fromTAP(s.ln, &tap.Frame{Header: f.h, Buf: buf[:tap.Headroom+len(f.b)]})
			s.ln.flush()
		},
		"from a neighbour":               receive(wire.Data),
		"from a neighbour with offloads": receive(wire.Partial),
	}
}

func TestNoAllocationForBulk(t *testing.T) {
	s := newStill(t, seal.AES256GCM)
	for what, f := range s.gsoPaths(t) {
		f()
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", what, n)
		}
	}
	if s.Status().Drops != nil || s.describe(s.link).Drops != nil || s.tap.frames != 204 {
		t.Errorf("%d frames came out, drops %v, %v", s.tap.frames, s.Status().Drops, s.describe(s.link).Drops)
	}
}

// BenchmarkSuperPath measures the work on a GSO packet of 62 KB without the
// kernel's. "From" includes sealing the packets.
func BenchmarkGSOPath(b *testing.B) {
	s := newStill(b, seal.AES256GCM)
	for what, f := range s.gsoPaths(b) {
		b.Run(what, func(b *testing.B) {
			b.SetBytes(48 * 1300)
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		})
	}
}
