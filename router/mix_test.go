package router

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/gro"
	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/offload/packets"
	"github.com/weft-net/weft/router/seal"
	"github.com/weft-net/weft/router/tap"
	"github.com/weft-net/weft/router/wire"
)

// asHanded makes frames look as a kernel with offloads might pass them: some as
// they are, some with an partial checksums, and of those that can be joined some as
// GSO packets.
func asHanded(r *rand.Rand, in [][]byte) (out []memFrame) {
	c := gro.New()
	flush := func() {
		for i := range c.Len() {
			h, parts, _ := c.Frame(i)
			out = append(out, memFrame{h, bytes.Join(parts, nil)})
		}
		c.Reset()
	}
	for _, b := range in {
		b := bytes.Clone(b)
		if r.IntN(40) == 0 {
			flush()
		}
		l, ok := offload.Parse(b)
		partial := ok && r.IntN(2) == 0 && l.Valid(b) && binary.BigEndian.Uint16(b[l.SumAt():]) != 0
		if partial {
			binary.BigEndian.PutUint16(b[l.SumAt():], l.PseudoSum(b, l.End-l.L4))
		}
		c.Add(b, partial)
		if c.Full() {
			flush()
		}
	}
	flush()
	return out
}

// TestRandomMixes sends streams with all that happens to streams from several
// queues of one host at once over a relay to another, in every form and to
// every kind of TAP, and compares the result with what a plain wire would
// have given: of each flow the same frames, byte for byte, in the same order.
func TestRandomMixes(t *testing.T) {
	all := tap.Offloads{Checksum: true, TCP: true, UDP: true}
	const queues = 4
	for _, can := range []tap.Offloads{all, {Checksum: true, TCP: true}, {Checksum: true}, {}} {
		t.Run(can.String(), func(t *testing.T) {
			inMeshWith(t, meshOptions{mtu: 1500, underlayMTU: 2000, queues: queues, cans: []tap.Offloads{all, {}, can}}, names(3), line(3), func(m *mesh) {
				m.meet()
				gsoPackets := 0
				for seed := range uint64(6) {
					r := rand.New(rand.NewPCG(seed, 9))
					var in [queues][][]byte
					for q := range in {
						for _, b := range packets.Mix(r, 250) {
							if _, at, ok := ethernet.Payload(b); ok && at < len(b) {
								// Each queue has a container of its own.
								dst, src := macOf(2), macOf(100+q)
								copy(b, dst[:])
								copy(b[6:], src[:])
								in[q] = append(in[q], b)
							}
						}
					}
					for q, tap := range m.nodes[0].queues() {
						for _, f := range asHanded(r, in[q]) {
							if f.h.Kind != offload.None {
								gsoPackets++
							}
							tap.in <- f
						}
					}
					synctest.Wait()
					out := m.got()[2]
					for q := range in {
						src := macOf(100 + q)
						var of [][]byte
						for _, b := range out {
							if bytes.Equal(b[6:12], src[:]) {
								of = append(of, b)
							}
						}
						sameFlows(t, fmt.Sprintf("seed %d, queue %d", seed, q), of, in[q])
					}
					if t.Failed() {
						return
					}
				}
				if gsoPackets < 300 || (m.nodes[2].tap.gsoPackets > 300) != can.TCP {
					t.Errorf("%d GSO packets went in and %d came out", gsoPackets, m.nodes[2].tap.gsoPackets)
				}
				for i, n := range m.nodes {
					for _, l := range n.Status().Links {
						if delete(l.Drops, DropLinkDown.String()); len(l.Drops) > 0 {
							t.Errorf("node %d: %+v", i, l)
						}
					}
				}
			})
		})
	}
}

// sameFlows compares frames flow by flow. Those that are of no flow are taken
// with each, as they might be parts of it.
func sameFlows(t *testing.T, what string, got, want [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d frames came out, want %d", what, len(got), len(want))
	}
	split := func(all [][]byte) map[string][][]byte {
		m := map[string][][]byte{"": nil}
		for _, b := range all {
			m[packets.Flow(b)] = nil
		}
		for _, b := range all {
			p, flow := packets.Plain(b), packets.Flow(b)
			for f := range m {
				if f == flow || flow == "" {
					m[f] = append(m[f], p)
				}
			}
		}
		return m
	}
	g, w := split(got), split(want)
	for flow := range w {
		for i := range min(len(g[flow]), len(w[flow])) {
			if !bytes.Equal(g[flow][i], w[flow][i]) {
				t.Errorf("%s, flow %q: frame %d of %d is\n% x\nwant\n% x", what, flow, i, len(w[flow]),
					g[flow][i][:min(90, len(g[flow][i]))], w[flow][i][:min(90, len(w[flow][i]))])
				return
			}
		}
	}
}

// FuzzGSOPacketFromContainer: whatever a frame is and whatever its header asks
// for, nothing panics and no packet is larger than the link takes.
func FuzzGSOPacketFromContainer(f *testing.F) {
	for _, s := range kinds {
		s.Payload = make([]byte, 5000)
		m, _ := gsoPacket(f, macOf(0), macOf(2), s, 1000)
		var h [offload.HeaderLen]byte
		m.h.Put(h[:])
		f.Add(h[:], m.b)
		m.h.Size = 1
		m.h.Put(h[:])
		f.Add(h[:], m.b)
		m.h.Kind, m.h.Size = offload.None, 0
		m.h.Put(h[:])
		f.Add(h[:], m.b[:200])
	}
	s := newStill(f, seal.AES256GCM)
	s.macs.Learn(macOf(2), nameOf(2), 0)
	buf := make([]byte, tap.Headroom+maxGSO+tap.Tailroom)
	f.Fuzz(func(t *testing.T, v, b []byte) {
		h, err := offload.ParseHeader(v)
		if err != nil || len(b) > maxGSO {
			return
		}
		end := tap.Headroom + copy(buf[tap.Headroom:], b)
		s.conn.largest = 0
		s.fromTAP(s.ln, &tap.Frame{Header: h, Buf: buf[:end]})
		s.ln.flush()
		if n := s.conn.largest; n > 1444+wire.Overhead {
			t.Fatalf("a packet of %d bytes on a link for %d", n, 1444+wire.Overhead)
		}
		if s.ln.used != 0 || len(s.ln.out) != 0 || s.ln.batch.link != nil || s.ln.deliver.Len() != 0 {
			t.Fatal("the lane is not empty after flush")
		}
	})
}
