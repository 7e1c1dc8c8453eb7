package router

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/internal/checksum"
	"github.com/weft-net/weft/mesh/groups"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/multicast"
)

// clubs carries what hosts want to all of them, as the mesh does.
type clubs struct {
	mu    sync.Mutex
	wants map[int]multicast.Wants
}

func (c *clubs) wanted(i int, w multicast.Wants) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wants[i] = w
}

// spread waits until all routers know what the others want.
func (c *clubs) spread(m *mesh) {
	time.Sleep(time.Second)
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, n := range m.nodes {
		s := &groups.Members{Known: map[peer.Name]bool{}, Of: map[netip.Addr][]peer.Name{}}
		for _, j := range slices.Sorted(maps.Keys(c.wants)) {
			w := c.wants[j]
			if j == i || !w.Ready {
				continue
			}
			s.Known[nameOf(j)] = true
			if w.All {
				s.All = append(s.All, nameOf(j))
			}
			for _, g := range w.Groups {
				s.Of[g] = append(s.Of[g], nameOf(j))
			}
		}
		n.SetGroups(s)
	}
	synctest.Wait()
	m.got()
}

// ip4 makes a frame of the container of node i to a group.
func ip4(i int, group string, proto, ttl byte, body ...byte) []byte {
	g := netip.MustParseAddr(group).As4()
	src := ipOf(i).As4()
	mac := macOf(i)
	b := append([]byte{1, 0, 0x5e, g[1] & 0x7f, g[2], g[3]}, mac[:]...)
	b = append(b, 8, 0, 0x45, 0, 0, byte(20+len(body)), 0, 0, 0, 0, ttl, proto, 0, 0)
	return append(append(append(b, src[:]...), g[:]...), body...)
}

func igmp(i int, to string, kind byte, group string) []byte {
	g := netip.MustParseAddr(group).As4()
	b := append([]byte{kind, 0, 0, 0}, g[:]...)
	binary.BigEndian.PutUint16(b[2:], ^checksum.Sum(b))
	return ip4(i, to, 2, 1, b...)
}

func data(i int, group string) []byte { return ip4(i, group, 17, 8, make([]byte, 100)...) }

func full(n int) (edges [][2]int) {
	for i := range n {
		for j := range i {
			edges = append(edges, [2]int{j, i})
		}
	}
	return edges
}

// Frames to a group go to the hosts that want it, and to those of which nobody knows; frames of
// link-local groups go to all.
func TestGroupsGoWhereTheyAreWanted(t *testing.T) {
	for _, seal := range []bool{false, true} {
		for name, edges := range map[string][][2]int{"full": full(5), "line": line(5)} {
			c := &clubs{wants: make(map[int]multicast.Wants)}
			inMeshWith(t, meshOptions{mtu: 1376, seal: seal, wanted: c.wanted}, names(5), edges, func(m *mesh) {
				m.meet()
				for i := range m.nodes {
					for j := range m.nodes {
						m.say(i, frameOf(macOf(j), macOf(i), 60, 1)) // so that they have keys if they are sealed
					}
				}
				const film = "239.1.1.1"
				m.got()
				m.say(0, data(0, film))
				m.wantCounts(name+": nobody knows what is wanted", 0, 1, 1, 1, 1)
				time.Sleep(10 * time.Second)
				c.spread(m)
				m.say(0, data(0, film))
				m.wantCounts(name+": nobody wants it", 0, 0, 0, 0, 0)
				m.say(0, data(0, "224.0.0.251"))
				m.wantCounts(name+": link-local", 0, 1, 1, 1, 1)

				m.say(2, igmp(2, film, 0x16, film))
				m.wantCounts(name+": a report stays", 0, 0, 0, 0, 0)
				m.say(4, igmp(4, film, 0x16, film))
				c.spread(m)
				m.say(0, data(0, film))
				m.wantCounts(name+": two want it", 0, 0, 1, 0, 1)
				m.say(0, data(0, "239.9.9.9"))
				m.wantCounts(name+": another group", 0, 0, 0, 0, 0)

				m.say(2, igmp(2, "224.0.0.2", 0x17, film))
				m.wantCounts(name+": a leave stays, and this host is asked", 0, 0, 1, 0, 0)
				time.Sleep(4 * time.Second)
				c.spread(m)
				m.say(0, data(0, film))
				m.wantCounts(name+": one leaves", 0, 0, 0, 0, 1)

				// A querier on node 3 gets reports and all groups.
				m.say(3, igmp(3, "224.0.0.1", 0x11, "0.0.0.0"))
				c.spread(m)
				m.say(0, data(0, "239.9.9.9"))
				m.wantCounts(name+": for the multicast router", 0, 0, 0, 1, 0)
				m.say(1, igmp(1, film, 0x16, film))
				m.wantCounts(name+": a report for it", 0, 0, 0, 1, 0)

				m.restart(1)
				c.mu.Lock()
				delete(c.wants, 1)
				c.mu.Unlock()
				c.spread(m)
				m.say(0, data(0, film))
				m.wantCounts(name+": a host that has just started gets all", 0, 1, 0, 1, 1)
				if s := m.nodes[0].Status().Groups; s.Pruned != 4 || s.Unwanted != 2 || s.Flooded != 3 {
					t.Errorf("counted %+v", s)
				}
			})
		}
	}
}

// A film for three of twenty hosts loads three hosts.
func TestFilmLoadsOnlyItsReceivers(t *testing.T) {
	c := &clubs{wants: make(map[int]multicast.Wants)}
	inMeshWith(t, meshOptions{mtu: 1376, wanted: c.wanted}, names(20), full(20), func(m *mesh) {
		const film, frames = "239.1.1.1", 1000
		receivers := []int{3, 7, 19}
		for _, i := range receivers {
			m.say(i, igmp(i, film, 0x16, film))
		}
		time.Sleep(10 * time.Second)
		c.spread(m)
		before := make([]uint64, 20)
		for i, n := range m.nodes {
			before[i] = n.received()
		}
		for range frames {
			m.say(0, data(0, film))
		}
		for i, f := range m.got() {
			want := 0
			if slices.Contains(receivers, i) {
				want = frames
			}
			if got := m.nodes[i].received() - before[i]; len(f) != want || got != uint64(want) {
				t.Errorf("node %d delivers %d frames and gets %d over links, want %d", i, len(f), got, want)
			}
		}
	})
}

// received returns how many frames came over links.
func (n *node) received() (sum uint64) {
	for _, l := range *n.byName.Load() {
		sum += l.rxFrames.Load()
	}
	return sum
}

// All but one of the hosts are behind another one, as peers that a member makes up are behind it. However
// many of them want a group, or say nothing about groups, a frame crosses the link to that one a few times
// at most, and all get it.
func TestFramesForHostsBehindAnotherAreFew(t *testing.T) {
	const hosts = 30
	edges := [][2]int{{0, 1}}
	for i := 2; i < hosts; i++ {
		edges = append(edges, [2]int{1, i})
	}
	for _, silent := range []bool{false, true} {
		c := &clubs{wants: make(map[int]multicast.Wants)}
		inMeshWith(t, meshOptions{mtu: 1376, wanted: c.wanted}, names(hosts), edges, func(m *mesh) {
			m.meet()
			time.Sleep(10 * time.Second)
			const film = "239.1.1.1"
			for i := 2; i < hosts; i++ {
				if m.say(i, igmp(i, film, 0x16, film)); silent {
					c.mu.Lock()
					delete(c.wants, i)
					c.mu.Unlock()
				}
			}
			c.spread(m)
			if silent {
				for _, n := range m.nodes {
					s := &groups.Members{Known: map[peer.Name]bool{nameOf(0): true, nameOf(1): true}, Of: map[netip.Addr][]peer.Name{}}
					n.SetGroups(s)
				}
				synctest.Wait()
			}
			before := m.nodes[1].received()
			m.say(0, data(0, film))
			for i, f := range m.got() {
				if i > 1 && len(f) != 1 {
					t.Errorf("silent %v: node %d delivers %d frames", silent, i, len(f))
				}
			}
			if n := m.nodes[1].received() - before; n > maxCopies {
				t.Errorf("silent %v: a frame of one container crosses a link %d times", silent, n)
			}
			before = m.nodes[1].received()
			m.say(0, igmp(0, film, 0x16, film))
			if n := m.nodes[1].received() - before; n > maxCopies {
				t.Errorf("silent %v: a report of one container crosses a link %d times", silent, n)
			}
		})
	}
}
