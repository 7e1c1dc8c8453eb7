package router

import (
	"context"
	"maps"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/udp"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/link"
	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/seal"
	"github.com/weft-net/weft/router/tap"
	"github.com/weft-net/weft/router/wire"
)

// still is a router whose lanes are driven by the test: no goroutine, and the
// underlay and the TAP only count. A link to peer 2 is up, and peer 3 is
// behind it; packets from peer 2 are made by from.
type still struct {
	*Router
	ln   *lane
	link *sleeve
	from *seal.Tx
	non  seal.Nonce
	tap  *sink
	conn *wireTap
}

// sink is a tap.Queue that counts.
type sink struct{ frames, bytes int }

func (s *sink) NewReader() tap.Reader           { return s }
func (s *sink) NewWriter() tap.Writer           { return s }
func (s *sink) Offloads() tap.Offloads          { return tap.Offloads{Checksum: true, TCP: true, UDP: true} }
func (s *sink) ReadBatch() ([]tap.Frame, error) { return nil, os.ErrClosed }
func (s *sink) Close() error                    { return nil }
func (s *sink) Write(_ offload.Header, p [][]byte) error {
	s.frames++
	for _, b := range p {
		s.bytes += len(b)
	}
	return nil
}

// wireTap is a udp.Conn that keeps the last packet.
type wireTap struct {
	packets int
	largest int // bytes of a packet
	last    []byte
}

func (c *wireTap) NewReader(int) udp.Reader          { return c }
func (c *wireTap) NewWriter(int) udp.Writer          { return c }
func (c *wireTap) NewSingleWriter(int) udp.Writer    { return c }
func (c *wireTap) LocalAddr() netip.AddrPort         { return netip.AddrPort{} }
func (c *wireTap) Close() error                      { return nil }
func (c *wireTap) ReadBatch() ([]udp.Message, error) { return nil, os.ErrClosed }
func (c *wireTap) WriteBatch(m []udp.Message) (n int, _ error) {
	for i := range m {
		c.last = append(c.last[:0], m[i].Buf[:m[i].N]...)
		c.largest = max(c.largest, m[i].N)
	}
	c.packets += len(m)
	return len(m), nil
}

type mute struct{}

func (mute) Self() peer.Name                        { return nameOf(0) }
func (mute) Send(peer.Name, []byte) error           { return nil }
func (mute) Doubt(peer.Name)                        {}
func (mute) SetLink(peer.Name, bool, time.Duration) {}
func (mute) Want(peer.Name, bool)                   {}

func newStill(t testing.TB, suite seal.Suite) *still {
	s := &still{tap: &sink{}, conn: &wireTap{}}
	r, err := New(Config{MTU: 1376, Conn: s.conn, Queues: []tap.Queue{s.tap}}, mute{})
	if err != nil {
		t.Fatal(err)
	}
	s.Router = r
	r.ctl = r.newControlLane()
	r.neighbourUp(Neighbour{Name: nameOf(1), Addr: netip.MustParseAddrPort("192.0.2.2:6783")})
	s.link = r.links[nameOf(1)]
	key := seal.Key{1}
	tx, err := seal.NewTx(suite, key, 5, r.lanes)
	if err != nil {
		t.Fatal(err)
	}
	rx, err := seal.NewRx(suite, key)
	if err != nil {
		t.Fatal(err)
	}
	if s.from, err = seal.NewTx(suite, key, 5, 1); err != nil {
		t.Fatal(err)
	}
	r.step(s.link, []link.Effect{link.UseTx{Tx: tx}, link.InstallRx{Index: 5, Rx: rx}})
	s.link.maxBody.Store(1444)
	ids := map[uint32]peer.Name{}
	for i := range 4 {
		ids[nameOf(i).ID()] = nameOf(i)
	}
	r.setRoutes(&topology.Routes{Self: nameOf(0), ByID: ids,
		Unicast:   map[peer.Name]peer.Name{nameOf(1): nameOf(1), nameOf(2): nameOf(1)},
		Broadcast: map[peer.Name][]peer.Name{nameOf(0): {nameOf(1)}, nameOf(2): {nameOf(1)}},
		From:      map[peer.Name][]peer.Name{nameOf(1): {nameOf(1)}, nameOf(2): {nameOf(1)}},
		ByShortID: map[uint16]peer.Name{10: nameOf(0), 11: nameOf(1), 12: nameOf(2), 13: nameOf(3)}})
	s.ln = r.newLane(1, s.tap)
	return s
}

// packet seals a body as peer 2 would, in place of m.
func (s *still) packet(t testing.TB, m *udp.Message, typ wire.Type, body []byte) {
	b := append(m.Buf[:wire.HeaderLen], body...)
	p, err := s.from.Seal(typ, 0, b, &s.non)
	if err != nil {
		t.Fatal(err)
	}
	m.N, m.Addr = len(p), netip.MustParseAddrPort("192.0.2.2:6783")
}

func body(h wire.Head, frame []byte) []byte {
	b := make([]byte, h.Len())
	h.Put(b)
	return append(b, frame...)
}

// send returns a function that carries one frame from the TAP to the link.
func (s *still) send(dst ethernet.MAC, size int) func() {
	buf := make([]byte, tap.Headroom+size+tap.Tailroom)
	b := frameOf(dst, macOf(0), size, 1)
	return func() {
		copy(buf[tap.Headroom:], b)
		s.fromTAP(s.ln, &tap.Frame{Buf: buf[:tap.Headroom+size]})
		s.ln.flush()
	}
}

// transit returns a function that carries one frame that the kernel hands over, with
// this metadata header, from the TAP to the link.
func (s *still) transit(m kernel.Metadata, dst, src ethernet.MAC, size int) func() {
	b := append(kernel.AppendMetadata(nil, m), frameOf(dst, src, size, 1)...)
	buf := make([]byte, tap.Headroom+len(b)+tap.Tailroom)
	return func() {
		s.ln.metadata = true
		copy(buf[tap.Headroom:], b)
		s.fromTAP(s.ln, &tap.Frame{Buf: buf[:tap.Headroom+len(b)]})
		s.ln.flush()
		s.ln.metadata = false
	}
}

// receive returns a function that carries one packet from the link inwards.
func (s *still) receive(t testing.TB, body []byte) func() {
	m := &udp.Message{Buf: make([]byte, maxPacket)}
	return func() {
		s.packet(t, m, wire.Data, body)
		s.fromUDP(s.ln, m)
		s.ln.flush()
	}
}

// paths are the ways of a frame through the router that must cost no
// allocation.
func (s *still) paths(t testing.TB, size int) map[string]func() {
	s.macs.Learn(macOf(1), nameOf(1), 0)
	s.macs.Learn(macOf(2), nameOf(2), 0)
	in := body(wire.Head{Kind: wire.Direct}, frameOf(macOf(0), macOf(1), size, 1))
	through := body(wire.Head{Kind: wire.Routed, Hops: 9, SrcID: nameOf(1).ID(), DstID: nameOf(2).ID()}, frameOf(macOf(2), macOf(1), size, 1))
	return map[string]func(){
		"to a neighbour":    s.send(macOf(1), size),
		"to a peer behind":  s.send(macOf(2), size),
		"to all":            s.send(ethernet.Broadcast, size),
		"from a neighbour":  s.receive(t, in),
		"between two peers": s.receive(t, through),
		"from the kernel":   s.transit(kernel.Metadata{Op: kernel.MetadataRelay, Src: 13, Dst: 12, TTL: 9}, macOf(2), macOf(3), size),
	}
}

// A frame that the kernel could not forward goes by sleeve to the next hop, or is
// counted.
func TestFramesOfOtherPeersFromTheKernel(t *testing.T) {
	for name, c := range map[string]struct {
		header  kernel.Metadata
		src     ethernet.MAC
		packets int
		drop    map[string]uint64
		learned bool
	}{
		"to a neighbour":       {kernel.Metadata{Op: kernel.MetadataRelay, Src: 13, Dst: 11, TTL: 9}, macOf(3), 1, nil, true},
		"to a peer behind":     {kernel.Metadata{Op: kernel.MetadataRelay, Src: 13, Dst: 12, TTL: 9}, macOf(3), 1, nil, true},
		"to this host":         {kernel.Metadata{Op: kernel.MetadataRelay, Src: 13, Dst: 10, TTL: 9}, macOf(3), 0, nil, true},
		"crossed too many":     {kernel.Metadata{Op: kernel.MetadataRelay, Src: 13, Dst: 12, TTL: 0}, macOf(3), 0, map[string]uint64{"hops": 1}, true},
		"to a peer not routed": {kernel.Metadata{Op: kernel.MetadataRelay, Src: 11, Dst: 13, TTL: 9}, macOf(3), 0, map[string]uint64{"no_route": 1}, true},
		"to nobody":            {kernel.Metadata{Op: kernel.MetadataRelay, Src: 13, Dst: 99, TTL: 9}, macOf(3), 0, map[string]uint64{"unknown_peer": 1}, false},
		"from this host":       {kernel.Metadata{Op: kernel.MetadataRelay, Src: 10, Dst: 12, TTL: 9}, macOf(3), 0, map[string]uint64{"unknown_peer": 1}, false},
		"group as source":      {kernel.Metadata{Op: kernel.MetadataRelay, Src: 13, Dst: 12, TTL: 9}, ethernet.Broadcast, 0, map[string]uint64{"bad_source": 1}, false},
		"echo that is none":    {kernel.Metadata{Op: kernel.MetadataEcho}, macOf(3), 0, map[string]uint64{"malformed": 1}, false},
		"unknown operation":    {kernel.Metadata{Op: 77}, macOf(3), 0, map[string]uint64{"malformed": 1}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStill(t, seal.AES256GCM)
			s.transit(c.header, macOf(2), c.src, 300)()
			if st := s.Status(); s.conn.packets != c.packets || !maps.Equal(st.Drops, c.drop) || st.TAPIn != 0 {
				t.Errorf("%d packets sent, drops %v, %d frames of containers", s.conn.packets, st.Drops, st.TAPIn)
			}
			if _, ok := s.macs.Lookup(c.src, 0); ok != c.learned {
				t.Errorf("the source is learned: %v", ok)
			}
		})
	}
}

func TestNoAllocation(t *testing.T) {
	for _, suite := range []seal.Suite{seal.AES256GCM, seal.ChaCha20Poly1305} {
		for _, size := range []int{64, 1390} {
			s := newStill(t, suite)
			for what, f := range s.paths(t, size) {
				f()
				if n := testing.AllocsPerRun(200, f); n != 0 {
					t.Errorf("%s, %d bytes, %s: %v allocations", what, size, suite, n)
				}
			}
			if s.tap.frames < 200 || s.conn.packets < 800 || s.Status().Drops != nil || s.describe(s.link).Drops != nil {
				t.Errorf("%d frames and %d packets came out; drops %v, %v", s.tap.frames, s.conn.packets, s.Status().Drops, s.describe(s.link).Drops)
			}
		}
	}
}

// FuzzBodyFromPeer: whatever a neighbour with a key sends, nothing panics, and
// what comes out for the host is no longer than what came in.
func FuzzBodyFromPeer(f *testing.F) {
	fr := frameOf(macOf(0), macOf(1), 60, 1)
	f.Add(uint8(wire.Data), body(wire.Head{Kind: wire.Direct}, fr))
	f.Add(uint8(wire.Data), body(wire.Head{Kind: wire.Routed, Hops: 3, SrcID: nameOf(2).ID(), DstID: wire.EveryID}, fr))
	f.Add(uint8(wire.Data), body(wire.Head{Kind: wire.Routed, SrcID: nameOf(1).ID(), DstID: nameOf(2).ID()}, fr))
	f.Add(uint8(wire.Data), body(wire.Head{Kind: wire.RoutedLong, Hops: 1, Src: nameOf(1), Dst: nameOf(2)}, ipv4(macOf(2), macOf(1), 1460, 0x40)))
	f.Add(uint8(wire.Batch), append([]byte{0, 61}, body(wire.Head{Kind: wire.Direct}, fr)...))
	f.Add(uint8(wire.Fragment), []byte{0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0x20, 1})
	f.Add(uint8(wire.Probe), []byte{0, 0, 0, 0, 1, 5, 0xdc})
	f.Add(uint8(5), []byte{1})
	f.Add(uint8(wire.Data), body(wire.Head{Kind: wire.Routed, Sealed: true, Hops: 3, SrcID: nameOf(1).ID(), DstID: nameOf(2).ID()}, make([]byte, 1400)))
	f.Add(uint8(wire.Data), body(wire.Head{Kind: wire.RoutedLong, Sealed: true, Src: nameOf(1), Dst: nameOf(0)}, make([]byte, 40)))
	s := newStill(f, seal.AES256GCM)
	m := &udp.Message{Buf: make([]byte, maxPacket)}
	f.Fuzz(func(t *testing.T, typ uint8, b []byte) {
		if len(b) > 60000 {
			return
		}
		s.tap.bytes = 0
		s.packet(t, m, wire.Type(typ), b)
		s.fromUDP(s.ln, m)
		s.ln.flush()
		if s.tap.bytes > wire.MaxTotal || s.tap.bytes > len(b) && wire.Type(typ) != wire.Fragment {
			t.Fatalf("%d bytes gave %d for the host", len(b), s.tap.bytes)
		}
		if s.ln.used != 0 || len(s.ln.out) != 0 || s.ln.batch.link != nil || s.ln.deliver.Len() != 0 {
			t.Fatal("the lane is not empty after flush")
		}
		for len(s.events) > 0 {
			s.handle(<-s.events)
		}
	})
}

// FuzzSealedFromPeer: nor does whatever a peer sends that other peers relay, sealed under
// its key or not.
func FuzzSealedFromPeer(f *testing.F) {
	fr := frameOf(macOf(0), macOf(1), 60, 1)
	f.Add(uint8(wire.Data), true, fr)
	f.Add(uint8(wire.Partial), true, ipv4(macOf(0), macOf(1), 1460, 0x40))
	f.Add(uint8(wire.Data), false, fr)
	f.Add(uint8(wire.Probe), true, []byte{1})
	s := newStill(f, seal.AES256GCM)
	s.cfg.SealRelayed = true
	s.rebuild()
	m := &udp.Message{Buf: make([]byte, maxPacket)}
	f.Fuzz(func(t *testing.T, typ uint8, sealed bool, b []byte) {
		if len(b) > 60000 {
			return
		}
		inner := append(make([]byte, wire.HeaderLen, wire.Overhead+len(b)), b...)
		if sealed {
			var err error
			if inner, err = s.from.Seal(wire.Type(typ), 0, inner, &s.non); err != nil {
				t.Fatal(err)
			}
		}
		s.tap.bytes = 0
		s.packet(t, m, wire.Data, body(wire.Head{Kind: wire.Routed, Sealed: true, SrcID: nameOf(1).ID(), DstID: nameOf(0).ID()}, inner))
		s.fromUDP(s.ln, m)
		s.ln.flush()
		if s.tap.bytes > len(b) || !sealed && s.tap.bytes > 0 {
			t.Fatalf("%d bytes gave %d for the host", len(b), s.tap.bytes)
		}
		for len(s.events) > 0 {
			s.handle(<-s.events)
		}
	})
}

// FuzzFrameFromContainer: nor does whatever a container sends.
func FuzzFrameFromContainer(f *testing.F) {
	f.Add(frameOf(macOf(2), macOf(0), 60, 1))
	f.Add(ipv4(macOf(2), macOf(0), 1460, 0x40))
	f.Add(ipv4(ethernet.Broadcast, macOf(0), 1460, 0))
	s := newStill(f, seal.AES256GCM)
	s.macs.Learn(macOf(2), nameOf(2), 0)
	buf := make([]byte, tap.Headroom+maxGSO+tap.Tailroom)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 65535 {
			return
		}
		end := tap.Headroom + copy(buf[tap.Headroom:], b)
		s.fromTAP(s.ln, &tap.Frame{Buf: buf[:end]})
		s.ln.flush()
		if n := len(s.conn.last); n > 1444+wire.Overhead {
			t.Fatalf("a packet of %d bytes on a link for %d", n, 1444+wire.Overhead)
		}
	})
}

// BenchmarkPath measures the work on a frame without the kernel's: system
// calls cost nothing here. "From" and "between" include sealing the packet.
func BenchmarkPath(b *testing.B) {
	for _, size := range []int{64, 1390} {
		s := newStill(b, seal.AES256GCM)
		for what, f := range s.paths(b, size) {
			b.Run(what, func(b *testing.B) {
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					f()
				}
			})
		}
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	s := newStill(t, seal.AES256GCM)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Error(err)
	}
}
