package router

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fast"
	"github.com/weft-net/weft/router/fastdp"
	"github.com/weft-net/weft/router/wire"
)

// Where the kernel has no part in it, nothing filters what containers send: a
// frame that looks like a tag must not be taken for one.
func TestContainersCanNotSendTags(t *testing.T) {
	inMesh(t, names(2), line(2), func(m *mesh) {
		n := m.nodes[0]
		n.fast = &fastpath{echoes: make(chan echo, 1)}
		for _, op := range []fastdp.TagOp{fastdp.TagRelay, fastdp.TagEcho, 3} {
			before := n.dropped(DropBadSource)
			m.say(0, append(fastdp.AppendTag(nil, fastdp.Tag{Op: op, Src: 1, Dst: 2, TTL: 9}), frameOf(ethernet.Broadcast, macOf(0), 60, 1)...))
			if n.dropped(DropBadSource) != before+1 || len(n.fast.echoes) != 0 {
				t.Errorf("a tag with op %d: %+v", op, n.Status())
			}
		}
		n.fast = nil
	})
}

// What an earlier router left and nobody confirms is looked at again when its time
// is over, although nothing else happens.
func TestAdoptedEntriesHaveATerm(t *testing.T) {
	f := &fastpath{began: time.Unix(100, 0)}
	if next := f.next(); !next.IsZero() {
		t.Errorf("without any: %v", next)
	}
	f.adopted.Remotes = map[netip.Addr]fast.Remote{netip.MustParseAddr("192.0.2.2"): {Peer: 2}}
	if next := f.next(); next != f.began.Add(adoptStay) {
		t.Errorf("due at %v", next)
	}
}

// fastTo returns the fast datapath of a link to a peer, in use.
func fastTo(n peer.Name, id uint16, addr netip.Addr) *fastLink {
	now, nonces := time.Unix(100, 0), uint64(0)
	nonce := func() (b [fast.NonceLen]byte) {
		nonces++
		binary.BigEndian.PutUint64(b[:], nonces)
		return b
	}
	l := &fastLink{peer: n, id: id, hop: netdev.Hop{Ifindex: 2, Local: netip.MustParseAddr("192.0.2.1"), Gateway: addr}}
	l.Link, _ = fast.NewLink(fast.Config{MTU: 1376, Epoch: now, Nonce: nonce, Own: fast.Offer{ShortID: 1, Port: 6784}, Addr: addr}, now)
	for _, e := range l.Control(now, wire.Control{Type: wire.Fast, ShortID: id, Port: 6784}) {
		if p, ok := e.(fast.Probe); ok {
			l.Echoed(now, p.Nonce, true)
		}
	}
	return l
}

// Issue 4, item 6: what goes by the kernel goes on when the session has ended,
// whether the routes still lead to the peer or no longer do, until it is reached
// over another.
func TestPeerWhoseRouterIsAwayStaysFast(t *testing.T) {
	self, away, other := peer.Name{2, 0, 0, 0, 0, 1}, peer.Name{2, 0, 0, 0, 0, 2}, peer.Name{2, 0, 0, 0, 0, 3}
	l := fastTo(away, 2, netip.MustParseAddr("192.0.2.2"))
	if !l.Up() {
		t.Fatal("the link is not in use")
	}
	r := &Router{self: self, fast: &fastpath{away: map[peer.Name]*fastLink{away: l}, bridged: map[int]bool{2: false}}}
	r.cfg.MTU = 1376
	all := map[peer.Name]uint16{self: 1, away: 2, other: 3}
	for name, c := range map[string]struct {
		ids  map[peer.Name]uint16
		next map[peer.Name]peer.Name
		fast bool
	}{
		"routes as they were": {all, map[peer.Name]peer.Name{away: away, other: other}, true},
		"without the peer":    {map[peer.Name]uint16{self: 1, other: 3}, map[peer.Name]peer.Name{other: other}, true},
		"over another":        {all, map[peer.Name]peer.Name{away: other, other: other}, false},
	} {
		r.routes = &topology.Routes{Unicast: c.next, ShortIDs: c.ids}
		want := r.wantFast()
		if p := want.Peers[2]; (p.Next == 2) != c.fast || p.Direct != c.fast || (want.Remotes[l.Addr()].Peer == 2) != c.fast {
			t.Errorf("%s: %+v", name, want)
		}
	}
}
