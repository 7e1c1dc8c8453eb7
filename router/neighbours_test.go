package router

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/internal/neighbour"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/resolve"
	"github.com/weft-net/weft/router/tap"
	"github.com/weft-net/weft/router/wire"
)

// ipOf and ip6Of are the addresses of the only container of node i.
func ipOf(i int) netip.Addr  { return netip.AddrFrom4([4]byte{10, 32, 0, byte(i + 1)}) }
func ip6Of(i int) netip.Addr { return netip.AddrFrom16([16]byte{0xfd, 15: byte(i + 1)}) }

// places says where addresses are. All nodes share it.
type places struct {
	mu sync.Mutex
	of map[netip.Addr]resolve.Place
}

func (p *places) get(a netip.Addr) resolve.Place {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.of[a]
}

// bound are the places of the containers of n nodes.
func bound(n int) *places {
	p := &places{of: make(map[netip.Addr]resolve.Place)}
	for i := range n {
		p.of[ipOf(i)] = resolve.Place{MAC: macOf(i), At: nameOf(i)}
		p.of[ip6Of(i)] = p.of[ipOf(i)]
	}
	return p
}

// asks makes a request of a MAC address for the MAC address of to. It is a probe if from is invalid.
func asks(mac ethernet.MAC, from, to netip.Addr) []byte {
	b := append(bytes.Repeat([]byte{0xff}, 6), mac[:]...)
	if to.Is4() {
		spa := netip.IPv4Unspecified()
		if from.IsValid() {
			spa = from
		}
		b = append(b, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
		b = append(append(append(b, mac[:]...), spa.AsSlice()...), make([]byte, 6)...)
		return append(b, to.AsSlice()...)
	}
	target, src, options := to.As16(), netip.IPv6Unspecified(), []byte(nil)
	if from.IsValid() {
		src, options = from, append([]byte{1, 1}, mac[:]...)
	}
	copy(b, []byte{0x33, 0x33, 0xff, target[13], target[14], target[15]})
	b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(24+len(options)), 58, 255)
	b = append(append(b, src.AsSlice()...), 0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, target[13], target[14], target[15])
	b = append(append(append(b, 135, 0, 0, 0, 0, 0, 0, 0), target[:]...), options...)
	var sum uint32
	for i := 22; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum += 24 + uint32(len(options)) + 58; sum > 0xffff; {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[56:], ^uint16(sum))
	return b
}

// A container finds one of another host although no frame of it ever crossed a link, and none crosses
// one to find it. What they send to each other then reaches nobody else.
func TestRequestsForBoundAddressesStay(t *testing.T) {
	p := bound(4)
	inMeshWith(t, meshOptions{mtu: 1376, placeOf: p.get}, names(4), line(4), func(m *mesh) {
		for i, n := range m.nodes {
			for _, o := range m.nodes {
				o.Bind(macOf(i), n.self)
			}
		}
		crossed := 0
		m.watch(func(_, _ netip.AddrPort, b []byte) {
			if b[0] != byte(wire.Probe) {
				crossed++
			}
		})
		for _, of := range []func(int) netip.Addr{ipOf, ip6Of} {
			m.say(0, asks(macOf(0), of(0), of(3)))
			got := m.got()
			want := neighbour.AppendAnswer(nil, neighbour.Message{Target: of(3), From: of(0), MAC: macOf(0)}, macOf(3))
			if len(got[0]) != 1 || !bytes.Equal(got[0][0], want) {
				t.Errorf("the answer is %x, want %x", got[0], want)
			}
			m.say(0, asks(macOf(0), of(0), of(0).Next().Next().Next()))
			m.wantCounts("again", 1, 0, 0, 0)
			m.say(0, asks(macOf(9), of(9), of(0)))
			m.wantCounts("for a container of this host, by another one", 0, 0, 0, 0)
			m.say(0, asks(macOf(0), netip.Addr{}, of(0)))
			m.wantCounts("a probe of its own address", 0, 0, 0, 0)
			m.say(0, asks(macOf(0), netip.Addr{}, of(3)))
			m.wantCounts("a probe of an address in use", 1, 0, 0, 0)
		}
		if crossed > 0 {
			t.Errorf("%d packets crossed links", crossed)
		}
		if s := m.nodes[0].Status().Neighbours; s != (NeighbourStatus{Answered: 6, Local: 4}) {
			t.Errorf("counted %+v", s)
		}
		m.say(0, frameOf(macOf(3), macOf(0), 1000, 1))
		m.wantCounts("the first frame", 0, 0, 0, 1)
		m.say(3, asks(macOf(3), ipOf(3), ipOf(0)))
		m.wantCounts("the other one asks too", 0, 0, 0, 1)
		m.say(3, frameOf(macOf(0), macOf(3), 1000, 1))
		m.wantCounts("its answer", 1, 0, 0, 0)
		m.say(2, frameOf(macOf(0), macOf(2), 1000, 1))
		m.wantCounts("a frame to an address that was not asked for", 1, 0, 0, 0)
		m.say(2, frameOf(macOf(2), macOf(9), 1000, 1))
		m.wantCounts("a frame that the bridge flooded", 0, 0, 0, 0)
		time.Sleep(11 * time.Minute)
		m.say(0, frameOf(macOf(3), macOf(0), 1000, 1))
		m.wantCounts("although it said nothing for long", 0, 0, 0, 1)
	})
}

// What is not bound works as ever, also for hosts that are not reached, and in tagged frames.
func TestRequestsForOtherAddressesAreFlooded(t *testing.T) {
	p := bound(4)
	delete(p.of, ipOf(3))
	delete(p.of, ip6Of(3))
	p.of[ipOf(7)] = resolve.Place{MAC: macOf(7), At: nameOf(7)}
	inMeshWith(t, meshOptions{mtu: 1376, placeOf: p.get}, names(4), line(4), func(m *mesh) {
		tagged := asks(macOf(0), ipOf(0), ipOf(2))
		tagged = append(append(bytes.Clone(tagged[:12]), 0x81, 0, 0, 5), tagged[12:]...)
		unicast := asks(macOf(0), ipOf(0), ipOf(2))
		unicast[0] = 2 // to a MAC address that nobody knows
		for what, b := range map[string][]byte{
			"not bound": asks(macOf(0), ipOf(0), ipOf(3)), "not bound, IPv6": asks(macOf(0), ip6Of(0), ip6Of(3)),
			"its host is not reached": asks(macOf(0), ipOf(0), ipOf(7)), "probe": asks(macOf(0), netip.Addr{}, ipOf(3)),
			"tagged": tagged, "unicast": unicast, "announcement": neighbour.AppendAnnouncement(nil, ipOf(0), macOf(0)),
			"an announcement before its binding": neighbour.AppendAnnouncement(nil, ipOf(3), macOf(0)),
		} {
			m.say(0, b)
			m.wantCounts(what, 0, 1, 1, 1)
		}
		if s := m.nodes[0].Status().Neighbours; s != (NeighbourStatus{Flooded: 4}) {
			t.Errorf("counted %+v", s)
		}
	})
}

// A container that says to have the address of another one is not heard on other hosts, whether its own
// host knows of bindings or not.
func TestFalseAnnouncementsStay(t *testing.T) {
	p := bound(3)
	inMeshWith(t, meshOptions{mtu: 1376, placeOf: p.get}, names(3), line(3), func(m *mesh) {
		thief := ethernet.MAC{2, 9}
		lies := [][]byte{
			neighbour.AppendAnnouncement(nil, ipOf(1), thief), neighbour.AppendAnnouncement(nil, ip6Of(1), thief),
			neighbour.AppendAnnouncement(nil, ipOf(0), thief), asks(thief, ipOf(2), ipOf(9)), asks(thief, ip6Of(2), ip6Of(9)),
		}
		for i, b := range lies {
			m.say(0, b)
			m.wantCounts("a lie", 0, 0, 0)
			if n := m.nodes[0].dropped(DropFalseAddr); n != uint64(i+1) {
				t.Errorf("%d lies are counted, want %d", n, i+1)
			}
		}
		m.say(0, neighbour.AppendAnnouncement(nil, ipOf(0), macOf(0)))
		m.wantCounts("the truth", 0, 1, 1)
	})
	inMeshWith(t, meshOptions{mtu: 1376, placeOf: p.get, blind: 1}, names(3), line(3), func(m *mesh) {
		m.say(0, neighbour.AppendAnnouncement(nil, ipOf(1), ethernet.MAC{2, 9}))
		m.wantCounts("a lie that its host lets out", 0, 0, 0)
		if n := m.nodes[2].dropped(DropFalseAddr); n != 1 {
			t.Errorf("the far host counts %d lies, want 1", n)
		}
	})
}

// When an address gets another MAC address, all hosts but the one that it came to tell their containers,
// and no frame crosses a link.
func TestMovesAreAnnouncedOnEachHost(t *testing.T) {
	inMesh(t, names(3), line(3), func(m *mesh) {
		old, now := resolve.Place{MAC: macOf(0), At: nameOf(0)}, resolve.Place{MAC: macOf(1), At: nameOf(1)}
		var list []resolve.Change
		for i := range 100 {
			list = append(list, resolve.Change{Addr: ipOf(i), Old: old, New: now})
		}
		list = append(list, resolve.Change{Addr: ip6Of(1), Old: old, New: now}, resolve.Change{Addr: ip6Of(2), New: now})
		for _, n := range m.nodes {
			n.Moved(list)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		for i, frames := range m.got() {
			said := make(map[netip.Addr]bool)
			for _, b := range frames {
				msg, ok := neighbour.Parse(b)
				if !ok || msg.MAC != macOf(1) || msg.Target.IsValid() || ethernet.MAC(b[6:12]) != macOf(1) {
					t.Errorf("node %d says %x", i, b)
				}
				said[msg.From] = true
			}
			want := 101
			if i == 1 {
				want = 0
			}
			if len(said) != want || len(frames) != want || want > 0 && (!said[ipOf(99)] || !said[ip6Of(1)]) {
				t.Errorf("node %d announced %d addresses in %d frames, want %d", i, len(said), len(frames), want)
			}
			if s := m.nodes[i].Status().Neighbours; s.Announced != uint64(want) {
				t.Errorf("node %d counts %d", i, s.Announced)
			}
		}
	})
}

// An answer costs no memory, so containers that ask without end cost none either.
func TestAnswersAllocateNothing(t *testing.T) {
	p := bound(2)
	synctest.Test(t, func(t *testing.T) {
		m := newMeshOf(t, meshOptions{mtu: 1376, placeOf: p.get}, names(2), line(2))
		defer m.stop()
		m.nodes[0].Bind(macOf(1), nameOf(1))
		q := discardTAP{m.nodes[0].tap}
		ln := m.nodes[0].newLane(1, q)
		for what, b := range map[string][]byte{"ARP": asks(macOf(0), ipOf(0), ipOf(1)), "IPv6": asks(macOf(0), ip6Of(0), ip6Of(1))} {
			f := &tap.Frame{Buf: append(make([]byte, tap.Headroom), b...)}
			if n := testing.AllocsPerRun(100, func() { m.nodes[0].fromTAP(ln, f) }); n > 0 {
				t.Errorf("%s: %v allocations", what, n)
			}
		}
	})
}

// discardTAP is a TAP that takes all frames.
type discardTAP struct{ *memTAP }

func (q discardTAP) NewWriter() tap.Writer { return discard{} }

type discard struct{}

func (discard) Write(offload.Header, [][]byte) error { return nil }
