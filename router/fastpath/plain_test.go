package fastpath_test

import (
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/kerneltest"
	"github.com/weft-net/weft/router/fastpath/plan"
	"github.com/weft-net/weft/router/resolve"
	"github.com/weft-net/weft/router/wire"
)

var plainSettings = func() fastpath.Settings {
	s := defaults
	s.Encaps = plan.Auto
	return s
}()

// takes is the offer of a peer that takes plain packets.
func takes(n byte, encaps ...plan.Encap) wire.Control {
	set := wire.Encaps(0)
	for _, e := range encaps {
		set |= 1 << e
	}
	return wire.Control{Type: wire.Fast, ShortID: uint16(n), Port: port, Encaps: set}
}

// know tells the router of an address of a container at a host.
func (r *router) know(n byte) {
	r.Moved([]resolve.Change{{Addr: netip.AddrFrom4([4]byte{10, 32, 0, n}), New: resolve.Place{MAC: macOf(1, n), At: nameOf(n)}}})
}

func (r *router) wantEncap(what string, want kernel.Encap, why string) {
	r.t.Helper()
	e := r.m.Peer(2)
	s, _ := r.Link(nameOf(2))
	if e.Encap4 != want || e.Encap6 != kernel.EncapVXLAN || e.Flags&kernel.PeerFast == 0 {
		r.t.Errorf("%s: entry %+v, want %d (status %+v)", what, e, want, s)
	}
	if (why == "") != (s.EncapReason == nil) || why != "" && !strings.Contains(s.EncapReason.Error(), why) {
		r.t.Errorf("%s: reason %v, want %q", what, s.EncapReason, why)
	}
}

// IP packets go in the best encapsulation that passes, and in another one within three seconds when it no
// longer does. All other frames go by VXLAN meanwhile.
func TestBestEncapsulation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := start(t, m, plainSettings)
		r.routes([]byte{2}, nil)
		r.passes(kernel.EncapNone, kernel.EncapIPIP)
		r.meet(2)
		r.Control(nameOf(2), takes(2, plan.None, plan.IPIP))
		pass(time.Second)
		r.wantEncap("no addresses", kernel.EncapVXLAN, "no addresses of containers are known")
		r.know(1)
		r.know(2)
		pass(2 * time.Second)
		r.wantEncap("addresses that are new", kernel.EncapVXLAN, "no addresses of containers are known")
		pass(3 * time.Second)
		r.wantEncap("all passes", kernel.EncapNone, "")

		r.passes(kernel.EncapIPIP)
		pass(3 * time.Second)
		r.wantEncap("the network checks sources", kernel.EncapIPIP, "packets with addresses of containers blocked: no echo from 10.32.0.2")
		r.passes()
		pass(3 * time.Second)
		r.wantEncap("a firewall drops protocol 4, too", kernel.EncapVXLAN, "packets with addresses of containers blocked")
		r.passes(kernel.EncapNone, kernel.EncapIPIP)
		pass(30 * time.Second)
		r.wantEncap("all passes again", kernel.EncapNone, "")

		r.Control(nameOf(2), takes(2, plan.IPIP))
		pass(time.Second)
		r.wantEncap("the peer does not take it any more", kernel.EncapIPIP, "the peer does not take it")
		r.Control(nameOf(2), takes(2))
		pass(time.Second)
		r.wantEncap("the peer takes nothing", kernel.EncapVXLAN, "the peer does not take it")
		r.Control(nameOf(2), takes(2, plan.None))
		pass(time.Second)
		r.wantEncap("it takes it again", kernel.EncapNone, "")
		r.Moved([]resolve.Change{{Addr: netip.AddrFrom4([4]byte{10, 32, 0, 2}), Old: resolve.Place{MAC: macOf(1, 2), At: nameOf(2)}}})
		pass(3 * time.Second)
		r.wantEncap("its only address is gone", kernel.EncapVXLAN, "no addresses")
	})
}

// A peer that must not be sent clear text gets none, and none is accepted from it.
func TestNoPlainPacketsOnEncryptedLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		s := plainSettings
		s.Encrypt = true
		r := start(t, m, s)
		r.routes([]byte{2}, nil)
		r.passes(kernel.EncapNone, kernel.EncapIPIP)
		r.know(1)
		r.know(2)
		r.meet(2)
		r.Control(nameOf(2), takes(2, plan.None, plan.IPIP))
		pass(10 * time.Second)
		if e := m.Peer(2); e.Encap4 != kernel.EncapVXLAN || e.Flags&kernel.PeerPlain != 0 || m.Plain() || r.lastOffer(2).Encaps != 0 {
			t.Errorf("%+v, offer %+v", e, r.lastOffer(2))
		}
	})
}

// Plain packets to a peer, and those from it, go on while the routers of both are replaced.
func TestPlainPacketsOutliveRouters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		begin := func() *router {
			r := start(t, m, plainSettings)
			r.passes(kernel.EncapNone)
			return r
		}
		ready := func(r *router) {
			r.routes([]byte{2}, nil)
			r.know(1)
			r.know(2)
			r.meet(2)
			r.Control(nameOf(2), takes(2, plan.None))
		}
		r := begin()
		ready(r)
		pass(5 * time.Second)
		r.wantEncap("at first", kernel.EncapNone, "")
		always := func(what string) {
			t.Helper()
			if e := m.Peer(2); e.Flags&kernel.PeerPlain == 0 || !m.Plain() || e.Encap4 == kernel.EncapVXLAN && e.Flags&kernel.PeerFast == 0 {
				t.Errorf("%s: %+v", what, e)
			}
			for n := byte(1); n <= 2; n++ {
				if p := m.Neighbours()[netip.AddrFrom4([4]byte{10, 32, 0, n})]; p.Peer != uint16(n) {
					t.Errorf("%s: container %d is at %+v", what, n, p)
				}
			}
		}
		r.Down(nameOf(2))
		r.Moved([]resolve.Change{{Addr: netip.AddrFrom4([4]byte{10, 32, 0, 2}), Old: resolve.Place{MAC: macOf(1, 2), At: nameOf(2)}}})
		for range 1000 {
			pass(10 * time.Millisecond)
			always("the peer's router is away, and so its bindings")
		}
		r.meet(2)
		r.Control(nameOf(2), takes(2, plan.None))
		pass(time.Second)
		always("it is back, and its bindings are not yet")
		r.know(2)
		r.stop()
		always("this router is away")
		r = begin()
		for range 100 {
			pass(10 * time.Millisecond)
			always("the next one knows nobody")
		}
		ready(r)
		for range 600 {
			pass(10 * time.Millisecond)
			always("it meets the peer")
		}
		r.wantEncap("in the end", kernel.EncapNone, "")
	})
}

// A frame for a container behind another peer goes by VXLAN.
func TestRelayedPacketsAreNotPlain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := start(t, m, plainSettings)
		r.routes([]byte{2, 3}, map[byte]byte{3: 2})
		r.passes(kernel.EncapNone)
		for n := byte(1); n <= 3; n++ {
			r.know(n)
		}
		r.meet(2)
		r.Control(nameOf(2), takes(2, plan.None))
		pass(5 * time.Second)
		r.wantEncap("the neighbour", kernel.EncapNone, "")
		if e := m.Peer(3); e.Encap4 != kernel.EncapVXLAN || e.Flags&kernel.PeerPlain != 0 || e.Flags&kernel.PeerFast == 0 {
			t.Errorf("the peer behind it: %+v", e)
		}
	})
}

// metPlain is a router whose peer 2 gets plain packets.
func metPlain(t *testing.T, m *kerneltest.Machine, more ...byte) *router {
	t.Helper()
	r := start(t, m, plainSettings)
	r.routes([]byte{2}, nil)
	r.passes(kernel.EncapNone)
	r.know(1)
	r.know(2)
	for _, n := range more {
		r.Moved([]resolve.Change{{Addr: netip.AddrFrom4([4]byte{10, 32, 0, n}), New: resolve.Place{MAC: macOf(n, 2), At: nameOf(2)}}})
	}
	r.Up(nameOf(2), sessionOf(2))
	r.Control(nameOf(2), takes(2, plan.None, plan.IPIP))
	pass(5 * time.Second)
	r.wantEncap("at first", kernel.EncapNone, "")
	return r
}

// A path whose session ended falls back, too: the peer's router may be away for minutes.
func TestEncapsulationsFallBackWithoutSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := metPlain(t, m)
		r.Down(nameOf(2))
		pass(time.Second)
		if e := m.Peer(2); e.Encap4 != kernel.EncapNone {
			t.Errorf("the router of the peer is away: %+v", e)
		}
		r.passes()
		pass(3 * time.Second)
		if e := m.Peer(2); e.Encap4 != kernel.EncapVXLAN || e.Flags&kernel.PeerFast == 0 {
			t.Errorf("plain packets do not pass: %+v", e)
		}
		r.passes(kernel.EncapNone)
		pass(30 * time.Second)
		r.silence(2, true)
		pass(3 * time.Second)
		if e := m.Peer(2); e.Encap4 != kernel.EncapNone || e.Flags&kernel.PeerFast != 0 {
			t.Errorf("VXLAN does not pass: %+v", e)
		}
	})
}

// Plain packets outlive the session also where VXLAN never passed.
func TestPlainPacketsAloneOutliveTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := start(t, m, plainSettings)
		r.routes([]byte{2}, nil)
		r.passes(kernel.EncapNone)
		r.silence(2, true)
		r.know(1)
		r.know(2)
		r.Up(nameOf(2), sessionOf(2))
		r.Control(nameOf(2), takes(2, plan.None))
		pass(5 * time.Second)
		alone := func(what string) {
			t.Helper()
			if e := m.Peer(2); e.Encap4 != kernel.EncapNone || e.Flags&kernel.PeerPlain == 0 || e.Flags&kernel.PeerFast != 0 {
				t.Errorf("%s: %+v", what, e)
			}
		}
		alone("at first")
		r.Down(nameOf(2))
		pass(10 * time.Second)
		alone("the router of the peer is away")
	})
}

// A container that ends does not end the encapsulation of the others, although it was the one that probes went to.
func TestProbesLeaveContainersThatEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := metPlain(t, m, 22, 23)
		for range 2 {
			r.mu.Lock()
			a := r.probed
			r.gone = map[netip.Addr]bool{a: true}
			r.mu.Unlock()
			r.Moved([]resolve.Change{{Addr: a, Old: resolve.Place{At: nameOf(2)}}})
			for range 500 {
				m.Carry(2, 1)
				pass(10 * time.Millisecond)
				if e := m.Peer(2); e.Encap4 != kernel.EncapNone {
					t.Fatalf("without %s: %+v", a, e)
				}
			}
		}
	})
}

// The addresses of a peer stay while its router is away, and until its bindings can have come again.
func TestAddressesWaitForBindings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := metPlain(t, m)
		a := netip.AddrFrom4([4]byte{10, 32, 0, 2})
		for away := 10 * time.Second; away < 15*time.Second; away += time.Second {
			r.Down(nameOf(2))
			r.Moved([]resolve.Change{{Addr: a, Old: resolve.Place{MAC: macOf(1, 2), At: nameOf(2)}}})
			pass(away)
			r.Up(nameOf(2), sessionOf(2))
			r.Control(nameOf(2), takes(2, plan.None))
			pass(4 * time.Second)
			if n := m.Neighbours()[a]; n.Peer != 2 {
				t.Errorf("away for %v: it is at %+v", away, n)
			}
			r.know(2)
			pass(10 * time.Second)
		}
		r.Moved([]resolve.Change{{Addr: a, Old: resolve.Place{MAC: macOf(1, 2), At: nameOf(2)}}})
		pass(3 * time.Second)
		if n, there := m.Neighbours()[a]; there {
			t.Errorf("its container ended, and it is at %+v", n)
		}
	})
}

// A router that starts with other encapsulations sends in no other from the first moment on. It takes what
// peers send that do not know yet.
func TestOtherEncapsulationsAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := metPlain(t, m)
		r.stop()
		start(t, m, defaults)
		pass(10 * time.Millisecond)
		if e := m.Peer(2); e.Encap4 != kernel.EncapVXLAN || e.Flags&kernel.PeerFast == 0 || e.Flags&kernel.PeerPlain == 0 {
			t.Errorf("%+v", e)
		}
	})
}

// Plain packets are taken only from peers that say that they send them, as others do not keep their containers
// from it.
func TestPlainPacketsOfPeersThatSendNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := metPlain(t, m)
		r.Control(nameOf(2), takes(2))
		pass(time.Second)
		if e := m.Peer(2); e.Flags&kernel.PeerPlain != 0 || m.Plain() {
			t.Errorf("it sends none: %+v", e)
		}
		r.Control(nameOf(2), takes(2, plan.IPIP))
		pass(10 * time.Millisecond)
		if e := m.Peer(2); e.Flags&kernel.PeerPlain == 0 || !m.Plain() {
			t.Errorf("it sends some: %+v", e)
		}
	})
}

// A host that may exchange plain packets keeps its containers from forging them, and no other one does.
func TestGuardOfPlainPackets(t *testing.T) {
	none := plan.Encaps{plan.None}
	for what, c := range map[string]struct {
		change func(*fastpath.Settings)
		want   bool
	}{
		"all":           {func(*fastpath.Settings) {}, true},
		"none only":     {func(s *fastpath.Settings) { s.Encaps = none }, true},
		"VXLAN":         {func(s *fastpath.Settings) { s.Encaps = plan.Encaps{} }, false},
		"to some peers": {func(s *fastpath.Settings) { s.Encaps, s.EncapsTo = plan.Encaps{}, []fastpath.EncapsTo{{Encaps: none}} }, true},
		"off":           {func(s *fastpath.Settings) { s.Off = true }, false},
		"no express":    {func(s *fastpath.Settings) { s.NoExpress = true }, false},
		"encrypted":     {func(s *fastpath.Settings) { s.Encrypt = true }, false},
		"partly": {func(s *fastpath.Settings) {
			s.Encrypt, s.Trusted = true, []netip.Prefix{netip.PrefixFrom(addrOf(2), 32)}
		}, true},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t)
				s := plainSettings
				c.change(&s)
				start(t, m, s)
				pass(time.Second)
				if got := m.Guards().IPIP; got != c.want {
					t.Errorf("guarded: %v", got)
				}
			})
		})
	}
}

// What IPsec of the host must encrypt goes by the stack, and the peer hears of it.
func TestNoPlainPacketsPastIPsec(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := metPlain(t, m)
		m.SetIPsec(netip.PrefixFrom(addrOf(2), 32))
		pass(time.Second)
		if e := m.Peer(2); e.Encap4 != kernel.EncapVXLAN || e.Flags&kernel.PeerPlain != 0 || r.lastOffer(2).Encaps != 0 {
			t.Errorf("%+v, offer %+v", e, r.lastOffer(2))
		}
		r.wantEncap("IPsec", kernel.EncapVXLAN, "IPsec of the host applies")
		m.SetIPsec()
		pass(time.Second)
		r.wantEncap("no IPsec", kernel.EncapNone, "")
	})
}

// An encapsulation in which checksums are wrong is not used.
func TestPlainPacketsWithWrongChecksums(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := metPlain(t, m)
		r.mu.Lock()
		r.wrong = true
		r.mu.Unlock()
		pass(3 * time.Second)
		r.wantEncap("wrong checksums", kernel.EncapVXLAN, "packets with addresses of containers to 10.32.0.2 come with wrong checksums")
	})
}

// A peer that is refused or banned gets no plain packet any more, and none is taken from it.
func TestUnwantedPeersGetNoPlainPackets(t *testing.T) {
	for what, end := range map[string]func(*router){
		"refused": func(r *router) { r.Reject(nameOf(2)) },
		"banned without a session": func(r *router) {
			r.Down(nameOf(2))
			pass(time.Second)
			r.PeersBanned(func(k peer.Key) bool { return k == peer.Key{2} })
		},
		"refused after a lost session": func(r *router) { r.Down(nameOf(2)); pass(time.Second); r.Refused(addrOf(2), true) },
		"another peer has its address": func(r *router) {
			r.Down(nameOf(2))
			pass(time.Second)
			r.Up(nameOf(3), fastpath.Session{Key: peer.Key{3}, Addr: addrOf(2)})
		},
		"it is at another address": func(r *router) {
			r.Down(nameOf(2))
			pass(time.Second)
			r.Up(nameOf(2), fastpath.Session{Key: peer.Key{2}, Addr: addrOf(4)})
		},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t)
				r := metPlain(t, m)
				end(r)
				pass(time.Millisecond)
				if e := m.Peer(2); e.Encap4 != kernel.EncapVXLAN || e.Flags&(kernel.PeerPlain|kernel.PeerFast) != 0 || m.Plain() {
					t.Errorf("%+v", e)
				}
			})
		})
	}
}
