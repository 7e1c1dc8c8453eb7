package fastpath

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
	"github.com/weft-net/weft/router/fastpath/plan"
	"github.com/weft-net/weft/router/wire"
	"github.com/weft-net/weft/router/wireguard"
)

// sealedLink is the link to a peer at 192.0.2.n that says it has a short id and a
// tunnel key.
func sealedLink(n byte, id uint16, key byte) *link {
	now := time.Unix(1, 0)
	own := plan.Offer{Verdict: wire.FastEncrypted, ShortID: 100, Port: 6784, Tunnel: wire.Tunnel{Port: 6785, Key: [32]byte{100}}}
	l := &link{peer: peer.Name{2, n}, secret: [32]byte{n}}
	l.Link, _ = plan.NewLink(plan.Config{
		MTU: 1376, Nonce: newNonce, Own: own, Addr: netip.AddrFrom4([4]byte{192, 0, 2, n}),
	}, now)
	l.Control(now, wire.Control{
		Type: wire.Fast, Verdict: wire.FastEncrypted, ShortID: id, Port: 6784, Tunnel: wire.Tunnel{Port: 6785, Key: [32]byte{key}},
	})
	return l
}

// The kernel has one neighbour for a key: who claims that of another must not take
// its place.
func TestTunnelKeysHaveOneOwner(t *testing.T) {
	victim, thief, liar, mirror := sealedLink(2, 12, 2), sealedLink(1, 11, 2), sealedLink(3, 12, 3), sealedLink(4, 14, 100)
	r := &Controller{log: slog.New(slog.DiscardHandler), routes: &topology.Routes{ByShortID: map[uint16]peer.Name{
		11: thief.peer, 12: victim.peer, 14: mirror.peer,
	}}}
	share := func(have map[netip.Addr]wireguard.Peer, links ...*link) map[netip.Addr]wireguard.Peer {
		set := make(map[peer.Name]*link)
		for _, l := range links {
			set[l.peer] = l
		}
		give := newSharing([32]byte{100})
		r.shareTunnel(give, set, have)
		return give.peers
	}
	first := share(nil, victim)
	at := plan.TunnelAddr(12)
	if len(first) != 1 || first[at] != victim.tunnelPeer() {
		t.Fatalf("alone: %+v", first)
	}
	if got := share(first, thief, victim, liar, mirror); len(got) != 1 || got[at] != victim.tunnelPeer() {
		t.Errorf("with the key, the short id and our own key claimed by others: %+v", got)
	}
	if victim.keyConflict || !thief.keyConflict || !mirror.keyConflict {
		t.Error("status does not say which link's claim is refused")
	}
	if got := share(first, thief); len(got) != 1 || thief.keyConflict {
		t.Errorf("when the other has gone: %+v", got)
	}
}

// A host that came back under another name, or with another short id, has its key
// still.
func TestTunnelFollowsANewShortID(t *testing.T) {
	old, now := sealedLink(2, 12, 2), sealedLink(3, 13, 2)
	old.sessionEnded = time.Unix(2, 0)
	r := &Controller{log: slog.New(slog.DiscardHandler), routes: &topology.Routes{ByShortID: map[uint16]peer.Name{13: now.peer}}}
	have := map[netip.Addr]wireguard.Peer{plan.TunnelAddr(12): old.tunnelPeer()}
	give := newSharing([32]byte{100})
	r.shareTunnel(give, map[peer.Name]*link{now.peer: now}, have)
	r.shareTunnel(give, map[peer.Name]*link{old.peer: old}, have)
	if give.to(have[plan.TunnelAddr(12)]) || len(give.peers) != 1 || give.peers[plan.TunnelAddr(13)] != now.tunnelPeer() {
		t.Errorf("%+v", give.peers)
	}
}
