package fastpath

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/plan"
	"github.com/weft-net/weft/router/mac"
	"github.com/weft-net/weft/router/wire"
)

// What an earlier router left and nobody confirms is looked at again when its time
// is over, although nothing else happens.
func TestAdoptedEntriesHaveATerm(t *testing.T) {
	f := &Controller{opened: time.Unix(100, 0)}
	if next := f.Next(); !next.IsZero() {
		t.Errorf("without any: %v", next)
	}
	f.adopted.Remotes = map[netip.Addr]plan.Remote{netip.MustParseAddr("192.0.2.2"): {Peer: 2}}
	if next := f.Next(); next != f.opened.Add(adoptTimeout) {
		t.Errorf("due at %v", next)
	}
}

// fastTo returns the fast datapath of a link to a peer, in use.
func fastTo(n peer.Name, id uint16, addr netip.Addr) *link {
	now, nonces := time.Unix(100, 0), uint64(0)
	nonce := func() (b [plan.NonceLen]byte) {
		nonces++
		binary.BigEndian.PutUint64(b[:], nonces)
		return b
	}
	l := &link{peer: n, id: id, hop: netdev.Hop{Ifindex: 2, Local: netip.MustParseAddr("192.0.2.1"), Gateway: addr}}
	l.Link, _ = plan.NewLink(plan.Config{MTU: 1376, Epoch: now, Nonce: nonce, Own: plan.Offer{ShortID: 1, Port: 6784}, Addr: addr}, now)
	for _, e := range l.Control(now, wire.Control{Type: wire.Fast, ShortID: id, Port: 6784}) {
		if p, ok := e.(plan.Probe); ok {
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
	r := &Controller{self: self, attached: true, sessionless: map[peer.Name]*link{away: l}, underlayCache: map[int]netdev.Underlay{2: {Ethernet: true}}}
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
		want := r.wantTables()
		if p := want.Peers[2]; (p.Next == 2) != c.fast || p.Direct != c.fast || (want.Remotes[l.Addr()].Peer == 2) != c.fast {
			t.Errorf("%s: %+v", name, want)
		}
	}
}

// Issue 4, item 5: a station that only the kernel hears stays, one that neither
// heard for long goes from both, and one whose place the two have differently is
// written anew, as is one that express leads to past a limit.
func TestStationsAgeByTheirUseInTheKernel(t *testing.T) {
	self, far, other := peer.Name{2, 0, 0, 0, 0, 1}, peer.Name{2, 0, 0, 0, 0, 2}, peer.Name{2, 0, 0, 0, 0, 3}
	const running, boot = 20 * time.Minute, 10 * time.Hour
	r := &Controller{
		self: self, cfg: Config{Start: time.Now().Add(-running)}, macs: mac.New(100),
		routes:  &topology.Routes{ShortIDs: map[peer.Name]uint16{self: 1, far: 2, other: 3}},
		shortID: 1, names: map[uint16]peer.Name{2: far, 3: other}, vethOf: make(map[ethernet.MAC]int), rateLimited: map[int]bool{9: true},
	}
	inKernel := make(map[ethernet.MAC]kernel.MACEntry)
	station := func(n byte, id uint16, byRouter, byKernel time.Duration) ethernet.MAC {
		m := ethernet.MAC{2, 0, 0, 0, 1, n}
		at := far
		if n == 1 {
			at = self
		}
		r.macs.Learn(m, at, running-byRouter)
		inKernel[m] = kernel.MACEntry{Peer: id, Seen: uint64(boot - byKernel)}
		return m
	}
	own := station(1, 1, 15*time.Minute, time.Minute)
	heard := station(2, 2, 15*time.Minute, time.Minute)
	slow := station(3, 2, time.Minute, 15*time.Minute)
	silent := station(4, 2, 15*time.Minute, 15*time.Minute)
	moved := station(5, 3, time.Minute, time.Minute)
	strange := station(6, 77, 15*time.Minute, 0) // of a peer that nobody knows
	missing := ethernet.MAC{2, 0, 0, 0, 1, 7}
	r.macs.Learn(missing, far, running)
	// The kernel leads frames for it past a queue that was put there since.
	limited := ethernet.MAC{2, 0, 0, 0, 1, 8}
	r.macs.Learn(limited, self, running)
	inKernel[limited] = kernel.MACEntry{Peer: 1, Ifindex: 9, Flags: kernel.MACExpress, Seen: uint64(boot)}

	wrong := r.compareMACs(inKernel, boot)
	for m, want := range map[ethernet.MAC]struct {
		id    uint16
		age   time.Duration
		wrong bool
	}{
		own: {1, time.Minute, false}, heard: {2, time.Minute, false}, slow: {2, time.Minute, false},
		silent: {0, 0, true}, moved: {2, time.Minute, true}, strange: {0, 0, true}, missing: {2, 0, true}, limited: {1, 0, true},
	} {
		if id := r.placeOf(m); id != want.id {
			t.Errorf("%s is behind peer %d, want %d", m, id, want.id)
		}
		if slices.Contains(wrong, m) != want.wrong {
			t.Errorf("%s is to be written: %v, want %v", m, !want.wrong, want.wrong)
		}
		for _, e := range r.macs.Entries(r.since()) {
			if e.MAC == m && (e.Age < want.age || e.Age > want.age+time.Minute) {
				t.Errorf("%s was seen %v ago, want %v", m, e.Age, want.age)
			}
		}
	}
}
