package fastpath_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/router/fastpath/kerneltest"
)

// A router on the way to a peer is replaced, or that of the peer itself: routes do not reach
// the peer for a while, and the kernels on the way still forward.
func TestPeerBehindAReplacedRouterStaysFast(t *testing.T) {
	for name, c := range map[string]struct {
		away func(r *router) // reports when the router goes
		back func(r *router) // and when it is back
	}{
		"of the relay": {
			func(r *router) {
				r.Down(nameOf(2))
				r.Routes(unreached(r.routesTo([]byte{2, 3}, nil), 2, 3))
			},
			func(r *router) { r.meet(2) },
		},
		"of the relay, and routes change first": {
			func(r *router) {
				r.Routes(unreached(r.routesTo([]byte{2, 3}, nil), 2, 3))
				pass(time.Second)
				r.Down(nameOf(2))
			},
			func(r *router) { r.meet(2) },
		},
		"of the peer": {
			func(r *router) { r.Routes(unreached(r.routesTo([]byte{2, 3}, nil), 3)) },
			func(*router) {},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := start(t, newMachine(t), defaults)
				r.routes([]byte{2, 3}, map[byte]byte{3: 2})
				r.meet(2)
				pass(time.Second)
				m := macOf(3, 1)
				r.macs.Learn(m, nameOf(3), time.Hour+time.Second)
				r.Learned(m)
				pass(time.Second)
				before := r.m.Peer(3)
				r.m.Log()
				c.away(r)
				if !r.Keeps(nameOf(3)) {
					t.Error("Keeps() is false")
				}
				pass(30 * time.Second)
				c.back(r)
				pass(time.Second)
				r.Routes(unreached(r.routesTo([]byte{2, 3}, nil), 3))
				pass(time.Second)
				r.routes([]byte{2, 3}, map[byte]byte{3: 2})
				pass(time.Minute)
				r.never("peer 3: router", "peer 3: deleted", "peer 2: router", "peer 2: deleted")
				r.wantMAC(3)
				if after := r.m.Peer(3); after != before {
					t.Errorf("before %+v, after %+v", before, after)
				}
			})
		})
	}
}

// What is kept for a peer that routes do not reach ends when the mesh forgets or bans the
// peer, and with the path to the neighbour before it.
func TestPeerBehindAReplacedRouterGoesForGood(t *testing.T) {
	for name, end := range map[string]func(r *router){
		"the mesh forgets it":      func(r *router) { r.routes([]byte{2}, nil) },
		"the neighbour is silent":  func(r *router) { r.silence(2, true) },
		"the neighbour is refused": func(r *router) { r.Reject(nameOf(2)) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := start(t, newMachine(t), defaults)
				r.routes([]byte{2, 3}, map[byte]byte{3: 2})
				r.meet(2)
				pass(time.Second)
				m := macOf(3, 1)
				r.macs.Learn(m, nameOf(3), time.Hour+time.Second)
				r.Learned(m)
				r.Routes(unreached(r.routesTo([]byte{2, 3}, nil), 3))
				pass(time.Second)
				r.want(kerneltest.Express, 3)
				end(r)
				pass(5 * time.Second)
				r.want(kerneltest.ToRouter, 3)
				if _, known := r.macs.Lookup(m, time.Hour); known || r.Keeps(nameOf(3)) {
					t.Errorf("its MAC address is known: %v; kept: %v", known, r.Keeps(nameOf(3)))
				}
			})
		})
	}
}
