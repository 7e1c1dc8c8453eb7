package fastpath_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/kerneltest"
	"github.com/weft-net/weft/router/fastpath/plan"
	"github.com/weft-net/weft/router/wire"
)

// encrypted are the settings of a mesh with a password.
func encrypted(trusted ...netip.Prefix) fastpath.Settings {
	s := defaults
	s.Encrypt, s.Trusted = true, trusted
	return s
}

// key is a public key of a peer's tunnel.
func key(n byte) [32]byte { return [32]byte{n} }

// meetEncrypted begins a session with peer n, which says that it has a tunnel with a
// key and this short id.
func (r *router) meetEncrypted(n byte, id uint16, key [32]byte) {
	r.Up(nameOf(n), sessionOf(n))
	r.Path(nameOf(n), addrOf(n), 1500)
	r.Control(nameOf(n), wire.Control{
		Type: wire.Fast, Verdict: wire.FastEncrypted, ShortID: id, Port: port, Tunnel: wire.Tunnel{Port: tunnelPort, Key: key},
	})
}

// wantTunnel checks which key a short id has in the tunnel; none if it is zero.
func (r *router) wantTunnel(id uint16, key [32]byte) {
	r.t.Helper()
	if got := r.m.TunnelPeers()[plan.TunnelAddr(id)].Key; got != key {
		r.t.Errorf("short id %d has the key %x, want %x", id, got[:2], key[:2])
	}
}

func TestTunnelCarriesFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newMachine(t), encrypted())
		r.routes([]byte{2}, nil)
		r.meetEncrypted(2, 2, key(2))
		pass(2 * time.Second)
		r.want(kerneltest.Device, 2)
		if next := r.m.NextHop(2); next != plan.TunnelAddr(2) {
			t.Errorf("frames go to %s", next)
		}
		p := r.m.TunnelPeers()[plan.TunnelAddr(2)]
		if p.Key != key(2) || p.Secret == [32]byte{2} || p.Secret == [32]byte{} || p.Endpoint != netip.AddrPortFrom(addrOf(2), tunnelPort) {
			t.Errorf("entry of the tunnel %+v", p)
		}
		if s, _ := r.Link(nameOf(2)); !s.Up || !s.Encrypted || s.Mode != fastpath.Device || !errors.Is(s.Reason, fastpath.ErrEncryption) {
			t.Errorf("status %+v", s)
		}
	})
}

// With a password, relays must not read frames: the kernel neither sends nor accepts any
// over a relay, whether the hop is encrypted or trusted.
func TestNoRelayedFramesInTheKernelWithAPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newMachine(t), encrypted(netip.PrefixFrom(addrOf(4), 32)))
		r.routes([]byte{2, 3, 4, 5}, map[byte]byte{3: 2, 5: 4})
		r.meetEncrypted(2, 2, key(2))
		r.meet(4)
		pass(2 * time.Second)
		r.want(kerneltest.Device, 2)
		r.want(kerneltest.Express, 4)
		r.want(kerneltest.ToRouter, 3, 5)
		for _, id := range []uint16{3, 5} {
			if e := r.m.Peer(id); e.From != [plan.MaxFrom]uint16{} || e.Flags != kernel.PeerKnown {
				t.Errorf("the entry of peer %d is %+v", id, e)
			}
		}
	})
}

// Another program removes the interface: its key is new then, and neighbours hear it.
func TestTunnelIsRepaired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newMachine(t), encrypted())
		r.routes([]byte{2}, nil)
		r.meetEncrypted(2, 2, key(2))
		pass(2 * time.Second)
		if got := r.lastOffer(2).Tunnel.Key; got != kerneltest.TunnelKey(1) {
			t.Fatalf("offered key %x", got[:2])
		}
		r.m.RemoveTunnelDevice()
		pass(2 * time.Second)
		if got := r.lastOffer(2).Tunnel.Key; got != kerneltest.TunnelKey(2) {
			t.Errorf("offered key %x after the repair", got[:2])
		}
		r.wantTunnel(2, key(2))
		r.want(kerneltest.Device, 2)
	})
}

// A tunnel that cannot be repaired is tried again; until then neighbours hear that
// there is none.
func TestTunnelThatCannotBeRepaired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newMachine(t), encrypted())
		r.routes([]byte{2}, nil)
		r.meetEncrypted(2, 2, key(2))
		pass(2 * time.Second)
		r.m.RefuseTunnel(errors.New("module wireguard is gone"))
		pass(3 * time.Second)
		if r.lastOffer(2).Tunnel.Valid() {
			t.Error("a tunnel is offered that does not work")
		}
		if s, _ := r.Link(nameOf(2)); s.Up || !errors.Is(s.Reason, fastpath.ErrEncryption) || !strings.Contains(s.Reason.Error(), "module wireguard is gone") {
			t.Errorf("status %+v", s)
		}
		r.want(kerneltest.ToRouter, 2)
		r.m.RefuseTunnel(nil)
		pass(10 * time.Second)
		r.want(kerneltest.Device, 2)
	})
}

// A kernel without WireGuard leaves peers outside the trusted subnets to sleeve. If
// there is no trusted subnet, the kernel has no part in it at all.
func TestTunnelWithoutKernelSupport(t *testing.T) {
	for name, c := range map[string]struct {
		trusted  []netip.Prefix
		attached bool
		way      kerneltest.Way
	}{
		"nothing is trusted": {nil, false, kerneltest.ToRouter},
		"peer 2 is trusted":  {[]netip.Prefix{netip.PrefixFrom(addrOf(2), 32)}, true, kerneltest.Express},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t)
				m.RefuseTunnel(errors.New("this kernel has no WireGuard"))
				r := start(t, m, encrypted(c.trusted...))
				if r.Attached() != c.attached || m.Guarded() != c.attached {
					t.Errorf("attached %v, guarded %v", r.Attached(), m.Guarded())
				}
				r.routes([]byte{2, 3}, nil)
				r.meet(2)
				r.meetEncrypted(3, 3, key(3))
				pass(5 * time.Second)
				r.want(c.way, 2)
				r.want(kerneltest.ToRouter, 3)
				if offer := r.lastOffer(3); offer.Verdict != wire.FastEncrypted || offer.Tunnel.Valid() {
					t.Errorf("offer %+v", offer)
				}
				if s, _ := r.Link(nameOf(3)); s.Up || !errors.Is(s.Reason, fastpath.ErrEncryption) || !strings.Contains(s.Reason.Error(), "has no WireGuard") {
					t.Errorf("status %+v", s)
				}
			})
		})
	}
}

// The kernel has one entry for a key: a peer that claims another's key must not take its
// place.
func TestTunnelKeysHaveOneOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newMachine(t), encrypted())
		const victim, thief, liar, mirror = 3, 2, 4, 5
		r.routes([]byte{victim, thief, liar, mirror}, nil)
		r.meetEncrypted(victim, victim, key(victim))
		pass(time.Second)
		r.wantTunnel(victim, key(victim))
		r.meetEncrypted(thief, thief, key(victim))
		r.meetEncrypted(liar, victim, key(liar)) // the short id of another
		r.meetEncrypted(mirror, mirror, kerneltest.TunnelKey(1))
		pass(5 * time.Second)
		if got := r.m.TunnelPeers(); len(got) != 1 {
			t.Errorf("entries of the tunnel %+v", got)
		}
		r.wantTunnel(victim, key(victim))
		r.want(kerneltest.Device, victim)
		r.want(kerneltest.ToRouter, thief, mirror)
		for _, n := range []byte{thief, mirror} {
			if s, _ := r.Link(nameOf(n)); s.Up || !errors.Is(s.Reason, fastpath.ErrEncryption) || !strings.Contains(s.Reason.Error(), "tunnel key of another") {
				t.Errorf("status of peer %d: %+v", n, s)
			}
		}
		// When the owner has gone the key is free.
		r.silence(victim, true)
		r.mu.Lock()
		r.silent[plan.TunnelAddr(victim)] = true
		r.mu.Unlock()
		pass(5 * time.Second)
		r.Down(nameOf(victim))
		pass(time.Minute)
		r.wantTunnel(thief, key(victim))
	})
}

// A host that came back under another name, or with another short id, still has its key.
func TestTunnelFollowsANewShortID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newMachine(t), encrypted())
		r.routes([]byte{2}, nil)
		r.meetEncrypted(2, 2, key(2))
		pass(2 * time.Second)
		r.Down(nameOf(2))
		r.routes([]byte{3}, nil)
		r.meetEncrypted(3, 3, key(2))
		pass(2 * time.Second)
		r.wantTunnel(3, key(2))
		r.wantTunnel(2, [32]byte{})
	})
}

// After a restart the entries of the tunnel stay until their peers are known.
func TestTunnelIsAdopted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := start(t, m, encrypted())
		r.routes([]byte{2, 3}, nil)
		r.meetEncrypted(2, 2, key(2))
		r.meetEncrypted(3, 3, key(3))
		pass(2 * time.Second)
		r.want(kerneltest.Device, 2, 3)
		r.stop()
		m.Log()
		r = start(t, m, encrypted())
		pass(10 * time.Second)
		r.want(kerneltest.Device, 2, 3)
		r.routes([]byte{2}, nil)
		r.meetEncrypted(2, 2, key(2))
		pass(2 * time.Minute)
		r.want(kerneltest.Device, 2)
		r.never("peer 2: router", "peer 2: deleted")
		r.wantTunnel(2, key(2))
		r.wantTunnel(3, [32]byte{})
	})
}

// A relaunched router keeps the tunnel until the next session has all that it needs: the
// path MTU takes a while, and routes lead over another peer. Then the tunnel gets the secret
// of that session in place.
func TestTunnelIsKeptUntilTheNextSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := start(t, m, encrypted())
		r.routes([]byte{2, 3}, nil)
		r.meetEncrypted(2, 2, key(2))
		r.meetEncrypted(3, 3, key(3))
		pass(2 * time.Second)
		r.stop()
		m.Log()
		r = start(t, m, encrypted())
		r.routes([]byte{2, 3}, map[byte]byte{2: 3})
		r.meetEncrypted(3, 3, key(3))
		pass(2 * time.Second)
		old := r.m.TunnelPeers()[plan.TunnelAddr(2)]
		s := sessionOf(2)
		s.Secret = [32]byte{99}
		r.Up(nameOf(2), s)
		r.Control(nameOf(2), wire.Control{
			Type: wire.Fast, Verdict: wire.FastEncrypted, ShortID: 2, Port: port, Tunnel: wire.Tunnel{Port: tunnelPort, Key: key(2)},
		})
		pass(time.Second)
		r.want(kerneltest.Device, 2)
		r.Path(nameOf(2), addrOf(2), 1500)
		r.routes([]byte{2, 3}, nil)
		pass(time.Minute)
		r.want(kerneltest.Device, 2, 3)
		r.never("peer 2: router", "peer 2: deleted", "peer 3: router", "peer 3: deleted")
		if now := r.m.TunnelPeers()[plan.TunnelAddr(2)]; now.Key != old.Key || now.Secret == old.Secret {
			t.Errorf("the tunnel had %+v, and has %+v", old, now)
		}
	})
}

// Nobody echoes inside the tunnel any more.
func TestAdoptedTunnelIsProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		r := start(t, m, encrypted())
		r.routes([]byte{2}, nil)
		r.meetEncrypted(2, 2, key(2))
		pass(2 * time.Second)
		r.stop()
		r = open(t, m, encrypted())
		r.silent[plan.TunnelAddr(2)] = true
		r.run()
		pass(5 * time.Second)
		r.want(kerneltest.Device, 2) // nothing else leads to the peer
		r.routes([]byte{2}, nil)
		pass(time.Second)
		r.want(kerneltest.ToRouter, 2)
	})
}
