package fastpath_test

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/kerneltest"
	"github.com/weft-net/weft/router/fastpath/plan"
)

// soon is how long after a report the kernel must carry nothing: far less than the two
// seconds after which probes would show that a path is gone.
const soon = 50 * time.Millisecond

// wantClosed checks that nothing is carried to a peer in clear text, nor accepted from it.
func (r *router) wantClosed(n byte) {
	r.t.Helper()
	r.want(kerneltest.ToRouter, n)
	if _, ok := r.m.Remote(addrOf(n)); ok {
		r.t.Errorf("frames of peer %d are still accepted", n)
	}
}

func (r *router) wantOpen(n byte) {
	r.t.Helper()
	r.want(kerneltest.Express, n)
	if _, ok := r.m.Remote(addrOf(n)); !ok {
		r.t.Errorf("frames of peer %d are not accepted", n)
	}
}

// A peer that does not want this host, or that this host does not want, is cut off
// although its kernel still echoes.
func TestRejectedPeerIsCutOff(t *testing.T) {
	for name, end := range map[string]func(*router){
		"in a session": func(r *router) { r.Reject(nameOf(2)) },
		"while it is away": func(r *router) {
			r.Down(nameOf(2))
			pass(10 * time.Second)
			r.wantOpen(2)
			r.Reject(nameOf(2))
		},
		"and at once away": func(r *router) { r.Reject(nameOf(2)); r.Down(nameOf(2)) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := start(t, newMachine(t), defaults)
				r.routes([]byte{2, 3}, map[byte]byte{3: 2})
				r.meet(2)
				pass(time.Second)
				r.want(kerneltest.Express, 3)
				end(r)
				pass(soon)
				r.wantClosed(2)
				r.want(kerneltest.ToRouter, 3) // behind it
				if r.Keeps(nameOf(2)) {
					t.Error("Keeps() is true")
				}
				r.meet(2) // it is wanted again
				pass(time.Second)
				r.wantOpen(2)
			})
		})
	}
}

// Without a session, a refusal at the peer's own address ends a path in clear text. It is
// not authenticated, so it does nothing against a session, and only who listens on the
// port of the peer's router is believed.
func TestHandshakeIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		away, dialled bool
		from          byte
		closed        bool
	}{
		"by the host that was dialled":       {true, true, 2, true},
		"of somebody who dialled":            {true, false, 2, false},
		"by another host":                    {true, true, 3, false},
		"while there is a session":           {false, true, 2, false},
		"of somebody who dialled, a session": {false, false, 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startWithPeer2(t, newMachine(t))
				if c.away {
					r.Down(nameOf(2))
				}
				pass(time.Second)
				r.Refused(netip.AddrFrom16(addrOf(c.from).As16()), c.dialled) // as a socket for IPv6 has it
				pass(soon)
				if c.closed {
					r.wantClosed(2)
				} else {
					r.wantOpen(2)
				}
			})
		})
	}
}

// The two ends of a tunnel know each other's keys, so a refusal that nobody signed does
// not end it.
func TestRefusalDoesNotEndATunnel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newMachine(t), encrypted())
		r.routes([]byte{2}, nil)
		r.meetEncrypted(2, 2, key(2))
		pass(2 * time.Second)
		secret := r.m.TunnelPeers()[plan.TunnelAddr(2)].Secret
		r.Down(nameOf(2))
		r.Refused(addrOf(2), true)
		pass(5 * time.Second)
		r.want(kerneltest.Device, 2)
		if got := r.m.TunnelPeers()[plan.TunnelAddr(2)].Secret; got != secret {
			t.Error("the key is not that of the last session")
		}
		pass(10 * time.Minute)
		r.want(kerneltest.ToRouter, 2) // not for ever
		r.wantTunnel(2, [32]byte{})
	})
}

// Nobody tells a host whose own router is away that a peer is not wanted any more. So its
// kernel stops after ten minutes, in both directions, and not a minute after the router's
// last sign of life.
func TestKernelStopsWithoutARouter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := start(t, m, defaults)
		r.routes([]byte{2}, nil)
		r.meet(2)
		pass(time.Hour)
		r.wantOpen(2)
		r.stop()
		pass(8 * time.Minute)
		r.wantOpen(2)
		pass(2 * time.Minute)
		r.wantClosed(2)
		r = start(t, m, defaults)
		r.routes([]byte{2}, nil)
		r.meet(2)
		pass(time.Second)
		r.wantOpen(2)
	})
}

// A router that was relaunched has no session yet that could contradict a refusal, so
// also somebody who dials from the peer's address ends what it found in the kernel.
func TestRefusalEndsWhatAnEarlierRouterLeft(t *testing.T) {
	for _, dialled := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			m := newMachine(t)
			r := start(t, m, defaults)
			r.routes([]byte{2, 3}, nil)
			r.meet(2, 3)
			pass(time.Second)
			r.stop()
			r = start(t, m, defaults)
			pass(time.Second)
			r.wantOpen(2)
			r.Refused(addrOf(2), dialled)
			pass(soon)
			r.wantClosed(2)
			r.wantOpen(3)
		})
	}
}

// The peer is rejected before its path came up again, while the kernel has what an earlier
// router left.
func TestRejectedPeerIsCutOffFromWhatAnEarlierRouterLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := startWithPeer2(t, m)
		r.stop()
		r = start(t, m, defaults)
		r.Up(nameOf(2), sessionOf(2))
		pass(time.Second)
		r.wantOpen(2)
		r.Reject(nameOf(2))
		pass(soon)
		r.wantClosed(2)
	})
}

// A peer that is banned while its router is away, or before a relaunched router has a session
// with it, is cut off at once.
func TestBannedPeerThatIsAwayIsCutOff(t *testing.T) {
	for name, away := range map[string]func(t *testing.T, r *router) *router{
		"its router is away": func(_ *testing.T, r *router) *router {
			r.Down(nameOf(2))
			return r
		},
		"this router was away": func(t *testing.T, r *router) *router {
			r.stop()
			return start(t, r.m, defaults)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := start(t, newMachine(t), defaults)
				r.routes([]byte{2, 3}, nil)
				r.meet(2, 3)
				pass(time.Second)
				r = away(t, r)
				pass(time.Second)
				r.PeersBanned(func(peer.Key) bool { return false })
				pass(time.Second)
				r.wantOpen(2)
				r.PeersBanned(func(k peer.Key) bool { return k == peer.Key{2} })
				pass(soon)
				r.wantClosed(2)
				r.wantOpen(3)
			})
		})
	}
}

// A relaunched router finds another key at an address than its predecessor.
func TestAddressHasAnotherKeyAfterARelaunch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWithPeer2(t, newMachine(t))
		r.stop()
		r = start(t, r.m, defaults)
		pass(time.Second)
		r.wantOpen(2)
		s := sessionOf(2)
		s.Key = peer.Key{99}
		r.Up(nameOf(2), s)
		pass(soon)
		r.want(kerneltest.ToRouter, 2)
	})
}

// Who comes back under the name of a peer that is away continues its path only with the
// peer's key.
func TestNameComesBackWithAnotherKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWithPeer2(t, newMachine(t))
		r.Down(nameOf(2))
		pass(time.Second)
		r.wantOpen(2)
		s := sessionOf(2)
		s.Key = peer.Key{99}
		r.Up(nameOf(2), s)
		pass(soon)
		r.want(kerneltest.ToRouter, 2) // it has not said that it is willing
	})
}

// An address has one peer: who has it now ends the path to who had it.
func TestAnotherPeerHasTheAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newMachine(t), defaults)
		r.routes([]byte{2, 3}, nil)
		r.meet(2)
		pass(time.Second)
		r.Down(nameOf(2))
		s := sessionOf(3)
		s.Addr = addrOf(2)
		r.Up(nameOf(3), s)
		pass(soon)
		r.want(kerneltest.ToRouter, 2)
		if r.Keeps(nameOf(2)) {
			t.Error("Keeps() is true")
		}
	})
}

// What an earlier router left in the kernel is valid for its passwords and its settings.
func TestStateOfAnotherConfigurationIsRemoved(t *testing.T) {
	seed := []byte("seed")
	trusted := netip.PrefixFrom(addrOf(0), 24)
	configure := func(seed []byte, passwords []string, trusted ...netip.Prefix) fastpath.Settings {
		s := defaults
		s.Encrypt, s.Trusted = len(passwords) > 0, trusted
		s.Binding = fastpath.Bind(seed, passwords, s)
		return s
	}
	many := []string{"1", "2", "3", "4", "5", "6", "7", "8", "9"}
	for name, c := range map[string]struct {
		before, after fastpath.Settings
		keep          bool
	}{
		"nothing changed":         {configure(seed, []string{"a"}, trusted), configure(seed, []string{"a"}, trusted), true},
		"no password":             {configure(seed, nil), configure(seed, nil), true},
		"a password is accepted":  {configure(seed, []string{"a"}, trusted), configure(seed, []string{"b", "a"}, trusted), true},
		"another password":        {configure(seed, []string{"a"}, trusted), configure(seed, []string{"b"}, trusted), false},
		"a password is dropped":   {configure(seed, []string{"a", "b"}, trusted), configure(seed, []string{"b"}, trusted), false},
		"a first password":        {configure(seed, nil, trusted), configure(seed, []string{"a"}, trusted), false},
		"the password is dropped": {configure(seed, []string{"a"}, trusted), configure(seed, nil, trusted), false},
		"one of many passwords":   {configure(seed, many, trusted), configure(seed, append(many[:8:8], "x"), trusted), false},
		"other trusted subnets":   {configure(seed, []string{"a"}, trusted), configure(seed, []string{"a"}, netip.PrefixFrom(addrOf(0), 23)), false},
		"another identity":        {configure(seed, []string{"a"}, trusted), configure([]byte("other"), []string{"a"}, trusted), false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t)
				r := start(t, m, c.before)
				r.routes([]byte{2}, nil)
				r.meet(2)
				pass(time.Second)
				r.wantOpen(2)
				r.stop()
				r = open(t, m, c.after)
				defer r.stop()
				if c.keep {
					r.wantOpen(2)
				} else {
					r.wantClosed(2)
				}
			})
		})
	}
}

// WireGuard's entries outlive the router, too.
func TestTunnelOfAnotherConfigurationIsRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		s := encrypted()
		s.Binding = fastpath.Bind(nil, []string{"a"}, s)
		r := start(t, m, s)
		r.routes([]byte{2}, nil)
		r.meetEncrypted(2, 2, key(2))
		pass(2 * time.Second)
		r.wantTunnel(2, key(2))
		r.stop()
		s.Binding = fastpath.Bind(nil, []string{"b"}, s)
		r = open(t, m, s)
		defer r.stop()
		r.wantTunnel(2, [32]byte{})
		r.want(kerneltest.ToRouter, 2)
	})
}
