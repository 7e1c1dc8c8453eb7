package router

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/seal"
	"github.com/weft-net/weft/router/wire"
)

// inSealed runs a test on a line of n routers, whose relays must not read.
func inSealed(t *testing.T, o meshOptions, n int, f func(m *mesh)) {
	o.seal = true
	if o.mtu == 0 {
		o.mtu = 1376
	}
	inMeshWith(t, o, names(n), line(n), func(m *mesh) {
		m.meet()
		f(m)
	})
}

// readBy returns what relay i could read of the packets that it gets during a call: their
// bodies, opened with its keys. The packets do not reach it otherwise.
func (m *mesh) readBy(i int, call func()) (bodies [][]byte) {
	relay := m.nodes[i]
	var packets [][]byte
	m.f.mu.Lock()
	m.f.spy = func(_, to netip.AddrPort, p []byte) {
		if to == relay.addr {
			packets = append(packets, bytes.Clone(p))
		}
	}
	for _, n := range m.nodes {
		m.f.cut[[2]netip.AddrPort{n.addr, relay.addr}] = true
	}
	m.f.mu.Unlock()
	call()
	m.f.mu.Lock()
	m.f.spy = nil
	clear(m.f.cut)
	m.f.mu.Unlock()
	var nonce seal.Nonce
	for _, p := range packets {
		h, err := wire.ParseHeader(p)
		if err != nil {
			m.t.Fatal(err)
		}
		body, _, err := (*relay.keys.Load())[h.Index].rx.Open(h, p, &nonce)
		if err != nil {
			m.t.Fatal(err)
		}
		if h.Type != wire.Probe {
			bodies = append(bodies, body)
		}
	}
	return bodies
}

// A relay sees who speaks with whom, and sizes, and nothing of the frames. Frames to all
// peers are for it, too.
func TestRelaysCannotRead(t *testing.T) {
	inSealed(t, meshOptions{}, 3, func(m *mesh) {
		m.say(0, frameOf(macOf(2), macOf(0), 60, 1)) // agrees on keys
		m.got()
		for _, size := range []int{60, 300, 1390, 5000} {
			f := frameOf(macOf(2), macOf(0), size, 0x5a)
			bodies := m.readBy(1, func() { m.say(0, f) })
			if len(bodies) == 0 {
				t.Fatalf("%d bytes: nothing came to the relay", size)
			}
			for _, b := range bodies {
				if bytes.Contains(b, f[6:12]) || bytes.Contains(b, f[14:24]) {
					t.Errorf("%d bytes: the relay reads % x", size, b[:40])
				}
			}
		}
		f := frameOf(ethernet.Broadcast, macOf(0), 60, 0x5a)
		bodies := m.readBy(1, func() { m.say(0, f) })
		if len(bodies) != 1 || !bytes.HasSuffix(bodies[0], f) {
			t.Errorf("a frame to all is %x for the relay", bodies)
		}
	})
}

func TestSealedFramesArrive(t *testing.T) {
	inSealed(t, meshOptions{mtu: 4000}, 4, func(m *mesh) {
		for _, way := range [][2]int{{0, 3}, {3, 0}, {0, 2}, {1, 3}} {
			for _, size := range []int{60, 250, 257, 1300, 1402, 1403, 1500, 4000} {
				f := frameOf(macOf(way[1]), macOf(way[0]), size, 1)
				m.say(way[0], f)
				got := m.got()
				if len(got[way[1]]) != 1 || !bytes.Equal(got[way[1]][0], f) {
					t.Errorf("%v, %d bytes: %d frames arrived", way, size, len(got[way[1]]))
				}
			}
		}
		for i, n := range m.nodes {
			if n := n.dropped(DropNoKey) + n.dropped(DropUnsealed); n != 0 {
				t.Errorf("node %d dropped %d frames", i, n)
			}
		}
		for _, s := range m.nodes[0].Relayed() {
			if s.Via != nameOf(1) || (s.Cipher == "") != (s.Peer == nameOf(1)) {
				t.Errorf("status %+v", s)
			}
		}
	})
}

// GSO packets are segmented, sealed and joined again.
func TestSealedGSOPackets(t *testing.T) {
	inSealed(t, meshOptions{}, 3, func(m *mesh) {
		m.say(0, frameOf(macOf(2), macOf(0), 60, 1))
		m.got()
		for i, s := range kinds {
			for _, size := range []int{40, 1300} {
				s.Payload = bytes.Repeat([]byte{1, 2, 3, 4, 5, 6, 7}, 16*size/7)
				f, want := gsoPacket(t, macOf(0), macOf(2), s, size)
				m.nodes[0].tap.in <- f
				synctest.Wait()
				sameFrames(t, fmt.Sprintf("kind %d, size %d", i, size), m.got()[2], want)
			}
		}
	})
}

// The sender of a packet that must not be fragmented hears what fits: the overhead of the
// inner packet counts.
func TestSealedFrameTooBig(t *testing.T) {
	inSealed(t, meshOptions{mtu: 4000}, 3, func(m *mesh) {
		time.Sleep(30 * time.Second)
		m.say(0, frameOf(macOf(2), macOf(0), 60, 1))
		m.got()
		const fits = 1500 - 107
		m.say(0, ipv4(macOf(2), macOf(0), fits+1, 0x40))
		got := m.got()
		if len(got[0]) != 1 || len(got[2]) != 0 {
			t.Fatalf("%d answers, %d delivered", len(got[0]), len(got[2]))
		}
		_, off, _ := ethernet.ParseIP(got[0][0])
		if say := int(binary.BigEndian.Uint16(got[0][0][off+26:])); say != fits {
			t.Errorf("says %d, want %d", say, fits)
		}
		var packets atomic.Int32
		m.f.mu.Lock()
		m.f.spy = func(from, _ netip.AddrPort, p []byte) {
			if h, err := wire.ParseHeader(p); err == nil && h.Type != wire.Probe && from == m.nodes[0].addr {
				packets.Add(1)
			}
		}
		m.f.mu.Unlock()
		m.say(0, ipv4(macOf(2), macOf(0), fits, 0x40))
		m.wantCounts("as told", 0, 0, 1)
		if n := packets.Load(); n != 1 {
			t.Errorf("it took %d packets", n)
		}
		// The next link carries less: the relay fragments what it cannot read.
		m.nodes[1].links[nameOf(2)].maxBody.Store(1000)
		m.say(0, ipv4(macOf(2), macOf(0), fits, 0x40))
		m.wantCounts("over a smaller link", 0, 0, 1)
	})
}

// Frames wait for keys, in order, for a second at most, and then never leave in clear.
func TestFramesWaitForKeys(t *testing.T) {
	inSealed(t, meshOptions{}, 3, func(m *mesh) {
		a := m.nodes[0]
		m.alone.Store(true)
		bodies := m.readBy(1, func() {
			for i := range 20 {
				m.say(0, frameOf(macOf(2), macOf(0), 60+i, 1))
			}
		})
		if len(bodies) != 0 {
			t.Errorf("%d packets left without keys", len(bodies))
		}
		if n := a.dropped(DropNoKey); n != 20-heldFrames {
			t.Errorf("%d frames dropped at once, want %d", n, 20-heldFrames)
		}
		m.relay(a, m.nodes[2])
		synctest.Wait()
		got := m.got()[2]
		if len(got) != heldFrames {
			t.Fatalf("%d frames arrived, want %d", len(got), heldFrames)
		}
		for i, f := range got {
			if len(f) != 60+i {
				t.Errorf("frame %d has %d bytes", i, len(f))
			}
		}
	})
	inSealed(t, meshOptions{}, 3, func(m *mesh) {
		a := m.nodes[0]
		m.alone.Store(true)
		m.say(0, frameOf(macOf(2), macOf(0), 60, 1))
		time.Sleep(heldFor + 10*time.Millisecond)
		synctest.Wait()
		if n := a.dropped(DropNoKey); n != 1 || a.held.bytes != 0 || len(a.held.peers) != 0 {
			t.Errorf("%d frames dropped, %d bytes of %d peers held", n, a.held.bytes, len(a.held.peers))
		}
		m.relay(a, m.nodes[2])
		synctest.Wait()
		m.wantCounts("too late", 0, 0, 0)
		m.say(0, frameOf(macOf(2), macOf(0), 60, 1))
		m.wantCounts("with keys", 0, 0, 1)
	})
}

// A direct link comes up while frames wait for keys.
func TestFramesWaitForALink(t *testing.T) {
	inSealed(t, meshOptions{}, 3, func(m *mesh) {
		m.alone.Store(true)
		m.say(0, frameOf(macOf(2), macOf(0), 60, 1))
		m.wantCounts("while it waits", 0, 0, 0)
		m.edges = append(m.edges, [2]int{0, 2})
		m.join(len(m.edges) - 1)
		time.Sleep(heldFor - 100*time.Millisecond)
		m.route()
		m.wantCounts("with a link", 0, 0, 1)
	})
}

func TestHeldFramesAreBounded(t *testing.T) {
	q := heldQueue{peers: make(map[peer.Name]*heldPeer)}
	b := make([]byte, 2000)
	taken := 0
	for i := range 10 * heldPeers {
		for range 10 * heldFrames {
			if q.add(peer.Name{2, byte(i >> 8), byte(i)}, frame{buf: b, end: len(b)}, 0) {
				taken++
			}
		}
	}
	if want := heldBytes / len(b); taken != want || q.bytes != taken*len(b) {
		t.Errorf("%d frames held, %d bytes, want %d", taken, q.bytes, want)
	}
	for i := range 10 * heldPeers {
		q.add(peer.Name{3, byte(i >> 8), byte(i)}, frame{buf: b, end: 1}, 0)
	}
	if len(q.peers) != heldPeers {
		t.Errorf("frames of %d peers held, want %d", len(q.peers), heldPeers)
	}
	if dropped, next := q.expire(heldFor - 1); dropped != 0 || next != heldFor {
		t.Errorf("%d dropped early, next %v", dropped, next)
	}
	if _, next := q.expire(heldFor); next != 0 || q.bytes != 0 || len(q.peers) != 0 {
		t.Errorf("%d bytes of %d peers left", q.bytes, len(q.peers))
	}
}

// A relay cannot speak for a peer: it has no key, and frames that are not sealed are
// refused. What it repeats is refused, too.
func TestRelayCannotForge(t *testing.T) {
	inSealed(t, meshOptions{}, 3, func(m *mesh) {
		relay, b := m.nodes[1], m.nodes[2]
		m.say(0, frameOf(macOf(2), macOf(0), 60, 1))
		m.got()
		bodies := m.readBy(1, func() { m.say(0, frameOf(macOf(2), macOf(0), 1000, 1)) })
		if len(bodies) != 1 {
			t.Fatalf("%d packets", len(bodies))
		}
		h, n, err := wire.ParseHead(bodies[0])
		if err != nil || !h.Sealed {
			t.Fatalf("head %+v, %v", h, err)
		}
		inner := bodies[0][n:]
		ln := relay.newLane(1, relay.tap)
		inject := func(h wire.Head, b []byte) {
			t.Helper()
			ln.send((*relay.byName.Load())[nameOf(2)], &h, frame{buf: bytes.Clone(b), end: len(b)})
			ln.flush()
			synctest.Wait()
		}
		inject(h, inner)
		m.wantCounts("once", 0, 0, 1)
		inject(h, inner)
		changed := bytes.Clone(inner)
		changed[11] += 9 // another counter
		inject(h, changed)
		changed = bytes.Clone(inner)
		changed[3]++ // another key
		inject(h, changed)
		inject(h, inner[:5])
		clear := h
		clear.Sealed = false
		inject(clear, frameOf(macOf(2), macOf(0), 60, 1))
		m.wantCounts("forged", 0, 0, 0)
		for r, want := range map[Reason]uint64{DropReplay: 1, DropForged: 1, DropUnknownKey: 1, DropMalformed: 1, DropUnsealed: 1} {
			if got := b.dropped(r); got != want {
				t.Errorf("%s: %d drops, want %d", r, got, want)
			}
		}
		// Nor can it use the key of its own link in another's name.
		own := make([]byte, wire.HeaderLen+60, wire.Overhead+60)
		p, err := (*relay.byName.Load())[nameOf(2)].tx.Load().Seal(wire.Data, ln.id, own, &ln.nonce)
		if err != nil {
			t.Fatal(err)
		}
		inject(h, p)
		if got := b.dropped(DropUnknownKey); got != 2 {
			t.Errorf("%d packets under another peer's key refused, want 2", got)
		}
		m.wantCounts("under the relay's key", 0, 0, 0)
	})
}

// Keys change while traffic runs, and no frame is lost.
func TestSealedTrafficOverRenewals(t *testing.T) {
	inSealed(t, meshOptions{}, 3, func(m *mesh) {
		keys := map[string]bool{}
		const n = 5 * 60 * 20
		for i := range n {
			m.say(0, frameOf(macOf(2), macOf(0), 300, byte(i)))
			if tx := m.nodes[0].sendKey(nameOf(2)); tx != nil {
				keys[fmt.Sprintf("%p", tx)] = true
			}
			time.Sleep(50 * time.Millisecond)
		}
		if got := len(m.got()[2]); got != n {
			t.Errorf("%d of %d frames arrived", got, n)
		}
		if len(keys) < 4 {
			t.Errorf("%d keys in five minutes", len(keys))
		}
	})
}

// sendKey returns the key under which a node sends to a peer.
func (n *node) sendKey(to peer.Name) *seal.Tx {
	if l := (*n.byName.Load())[to]; l != nil {
		return l.tx.Load()
	}
	return nil
}

// Either end is restarted, and the other still has the old keys.
func TestSealedAfterRestart(t *testing.T) {
	for _, end := range []int{0, 2} {
		inSealed(t, meshOptions{}, 3, func(m *mesh) {
			m.say(0, frameOf(macOf(2), macOf(0), 60, 1))
			m.got()
			m.restart(end)
			m.meet()
			for range 3 {
				m.say(0, frameOf(macOf(2), macOf(0), 60, 1))
				m.say(2, frameOf(macOf(0), macOf(2), 60, 1))
				time.Sleep(wantEvery)
			}
			m.got()
			m.say(0, frameOf(macOf(2), macOf(0), 60, 1))
			m.say(2, frameOf(macOf(0), macOf(2), 60, 1))
			m.wantCounts(fmt.Sprint("after the restart of ", end), 1, 0, 1)
		})
	}
}

// Hole punching finds the address later: the session is the same, and so are the keys.
func TestAddressIsFoundLater(t *testing.T) {
	inSealed(t, meshOptions{}, 3, func(m *mesh) {
		a, b := m.nodes[0], m.nodes[2]
		m.say(0, frameOf(macOf(2), macOf(0), 60, 1))
		m.got()
		secret := m.relayed[[2]*Router{a.Router, b.Router}]
		a.NeighbourUp(Neighbour{Name: b.name, Addr: b.addr, Secret: secret})
		b.NeighbourUp(Neighbour{Name: a.name, Addr: a.addr, Secret: secret})
		synctest.Wait()
		m.say(0, frameOf(macOf(2), macOf(0), 60, 1))
		m.wantCounts("meanwhile", 0, 0, 1)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if !a.isUp(b) || !b.isUp(a) {
			t.Error("the link does not come up")
		}
	})
}

// While frames flow, the mesh hears every few seconds that the session is needed, at both
// ends, and not for each frame.
func TestMeshHearsThatKeysAreUsed(t *testing.T) {
	inSealed(t, meshOptions{}, 3, func(m *mesh) {
		var wants [3]atomic.Int32
		m.wanted = func(i int) { wants[i].Add(1) }
		for range 200 {
			m.say(0, frameOf(macOf(2), macOf(0), 60, 1))
			time.Sleep(100 * time.Millisecond)
		}
		for i, least := range []int32{3, 0, 3} {
			if n := wants[i].Load(); n < least || n > 6 || least == 0 && n != 0 {
				t.Errorf("node %d said %d times in 20 s that it needs the session", i, n)
			}
		}
	})
}
