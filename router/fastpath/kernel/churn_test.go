package kernel

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/fastpath/plan"
)

// churn is a mesh of 50 peers as host 1 sees it. Only host 2 really exists.
type churn struct {
	h    *host
	rng  *rand.Rand
	have plan.Tables
	ids  map[peer.Name]uint16
	next map[peer.Name]peer.Name
	hops map[peer.Name]plan.Hop
}

const (
	churnPeers      = 50
	churnNeighbours = 20
)

func churnName(i int) peer.Name { return peer.Name{2, 0, 0, 0, 0, byte(i)} }

func newChurn(rng *rand.Rand, h, o *host, express bool) *churn {
	c := &churn{
		h: h, rng: rng, have: plan.Tables{Peers: make(map[uint16]plan.Peer), Remotes: make(map[netip.Addr]plan.Remote)},
		ids: make(map[peer.Name]uint16), next: make(map[peer.Name]peer.Name), hops: make(map[peer.Name]plan.Hop),
	}
	for i := 1; i <= churnPeers; i++ {
		c.ids[churnName(i)] = uint16(i)
	}
	for i := 2; i <= churnNeighbours; i++ {
		c.hops[churnName(i)] = plan.Hop{
			Remote: netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), Local: h.outer(o.id, lab{}).Addr(),
			Gateway: o.outer(h.id, lab{}).Addr(), Ifindex: h.under[o.id], MTU: labMTU, Up: true, Express: express,
		}
	}
	there := c.hops[churnName(2)]
	there.Remote = o.outer(h.id, lab{}).Addr()
	c.hops[churnName(2)] = there
	c.next[churnName(2)] = churnName(2)
	return c
}

// change changes a few peers other than 2: they come, go, move to another next
// hop or change ids, neighbours lose and find the fast path, MAC addresses move.
func (c *churn) change(t *testing.T) {
	other := func() int { return 3 + c.rng.IntN(churnPeers-2) }
	for range 1 + c.rng.IntN(5) {
		n := churnName(other())
		switch c.rng.IntN(5) {
		case 0:
			delete(c.ids, n)
			delete(c.next, n)
		case 1:
			c.ids[n] = uint16(n[5]) + 100*uint16(c.rng.IntN(10))
		case 2:
			c.next[n] = churnName(2 + c.rng.IntN(churnNeighbours-1))
		case 3:
			if hop, ok := c.hops[n]; ok {
				hop.Up = !hop.Up
				c.hops[n] = hop
			}
		case 4:
			mac := [6]byte{2, 7, 0, 0, 0, byte(c.rng.IntN(200))}
			if err := c.h.PutMAC(mac, MACEntry{Peer: uint16(other())}); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := plan.Plan(churnName(1), c.ids, c.next, c.hops, func(peer.Name) []peer.Name { return nil })
	if err := want.Apply(c.have, Maps{c.h.Datapath}); err != nil {
		t.Fatal(err)
	}
}

// readBuffer makes the buffer of a socket larger than net.core.rmem_max may allow, so
// that no datagram is lost there.
func readBuffer(t *testing.T, c *net.UDPConn, bytes int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bytes) })
	if err := errors.Join(err, set); err != nil {
		t.Fatal(err)
	}
}

// A flow whose peer stays as it is loses no packet while a mesh of 50 peers
// changes around it a thousand times.
func TestChurnLosesNoPacketOfOthers(t *testing.T) {
	for _, express := range []bool{true, false} {
		hosts := newLab(t, 2, lab{express: express})
		a, b := hosts[0], hosts[1]
		c := newChurn(seed.Rand(t), a, b, express)
		c.change(t)
		src, dst := listen(t, a.c, a.addr()), listen(t, b.c, b.addr())
		readBuffer(t, dst, 8<<20)
		to := dst.LocalAddr().(*net.UDPAddr).AddrPort()
		const rounds, burst = 1000, 5
		got := make(chan int, 1)
		go func() {
			buf := make([]byte, 100)
			for n := 0; ; n++ {
				_ = dst.SetReadDeadline(time.Now().Add(timeout))
				if k, err := dst.Read(buf); err != nil || k == 3 { // "end"
					got <- n
					return
				}
			}
		}()
		for range rounds {
			for range burst {
				if _, err := src.WriteToUDPAddrPort([]byte("a flow that nothing happens to"), to); err != nil {
					t.Fatal(err)
				}
			}
			c.change(t)
		}
		if _, err := src.WriteToUDPAddrPort([]byte("end"), to); err != nil {
			t.Fatal(err)
		}
		if n := <-got; n != rounds*burst {
			t.Errorf("express %v: %d of %d packets came", express, n, rounds*burst)
		}
		if tr := a.traffic(2); tr.TxPackets < rounds*burst {
			t.Errorf("express %v: only %d went by the kernel", express, tr.TxPackets)
		}
	}
}
