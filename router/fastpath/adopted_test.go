package fastpath_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/kerneltest"
	"github.com/weft-net/weft/router/wire"
)

// relaunch makes a mesh of this host, peer 2 and peer 3, with an address behind each, and
// ends the router.
func relaunch(t *testing.T) *kerneltest.Machine {
	m := newMachine(t)
	m.AddContainer(20)
	r := start(t, m, defaults)
	r.routes([]byte{2, 3}, nil)
	r.meet(2, 3)
	pass(time.Second)
	m.See(macOf(1, 1), 1, 20)
	for _, n := range []byte{2, 3} {
		r.macs.Learn(macOf(n, 1), nameOf(n), time.Hour+time.Second)
		r.Learned(macOf(n, 1))
	}
	pass(time.Second)
	r.want(kerneltest.Express, 2, 3)
	r.stop()
	m.Log()
	return m
}

// wantMAC checks that the kernel knows the place of an address.
func (r *router) wantMAC(n byte) {
	r.t.Helper()
	if e, ok := r.m.MAC(macOf(n, 1)); !ok || e.Peer != uint16(n) {
		r.t.Errorf("the kernel has the address behind peer %d at %d, %v", n, e.Peer, ok)
	}
}

// Until the session with a neighbour begins, routes lead to it over another. Frames keep
// going straight to it, as its kernel answers.
func TestRelaunchedRouterDoesNotRouteAround(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, relaunch(t), defaults)
		r.routes([]byte{2, 3}, map[byte]byte{2: 3})
		r.meet(3)
		pass(10 * time.Second)
		r.wantOpen(2)
		if next := r.m.NextHop(2); next != addrOf(2) {
			t.Errorf("frames go to %s", next)
		}
		r.meet(2)
		r.routes([]byte{2, 3}, nil)
		pass(time.Minute)
		r.want(kerneltest.Express, 2, 3)
		r.never("peer 2: router", "peer 2: deleted", "peer 2: device", "peer 3: router", "peer 3: deleted", "peer 3: device")
	})
}

// A path that broke while no router ran is left as soon as frames have another way, by sleeve or
// over a relay.
func TestRelaunchedRouterFindsABrokenPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := relaunch(t)
		r := open(t, m, defaults)
		r.silence(2, true)
		r.run()
		pass(time.Second)
		r.wantOpen(2)
		if n := len(r.m.OwnRoutes()); n != 2 {
			t.Errorf("%d routes to neighbours that only the kernel knows", n)
		}
		pass(3 * time.Second)
		r.wantOpen(2) // to drop them would be no better
		r.routes([]byte{2, 3}, map[byte]byte{2: 3})
		pass(time.Second)
		r.wantClosed(2)
		if n := len(r.m.OwnRoutes()); n != 1 {
			t.Errorf("%d routes after one path broke", n)
		}
		r.wantOpen(3)
		r.meet(3)
		pass(time.Second)
		if next := r.m.NextHop(2); next != addrOf(3) {
			t.Errorf("frames go to %s", next)
		}
	})
}

// On a busy host echoes are late, above all while routers start.
func TestRelaunchedRouterWaitsForLateEchoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := open(t, relaunch(t), defaults)
		r.silence(2, true)
		r.run()
		r.Routes(r.emptyRoutes())
		pass(20 * time.Second)
		r.silence(2, false)
		pass(10 * time.Second)
		r.routes([]byte{2, 3}, map[byte]byte{2: 3})
		pass(time.Second)
		if next := r.m.NextHop(2); next != addrOf(2) {
			t.Errorf("frames go to %s although the kernel of peer 2 echoes again", next)
		}
		r.never("peer 2: router", "peer 2: deleted", "peer 2: device")
	})
}

// The mesh needs a while to confirm the short id of a router that was launched again. Until
// then it keeps the one that it had, says so to neighbours, and no address is forgotten.
func TestRelaunchedRouterKeepsItsShortID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, relaunch(t), defaults)
		none := r.emptyRoutes()
		r.Routes(none)
		r.meet(2)
		pass(time.Second)
		if c := r.lastOffer(2); c.Verdict != wire.FastWilling || c.ShortID != 1 {
			t.Errorf("offer %+v", c)
		}
		if id := r.m.Self(); id != 1 {
			t.Errorf("the kernel has the short id %d", id)
		}
		for n := byte(1); n <= 3; n++ {
			r.wantMAC(n)
		}
		// Lanes learn addresses before the routes have the ids of their peers.
		r.macs.Learn(macOf(2, 1), nameOf(2), time.Hour+time.Minute)
		r.Learned(macOf(2, 1))
		r.macs.Learn(macOf(1, 1), nameOf(1), time.Hour+time.Minute)
		r.Learned(macOf(1, 1))
		pass(time.Second)
		for n := byte(1); n <= 3; n++ {
			r.wantMAC(n)
		}
		if e, _ := r.m.MAC(macOf(1, 1)); e.Ifindex != 20 {
			t.Errorf("the container's frames no longer bypass the bridge: %+v", e)
		}
		r.routes([]byte{2, 3}, nil)
		r.meet(3)
		pass(time.Minute)
		for n := byte(1); n <= 3; n++ {
			r.wantMAC(n)
		}
		r.never("peer 2: router", "peer 2: deleted", "peer 3: router", "peer 3: deleted")
	})
}

// The mesh forgets a peer whose router is away after a minute. The kernel keeps the
// addresses behind it for as long as the path.
func TestForgottenPeerKeepsItsAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWithPeer2(t, newMachine(t))
		m := macOf(2, 1)
		r.macs.Learn(m, nameOf(2), time.Hour)
		r.Learned(m)
		pass(2 * time.Minute) // longer than anything is adopted
		r.Down(nameOf(2))
		pass(time.Second)
		r.routes(nil, nil)
		for range 5 {
			pass(time.Minute)
			r.m.See(m, 2, 0)
		}
		r.wantMAC(2)
		r.wantOpen(2)
		other := macOf(2, 2) // that the kernel sees meanwhile
		r.m.See(other, 2, 0)
		pass(time.Second)
		if e, ok := r.m.MAC(other); !ok || e.Peer != 2 {
			t.Errorf("a new address behind the peer: %+v, %v", e, ok)
		}
		pass(6 * time.Minute)
		r.wantClosed(2)
		pass(time.Minute)
		if _, ok := r.m.MAC(m); ok {
			t.Error("the kernel has the address of a peer that is gone")
		}
	})
}

// A neighbour that comes back by a relayed session has no address at first.
func TestSessionComesBackRelayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWithPeer2(t, newMachine(t))
		r.m.Log()
		r.Down(nameOf(2))
		pass(time.Second)
		s := sessionOf(2)
		relayed := fastpath.Session{Secret: s.Secret, Key: s.Key}
		r.Up(nameOf(2), relayed)
		r.Control(nameOf(2), wire.Control{Type: wire.Fast, ShortID: 2, Port: port})
		pass(time.Second)
		r.Path(nameOf(2), s.Addr, 1500)
		pass(time.Second)
		r.wantOpen(2)
		r.never("peer 2: router", "peer 2: deleted", "peer 2: device")
		r.Down(nameOf(2))
		relayed.Key = peer.Key{99}
		r.Up(nameOf(2), relayed)
		pass(soon)
		r.want(kerneltest.ToRouter, 2)
	})
}

// A neighbour that no longer wants the fast path says so in its first offer.
func TestRelaunchedRouterHearsThatAPeerIsUnwilling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, relaunch(t), defaults)
		pass(time.Second)
		r.wantOpen(2)
		r.Up(nameOf(2), sessionOf(2))
		r.Control(nameOf(2), wire.Control{Type: wire.Fast, Verdict: wire.FastOff, ShortID: 2, Port: port})
		pass(soon)
		r.wantClosed(2)
		r.wantOpen(3)
	})
}
