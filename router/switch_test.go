package router

import (
	"bytes"
	"encoding/binary"
	"maps"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/origin"
	"github.com/weft-net/weft/router/wire"
)

func TestBroadcastReachesEachOnce(t *testing.T) {
	for what, edges := range map[string][][2]int{
		"line": line(5), "ring": append(line(5), [2]int{0, 4}), "star": {{0, 1}, {0, 2}, {0, 3}, {0, 4}},
	} {
		inMesh(t, names(5), edges, func(m *mesh) {
			for _, size := range []int{60, 300, 1390} {
				b := frameOf(ethernet.Broadcast, macOf(0), size, 1)
				m.say(0, b)
				for i, frames := range m.got() {
					if i == 0 && len(frames) != 0 || i > 0 && (len(frames) != 1 || !bytes.Equal(frames[0], b)) {
						t.Errorf("%s: node %d got %d frames of %d bytes", what, i, len(frames), size)
					}
				}
			}
		})
	}
}

func TestLearnsAndFollowsMoves(t *testing.T) {
	inMesh(t, names(4), line(4), func(m *mesh) {
		m.say(0, frameOf(macOf(3), macOf(0), 100, 1))
		m.wantCounts("unknown: flooded", 0, 1, 1, 1)
		m.say(3, frameOf(macOf(0), macOf(3), 100, 1))
		m.wantCounts("answer: known", 1, 0, 0, 0)
		m.say(0, frameOf(macOf(3), macOf(0), 1000, 1))
		m.wantCounts("known now", 0, 0, 0, 1)
		m.say(0, frameOf(macOf(0), ethernet.MAC{2, 9}, 100, 1))
		m.wantCounts("between two containers of one host", 0, 0, 0, 0)

		// The container moves from node 3 to node 1 and says one word.
		m.say(1, frameOf(ethernet.Broadcast, macOf(3), 60, 1))
		m.wantCounts("announcement", 1, 0, 1, 1)
		m.say(0, frameOf(macOf(3), macOf(0), 1000, 1))
		m.wantCounts("followed", 0, 1, 0, 0)

		time.Sleep(11 * time.Minute)
		m.say(0, frameOf(macOf(3), macOf(0), 1000, 1))
		m.wantCounts("forgotten after ten minutes", 0, 1, 1, 1)
	})
}

// A container that sends with the address of one of another host moves nothing, and the host of
// that one neither takes its frames nor passes them on. A binding that moves is followed at once.
func TestBoundAddressIsNotMovedByFrames(t *testing.T) {
	inMesh(t, names(4), line(4), func(m *mesh) {
		bind := func(at int) {
			for _, n := range m.nodes {
				n.Bind(macOf(3), m.nodes[at].self)
			}
		}
		bind(3)
		m.say(3, frameOf(ethernet.Broadcast, macOf(3), 60, 1))
		m.wantCounts("announcement", 1, 1, 1, 0)
		m.say(1, frameOf(ethernet.Broadcast, macOf(3), 60, 1))
		m.wantCounts("from a thief", 1, 0, 1, 0)
		if n := m.nodes[3].dropped(DropSpoofed); n != 1 {
			t.Errorf("the host of the container counts %d frames in its name, want 1", n)
		}
		m.say(0, frameOf(macOf(3), macOf(0), 1000, 1))
		m.wantCounts("to the container", 0, 0, 0, 1)
		m.say(1, frameOf(macOf(3), macOf(1), 1000, 1))
		m.wantCounts("to the container, from the host of the thief", 0, 0, 0, 1)

		bind(1) // it has moved, and said nothing yet
		m.say(0, frameOf(macOf(3), macOf(0), 1000, 1))
		m.wantCounts("to its new host", 0, 1, 0, 0)
		m.say(3, frameOf(ethernet.Broadcast, macOf(3), 60, 1))
		m.wantCounts("a last word of its former host, which its host does not pass on", 0, 0, 1, 0)
		m.say(0, frameOf(macOf(3), macOf(0), 1000, 1))
		m.wantCounts("to its new host again", 0, 1, 0, 0)

		for _, n := range m.nodes {
			n.Bind(macOf(3), peer.Name{})
		}
		m.say(2, frameOf(ethernet.Broadcast, macOf(3), 60, 1))
		m.wantCounts("not bound any more", 1, 1, 0, 1)
		m.say(0, frameOf(macOf(3), macOf(0), 1000, 1))
		m.wantCounts("it is learned again", 0, 0, 1, 0)
	})
}

func TestPeerThatIsGoneIsForgotten(t *testing.T) {
	inMesh(t, names(3), line(3), func(m *mesh) {
		m.say(2, frameOf(ethernet.Broadcast, macOf(2), 60, 1))
		m.edges = m.edges[:1]
		m.route()
		if macs, _ := m.nodes[0].FDB(100); len(macs) != 0 {
			t.Errorf("node 0 still knows %v", macs)
		}
	})
}

func TestFramesOfBridgesStay(t *testing.T) {
	inMesh(t, names(2), line(2), func(m *mesh) {
		m.say(0, frameOf(ethernet.MAC{1, 0x80, 0xc2, 0, 0, 0}, macOf(0), 60, 1))
		m.say(0, frameOf(ethernet.MAC{1, 0x80, 0xc2, 0, 0, 0x0e}, macOf(0), 60, 1))
		m.say(0, frameOf(ethernet.Broadcast, ethernet.Broadcast, 60, 1))
		m.say(0, frameOf(ethernet.Broadcast, ethernet.MAC{}, 60, 1))
		m.say(0, []byte("short"))
		m.wantCounts("none", 0, 0)
		n := m.nodes[0]
		if n.dropped(DropReserved) != 2 || n.dropped(DropBadSource) != 2 || n.dropped(DropMalformed) != 1 {
			t.Errorf("drops: %v", n.Status().Drops)
		}
	})
}

// TestLoopsEnd gives two routers routes that lead a frame back and forth.
func TestLoopsEnd(t *testing.T) {
	inMesh(t, names(4), line(4), func(m *mesh) {
		m.say(3, frameOf(ethernet.Broadcast, macOf(3), 60, 1))
		m.got()
		broken := *m.nodes[2].routes
		broken.Unicast = map[peer.Name]peer.Name{nameOf(0): nameOf(1), nameOf(1): nameOf(1), nameOf(3): nameOf(1)}
		m.nodes[2].SetRoutes(&broken)
		astray := *m.nodes[1].routes
		astray.From = map[peer.Name][]peer.Name{nameOf(0): {nameOf(0), nameOf(2)}, nameOf(2): {nameOf(2)}, nameOf(3): {nameOf(2)}}
		m.nodes[1].SetRoutes(&astray)
		synctest.Wait()
		packets := 0
		m.f.spy = func(_, _ netip.AddrPort, p []byte) {
			if p[0] != byte(wire.Probe) {
				packets++
			}
		}
		m.say(0, frameOf(macOf(3), macOf(0), 1000, 1))
		m.wantCounts("looped", 0, 0, 0, 0)
		if packets != wire.MaxHops+1 {
			t.Errorf("the frame crossed %d links, want %d", packets, wire.MaxHops+1)
		}
		if n := m.nodes[1].dropped(DropHops) + m.nodes[2].dropped(DropHops); n != 1 {
			t.Errorf("%d frames dropped for hops", n)
		}
	})
}

// TestFramesInOthersNames: node 1 sends frames in the names of peers that its neighbours
// hear from others, or that do not exist.
func TestFramesInOthersNames(t *testing.T) {
	// 0 -- 1 -- 2 -- 3, and 0 -- 2.
	inMesh(t, names(4), append(line(4), [2]int{0, 2}), func(m *mesh) {
		evil := m.nodes[1]
		stranger := peer.Name{2, 9, 9, 9, 9, 9}
		forge := func(src, dst peer.Name, mac ethernet.MAC) {
			t.Helper()
			h := wire.Head{Kind: wire.RoutedLong, Hops: wire.MaxHops, Src: src, Dst: dst}
			ln := evil.newLane(1, evil.tap)
			ln.send((*evil.byName.Load())[nameOf(2)], &h, frame{buf: frameOf(ethernet.Broadcast, mac, 60, 1), end: 60})
			ln.flush()
			synctest.Wait()
		}
		for i, src := range []peer.Name{nameOf(0), nameOf(3), stranger, peer.Broadcast} {
			for _, dst := range []peer.Name{nameOf(2), nameOf(3), peer.Broadcast} {
				forge(src, dst, ethernet.MAC{2, 0, 0, 0, 9, byte(i)})
			}
		}
		m.wantCounts("forged", 0, 0, 0, 0)
		if got := m.nodes[2].dropped(DropMisrouted); got != 12 {
			t.Errorf("%d frames dropped as misrouted, want 12", got)
		}
		for i, n := range m.nodes {
			if macs, _ := n.FDB(100); len(macs) != 0 {
				t.Errorf("node %d learned %v", i, macs)
			}
		}
		forge(nameOf(1), nameOf(3), macOf(1)) // its own
		m.wantCounts("not forged", 0, 0, 0, 1)
	})
}

// TestPathChanges: frames under way when the routes change still arrive, and those that
// keep coming by the old path do not.
func TestPathChanges(t *testing.T) {
	// 0 -- 1 -- 3 and 0 -- 2 -- 3: both paths are as short.
	inMesh(t, names(4), [][2]int{{0, 1}, {1, 3}, {0, 2}, {2, 3}}, func(m *mesh) {
		say := func(want int) {
			t.Helper()
			m.say(3, frameOf(ethernet.Broadcast, macOf(3), 60, 1))
			m.got()
			m.say(0, frameOf(macOf(3), macOf(0), 60, 1))
			if got := len(m.got()[3]); got != want {
				t.Errorf("%d frames arrived, want %d", got, want)
			}
		}
		other := *m.nodes[0].routes
		other.Unicast = map[peer.Name]peer.Name{nameOf(1): nameOf(1), nameOf(2): nameOf(2)}
		for _, via := range []int{1, 2} {
			other.Unicast[nameOf(3)] = nameOf(via)
			r := other
			r.Unicast = maps.Clone(other.Unicast)
			m.nodes[0].SetRoutes(&r)
			synctest.Wait()
			say(1)
		}
		changed := *m.nodes[3].routes // it heard that 0 -- 2 is gone, and 0 did not
		changed.From = map[peer.Name][]peer.Name{nameOf(0): {nameOf(1)}, nameOf(1): {nameOf(1)}, nameOf(2): {nameOf(2)}}
		m.nodes[3].SetRoutes(&changed)
		synctest.Wait()
		say(1)
		time.Sleep(origin.Grace)
		say(0)
		if n := m.nodes[3].dropped(DropMisrouted); n != 1 {
			t.Errorf("%d frames dropped as misrouted", n)
		}
	})
}

func TestOwnFrameThatComesBack(t *testing.T) {
	inMesh(t, names(3), append(line(3), [2]int{0, 2}), func(m *mesh) {
		broken := *m.nodes[1].routes
		broken.Broadcast = map[peer.Name][]peer.Name{nameOf(0): {nameOf(2)}}
		m.nodes[1].SetRoutes(&broken)
		back := *m.nodes[2].routes
		back.Broadcast = map[peer.Name][]peer.Name{nameOf(0): {nameOf(0)}}
		back.From = map[peer.Name][]peer.Name{nameOf(0): {nameOf(0), nameOf(1)}, nameOf(1): {nameOf(1)}}
		m.nodes[2].SetRoutes(&back)
		synctest.Wait()
		m.say(0, frameOf(ethernet.Broadcast, macOf(0), 60, 1))
		m.wantCounts("looped", 0, 1, 2)
		if n := m.nodes[0].dropped(DropLooped); n != 1 {
			t.Errorf("%d frames dropped as looped", n)
		}
	})
}

// TestSharedIDs: nodes 1 and 3 have names with the same low 32 bits.
func TestSharedIDs(t *testing.T) {
	all := names(4)
	all[3] = peer.Name{6, 0, 0, 0, 0, 2}
	inMesh(t, all, line(4), func(m *mesh) {
		m.say(3, frameOf(ethernet.Broadcast, macOf(3), 60, 1))
		m.wantCounts("from one that shares", 1, 1, 1, 0)
		m.say(0, frameOf(macOf(3), macOf(0), 60, 1))
		m.wantCounts("to one that shares", 0, 0, 0, 1)
		m.say(1, frameOf(macOf(3), macOf(1), 1000, 1))
		m.wantCounts("between the two", 0, 0, 0, 1)
	})
}

func TestManySmallFramesShareAPacket(t *testing.T) {
	inMesh(t, names(2), line(2), func(m *mesh) {
		packets := 0
		m.f.spy = func(_, _ netip.AddrPort, p []byte) { packets++ }
		var want [][]byte
		for i := range 60 {
			size := 64
			if i%20 == 19 {
				size = 1000
			}
			want = append(want, frameOf(ethernet.Broadcast, macOf(0), size, byte(i)))
		}
		for _, b := range want {
			m.nodes[0].tap.in <- memFrame{b: b}
		}
		synctest.Wait()
		got := m.nodes[1].tap.took()
		if len(got) != len(want) {
			t.Fatalf("%d frames came out of %d", len(got), len(want))
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("frame %d is out of order or wrong", i)
			}
		}
		if packets > 20 {
			t.Errorf("%d packets for %d frames", packets, len(want))
		}
	})
}

// TestOverheadOnTheWire counts what a frame of a container costs, for a
// neighbour, and for a peer behind one: at most 80 bytes of IPv4 packet beyond
// the inner IP packet.
func TestOverheadOnTheWire(t *testing.T) {
	inMesh(t, names(3), line(3), func(m *mesh) {
		for i := range 3 {
			m.say(i, frameOf(ethernet.Broadcast, macOf(i), 60, 1))
		}
		for dst, want := range map[int]int{1: 71, 2: 79} {
			var sizes []int
			m.f.spy = func(_, _ netip.AddrPort, p []byte) {
				if wire.Type(p[0]) != wire.Probe { // the link comes into use
					sizes = append(sizes, len(p)+28)
				}
			}
			m.say(0, frameOf(macOf(dst), macOf(0), 14+1300, 1))
			for _, s := range sizes {
				if s-1300 != want || s-1300 > 80 {
					t.Errorf("to node %d: %d bytes beyond the IP packet, want %d", dst, s-1300, want)
				}
			}
			if len(sizes) != dst {
				t.Errorf("to node %d: %d packets", dst, len(sizes))
			}
		}
	})
}

// ipv4 makes an IPv4 frame of n bytes of packet; flags is the high byte of the
// fragment field.
func ipv4(dst, src ethernet.MAC, n int, flags byte) []byte {
	b := frameOf(dst, src, 14+n, 0xaa)
	copy(b[12:], []byte{8, 0, 0x45, 0, byte(n >> 8), byte(n), 0, 1, flags, 0, 64, 17, 0, 0, 10, 32, 0, src[5], 10, 32, 0, dst[5]})
	return b
}

func TestTooBigForALink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Containers have a larger MTU than any link carries.
		m := newMesh(t, 4000, names(4), line(4))
		defer m.stop()
		time.Sleep(30 * time.Second)
		for i := range 4 {
			m.say(i, frameOf(ethernet.Broadcast, macOf(i), 60, 1))
		}
		m.got()
		m.say(0, ipv4(ethernet.MAC{2, 7}, macOf(0), 1500, 0x40))
		m.wantCounts("DF to an unknown address", 0, 1, 1, 1)
		whole := func(what string, b []byte, counts ...int) {
			t.Helper()
			m.say(0, b)
			got := m.got()
			for i, want := range counts {
				if len(got[i]) != want || want > 0 && !bytes.Equal(got[i][0], b) {
					t.Errorf("%s: node %d got %d frames", what, i, len(got[i]))
				}
			}
		}
		whole("IPv4 without DF", ipv4(macOf(3), macOf(0), 3900, 0), 0, 0, 0, 1)
		whole("another ethertype", frameOf(macOf(3), macOf(0), 4000, 1), 0, 0, 0, 1)
		whole("broadcast", frameOf(ethernet.Broadcast, macOf(0), 4000, 1), 0, 1, 1, 1)

		answer := func(what string, b []byte, mtu int) {
			t.Helper()
			m.say(0, b)
			got := m.got()
			if len(got[0]) != 1 || len(got[3]) != 0 {
				t.Fatalf("%s: %d answers, %d delivered", what, len(got[0]), len(got[3]))
			}
			a := got[0][0]
			ip, off, ok := ethernet.ParseIP(a)
			dst, src, _ := ethernet.Addresses(a)
			if !ok || ip.Protocol != 1 || a[off+20] != 3 || a[off+21] != 4 || dst != macOf(0) || src != macOf(3) {
				t.Fatalf("%s: answer % x", what, a)
			}
			if say := int(binary.BigEndian.Uint16(a[off+26:])); say != mtu {
				t.Errorf("%s: says %d, want %d", what, say, mtu)
			}
		}
		answer("DF", ipv4(macOf(3), macOf(0), 1500, 0x40), 1421)
		whole("DF as told", ipv4(macOf(3), macOf(0), 1421, 0x40), 0, 0, 0, 1)

		// A relay answers through the overlay, and nobody learns the
		// container to be at the relay.
		m.f.mu.Lock()
		for _, e := range [][2]int{{2, 3}, {3, 2}} {
			m.f.cut[[2]netip.AddrPort{m.nodes[e[0]].addr, m.nodes[e[1]].addr}] = true
		}
		m.f.mu.Unlock()
		shrunk := m.nodes[2].links[nameOf(3)]
		shrunk.maxBody.Store(1000)
		answer("DF at a relay", ipv4(macOf(3), macOf(0), 1400, 0x40), 1000-wire.RoutedLen-14)
		for _, n := range m.nodes[:2] {
			macs, _ := n.FDB(100)
			for _, e := range macs {
				if e.MAC == macOf(3) && e.Peer != nameOf(3) {
					t.Errorf("%s believes %s to be behind %s", n.name, e.MAC, e.Peer)
				}
			}
		}
		for range 300 {
			m.nodes[0].tap.in <- memFrame{b: ipv4(macOf(3), macOf(0), 1500, 0x40)}
		}
		synctest.Wait()
		if n := len(m.nodes[0].tap.took()); n < 1 || n > icmpBurst {
			t.Errorf("%d answers to 300 frames at once", n)
		}
	})
}

// Without the kernel's programs nothing filters the frames of containers: one that looks
// like a metadata header must not be taken for one.
func TestContainersCannotSendMetadata(t *testing.T) {
	inMesh(t, names(2), line(2), func(m *mesh) {
		n := m.nodes[0]
		for _, op := range []kernel.MetadataOp{kernel.MetadataRelay, kernel.MetadataEcho, 3} {
			before := n.dropped(DropBadSource)
			m.say(0, append(kernel.AppendMetadata(nil, kernel.Metadata{Op: op, Src: 1, Dst: 2, TTL: 9}), frameOf(ethernet.Broadcast, macOf(0), 60, 1)...))
			if n.dropped(DropBadSource) != before+1 {
				t.Errorf("a metadata header with op %d: %+v", op, n.Status())
			}
		}
	})
}
