package router

import (
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"time"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/fast"
	"github.com/weft-net/weft/router/wireguard"
)

// tunnelSecret is WireGuard's pre-shared key of two neighbours, by RFC 5869 from
// their session's secret.
func tunnelSecret(session [32]byte) (key [32]byte) {
	b, err := hkdf.Key(sha256.New, session[:], nil, "weft wireguard pre-shared key", len(key))
	if err != nil {
		panic(err) // only for keys that are too long
	}
	copy(key[:], b)
	return key
}

func (f *fastpath) tunnelConfig(mtu int) wireguard.Config {
	return wireguard.Config{Name: netdev.TunnelName, Port: f.cfg.TunnelPort, MTU: fast.TunnelMTU(mtu), Inside: fast.TunnelPrefix}
}

// openTunnel makes the tunnel if frames are to be encrypted and the kernel can,
// or says why there is none, and else removes what an earlier router left.
func (r *Router) openTunnel(f *fastpath) {
	c := f.tunnelConfig(r.cfg.MTU)
	if !f.cfg.Encrypt || f.cfg.Off {
		if err := wireguard.Remove(c); err != nil {
			r.log.Warn("WireGuard of an earlier router", "err", err)
		}
		return
	}
	// A wider route, such as that of all link-local addresses, is no matter.
	if route, err := netdev.Overlap(c.Inside, c.Name); err == nil && route != nil && route.Dst.Bits() > c.Inside.Bits() {
		f.noTunnel = fmt.Sprintf("route %s has addresses of the tunnel, %s", route, c.Inside)
		r.log.Warn("no WireGuard for the fast datapath", "reason", f.noTunnel)
		return
	}
	tunnel, err := wireguard.Open(c)
	if err != nil {
		f.noTunnel = err.Error()
		r.log.Info("no WireGuard for the fast datapath", "err", err)
		return
	}
	f.tunnel, f.noTunnel = tunnel, ""
}

// setTunnelAddr follows the own short id.
func (r *Router) setTunnelAddr(self uint16) {
	f := r.fast
	if f.tunnel == nil || self == 0 {
		return
	}
	if err := f.tunnel.SetSelf(fast.TunnelAddr(self)); err != nil {
		r.log.Warn("own address in the tunnel", "err", err)
	}
}

// neighbour is what the tunnel is to have for a link; zero for nothing.
func (l *fastLink) neighbour() wireguard.Peer {
	if !l.Sealed() || l.PeerID() == 0 || !l.Addr().IsValid() {
		return wireguard.Peer{}
	}
	t := l.Tunnel()
	return wireguard.Peer{
		Key: t.Key, Secret: l.secret, Endpoint: netip.AddrPortFrom(l.Addr(), t.Port), Inside: fast.TunnelAddr(l.PeerID()),
	}
}

// applyTunnels makes the tunnel's neighbours those of the links that use it, and
// for a while those of an earlier router.
func (r *Router) applyTunnels(now time.Time) {
	f := r.fast
	if f.tunnel == nil {
		return
	}
	want := make(map[netip.Addr]wireguard.Peer)
	if now.Sub(f.began) < adoptStay {
		want = f.tunnel.Peers()
	}
	for _, set := range []map[peer.Name]*fastLink{f.away, f.links} {
		for _, l := range set {
			if p := l.neighbour(); p.Inside.IsValid() {
				want[p.Inside] = p
			}
		}
	}
	if err := f.tunnel.Apply(want); err != nil {
		r.log.Warn("tunnel of the fast datapath", "err", err)
		f.dirty = true
	}
	for _, l := range f.links {
		r.findHop(l) // routes into the tunnel may be new
	}
}
