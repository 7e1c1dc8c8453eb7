package plan

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/weft-net/weft/router/wire"
)

// wary is an end that wants encryption and has a tunnel for it.
func wary(key byte) Offer {
	return Offer{
		Verdict: wire.FastEncrypted, ShortID: uint16(key), Port: 6784, Why: errors.New("a password is set"),
		Tunnel: wire.Tunnel{Port: 6785, Key: [32]byte{key}},
	}
}

func (e *ends) setPath(mtu int) {
	for i, l := range e.l {
		e.apply(i, l.SetPath(e.now, mtu))
	}
}

func TestTunnel(t *testing.T) {
	e := newEnds(t, wary(1), wary(2))
	e.want(false, "known to carry 0")
	e.setPath(mtu + 109)
	e.run(time.Minute)
	e.want(false, "MTU 1376 does not fit: packets would be of 1486 bytes", "known to carry 1485")
	if e.sent != 0 {
		t.Error("probes went by the tunnel although it could cut them")
	}
	e.setPath(mtu + 110)
	e.run(2 * time.Second)
	e.want(true)
	for i, l := range e.l {
		if l.Remote() != TunnelAddr(uint16(2-i)) || l.Tunnel().Key[0] != byte(2-i) || l.Addr() != at(1-i) {
			t.Errorf("end %d: %v, %v", i, l.Remote(), l.Tunnel())
		}
	}
	e.path = func(int) bool { return false }
	e.run(time.Minute)
	e.want(false, "UDP 6785 blocked")
}

// A path that shrinks ends the tunnel's use at once: WireGuard would have its
// packets cut.
func TestTunnelOverShrinkingPath(t *testing.T) {
	e := newEnds(t, wary(1), wary(2))
	e.setPath(1500)
	e.run(2 * time.Second)
	e.want(true)
	e.setPath(1400)
	e.want(false, "known to carry 1400")
}

func TestWhoWantsATunnel(t *testing.T) {
	trusting := willing
	trusting.Tunnel = wire.Tunnel{Port: 6785, Key: [32]byte{3}}
	bare := wary(2)
	bare.Tunnel = wire.Tunnel{}
	for _, c := range []struct {
		name      string
		a, b      Offer
		encrypted bool
		words     []string
	}{
		{"both trust the path", trusting, trusting, false, nil},
		{"one does not", trusting, wary(2), true, nil},
		{"the peer has none", wary(1), bare, false, []string{"the peer has no WireGuard", "a password is set"}},
		{"the peer that trusts has none", wary(1), Offer{ShortID: 2, Port: 6784}, false, []string{"the peer has no WireGuard", "the peer wants encryption"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.b.ShortID = 2
			e := newEnds(t, c.a, c.b)
			e.setPath(1500)
			e.run(2 * time.Second)
			e.want(c.words == nil, c.words...)
			for i, l := range e.l {
				if l.Encrypted() != c.encrypted {
					t.Errorf("end %d: encrypted %v", i, l.Encrypted())
				}
			}
		})
	}
}

// A peer that no longer trusts the path is not sent a single frame in clear.
func TestTrustEnds(t *testing.T) {
	trusting := willing
	trusting.Tunnel = wire.Tunnel{Port: 6785, Key: [32]byte{3}}
	e := newEnds(t, trusting, wary(2))
	e.setPath(1500)
	e.run(2 * time.Second)
	e.want(true)
	e.apply(1, e.l[1].SetOwn(e.now, Offer{ShortID: 2, Port: 6784, Tunnel: wire.Tunnel{Port: 6785, Key: [32]byte{2}}}))
	e.run(2 * time.Second)
	e.want(true)
	if e.l[0].Encrypted() || e.l[0].Remote() != at(1) {
		t.Error("two that trust the path still use the tunnel")
	}
	e.path = func(int) bool { return false }
	e.apply(1, e.l[1].SetOwn(e.now, wary(2)))
	e.want(false, "being tried")
	if !e.l[0].Encrypted() || e.l[0].Remote() != TunnelAddr(2) {
		t.Error("frames still go in clear")
	}
}

func TestTunnelAddrs(t *testing.T) {
	for id, want := range map[uint16]string{1: "169.254.208.1", 256: "169.254.209.0", wire.MaxShortID: "169.254.223.255"} {
		if a := TunnelAddr(id); a != netip.MustParseAddr(want) || !TunnelPrefix.Contains(a) {
			t.Errorf("short id %d is at %v, want %s", id, a, want)
		}
	}
	if n := EncryptedOverhead(netip.MustParseAddr("2001:db8::1")); n != 130 {
		t.Errorf("overhead over IPv6 is %d, want 130", n)
	}
}
