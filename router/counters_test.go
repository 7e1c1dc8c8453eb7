package router

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/wire"
)

// queues are all queues of the node's TAP.
func (n *node) queues() []*memTAP { return append([]*memTAP{n.tap}, n.more...) }

// watch checks every packet on the wire from now on.
func (m *mesh) watch(spy func(from, to netip.AddrPort, p []byte)) {
	m.f.mu.Lock()
	defer m.f.mu.Unlock()
	m.f.spy = spy
}

// TestCountersNeverRepeat looks at every packet on the wire while all lanes of
// three routers send at once, over renewals, another session and restarts of
// routers that keep their names: no counter is used twice under one key, and
// packets from before a restart are worthless after it.
func TestCountersNeverRepeat(t *testing.T) {
	const queues = 3
	inMeshWith(t, meshOptions{mtu: 1376, queues: queues, renewPackets: 3000}, names(3), line(3), func(m *mesh) {
		type use struct {
			to     netip.AddrPort
			header [wire.HeaderLen]byte // with key, lane and counter; the type is left out
		}
		used := map[use]bool{}
		keys := map[netip.AddrPort]map[uint32]bool{}
		lanes := map[netip.AddrPort]map[uint8]bool{}
		var old [][]byte // to node 1
		replay := false
		m.watch(func(from, to netip.AddrPort, p []byte) {
			if replay {
				return
			}
			u := use{to, [wire.HeaderLen]byte(p)}
			u.header[0] = 0
			h, err := wire.ParseHeader(p)
			if err != nil || used[u] {
				t.Errorf("to %s: %+v was used before (%v)", to, h, err)
			}
			used[u] = true
			if keys[to] == nil {
				keys[to] = map[uint32]bool{}
			}
			keys[to][h.Index] = true
			if lanes[from] == nil {
				lanes[from] = map[uint8]bool{}
			}
			lanes[from][h.Lane] = true
			if to == m.nodes[1].addr {
				old = append(old, bytes.Clone(p))
			}
		})
		s := kinds[0]
		s.Payload = make([]byte, 5*1300)
		// load makes every queue of every node send to all and to both others.
		load := func() {
			for range 50 {
				for i, n := range m.nodes {
					for _, q := range n.queues() {
						q.in <- memFrame{b: frameOf(ethernet.Broadcast, macOf(i), 60, 1)}
						for j := range m.nodes {
							if j != i {
								for range 3 { // more than a sparse flow sends at once
									f, _ := gsoPacket(t, macOf(i), macOf(j), s, 1300)
									q.in <- f
								}
								q.in <- memFrame{b: frameOf(macOf(j), macOf(i), 900, 2)}
							}
						}
					}
				}
				time.Sleep(200 * time.Millisecond)
			}
			synctest.Wait()
			m.got()
		}
		load()
		for i := range m.nodes {
			m.restart(i)
			load()
		}
		m.join(1) // as with another session
		time.Sleep(3 * time.Second)
		load()

		m.restart(1)
		replay = true
		m.got()
		for _, p := range old {
			m.f.send(m.nodes[0].addr, m.nodes[1].addr, p)
			m.f.send(m.nodes[2].addr, m.nodes[1].addr, p)
		}
		synctest.Wait()
		if got := m.got(); len(got[0])+len(got[1])+len(got[2]) > 0 {
			t.Errorf("%d frames from before a restart were taken after it", len(got[0])+len(got[1])+len(got[2]))
		}

		for i, n := range m.nodes {
			// Lane 0 sends probes, each queue has one lane for bulk flows and one
			// for sparse ones, and so have packets from links.
			want := []uint8{0}
			for q := range uint8(queues) {
				want = append(want, 1+2*q, 2+2*q)
			}
			if i == 1 {
				want = append(want, 1+2*queues, 2+2*queues)
			}
			for _, l := range want {
				if !lanes[n.addr][l] {
					t.Errorf("node %d has sent nothing on lane %d", i, l)
				}
			}
			if len(keys[n.addr]) < 5 {
				t.Errorf("only %d keys were used towards node %d", len(keys[n.addr]), i)
			}
		}
	})
}

// TestRenewalsLoseNothing: keys are renewed for the count of packets and for
// their age while the links are full, packets are long under way and overtake
// each other. None is lost.
func TestRenewalsLoseNothing(t *testing.T) {
	inMeshWith(t, meshOptions{mtu: 1376, renewPackets: 2000}, names(2), line(2), func(m *mesh) {
		m.meet()
		m.f.mu.Lock()
		m.f.late = 40 * time.Millisecond
		m.f.mu.Unlock()
		time.Sleep(5 * time.Second)
		var before [2]map[string]uint64 // drops while the link came up
		for i, n := range m.nodes {
			before[i] = n.Status().Links[0].Drops
		}
		var used [2][]uint32
		m.watch(func(_, to netip.AddrPort, p []byte) {
			h, _ := wire.ParseHeader(p)
			for i, n := range m.nodes {
				if n.addr == to && !slices.Contains(used[i], h.Index) {
					used[i] = append(used[i], h.Index)
				}
			}
		})
		s := kinds[0]
		s.Payload = make([]byte, 20*1300)
		var gsoPackets [2]memFrame
		for i := range gsoPackets {
			gsoPackets[i], _ = gsoPacket(t, macOf(i), macOf(1-i), s, 1300)
		}
		// 600 packets a second each way for 30 seconds, then few for four minutes.
		sent := [2]int{}
		for i := range 900 + 240*4 {
			for j, n := range m.nodes {
				if i < 900 {
					n.tap.in <- gsoPackets[j]
					sent[1-j] += 20
				} else {
					n.tap.in <- memFrame{b: frameOf(macOf(1-j), macOf(j), 300, 1)}
					sent[1-j]++
				}
			}
			if i < 900 {
				time.Sleep(time.Second / 30)
			} else {
				time.Sleep(time.Second / 4)
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		m.wantCounts("over renewals", sent[0], sent[1])
		for i, n := range m.nodes {
			if s := n.Status(); s.Drops != nil || !maps.Equal(s.Links[0].Drops, before[i]) || s.LinksLost != 0 {
				t.Errorf("node %d: %+v", i, s)
			}
			if len(used[i]) < 8 {
				t.Errorf("only %d keys were used towards node %d", len(used[i]), i)
			}
		}
	})
}
