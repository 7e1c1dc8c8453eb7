package router

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/fastpath/plan"
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
	return wireguard.Config{Name: netdev.TunnelName, Port: f.cfg.TunnelPort, MTU: plan.TunnelMTU(mtu), Inside: plan.TunnelPrefix}
}

// openTunnel makes the tunnel if frames are to be encrypted and the kernel can,
// or says why there is none.
func (r *Router) openTunnel(f *fastpath) {
	c := f.tunnelConfig(r.cfg.MTU)
	if !f.cfg.Encrypt || f.cfg.Off {
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

// removeTunnel removes what an earlier router left, if there is no tunnel. It is to
// be called once the kernel's maps send nothing there any more: what was meant for
// the tunnel would leave in clear.
func (r *Router) removeTunnel(f *fastpath) {
	if f.tunnel != nil {
		return
	}
	if err := wireguard.Remove(f.tunnelConfig(r.cfg.MTU)); err != nil {
		r.log.Warn("WireGuard of an earlier router", "err", err)
	}
}

// mendTunnel brings back what others removed of the tunnel, or has the links say
// what is wrong with it.
func (r *Router) mendTunnel() {
	f := r.fast
	if f.tunnel == nil {
		return
	}
	key, why := f.tunnel.Key(), ""
	if err := f.tunnel.Mend(); err != nil {
		why = err.Error()
	}
	if why == f.noTunnel && key == f.tunnel.Key() {
		return
	}
	r.log.Warn("the tunnel of the fast datapath was changed by others", "mended", why == "", "err", why)
	f.noTunnel, f.dirty = why, true
	now := time.Now()
	for _, l := range f.links {
		r.fastEffects(l, now, l.SetOwn(now, f.offer(l.Addr())))
	}
}

// sealing tells whether there is a tunnel that works.
func (f *fastpath) sealing() bool { return f.tunnel != nil && f.noTunnel == "" }

// setTunnelAddr follows the own short id.
func (r *Router) setTunnelAddr(self uint16) {
	f := r.fast
	if f.tunnel == nil || self == 0 {
		return
	}
	if err := f.tunnel.SetSelf(plan.TunnelAddr(self)); err != nil {
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
		Key: t.Key, Secret: l.secret, Endpoint: netip.AddrPortFrom(l.Addr(), t.Port), Inside: plan.TunnelAddr(l.PeerID()),
	}
}

// applyTunnels makes the tunnel's neighbours those of the links that use it, and
// for a while those of an earlier router.
func (r *Router) applyTunnels(now time.Time) {
	f := r.fast
	if !f.sealing() {
		return
	}
	have := f.tunnel.Peers()
	give := newSharing(f.tunnel.Key())
	for _, set := range []map[peer.Name]*fastLink{f.links, f.away} {
		r.shareTunnel(give, set, have)
	}
	if now.Sub(f.began) < adoptStay {
		for _, a := range slices.SortedFunc(maps.Keys(have), netip.Addr.Compare) {
			give.to(have[a])
		}
	}
	why := ""
	if err := f.tunnel.Apply(give.peers); err != nil {
		why, f.dirty = err.Error(), true
	}
	if why != f.tunnelFault && why != "" {
		r.log.Warn("tunnel of the fast datapath", "err", why)
	}
	f.tunnelFault = why
	for _, l := range f.links {
		r.findHop(l) // routes into the tunnel may be new
	}
}

// shareTunnel gives the links of a set their places in the tunnel. One that is
// there already comes before one that says it has the same key.
func (r *Router) shareTunnel(give sharing, set map[peer.Name]*fastLink, have map[netip.Addr]wireguard.Peer) {
	links := slices.SortedFunc(maps.Values(set), func(a, b *fastLink) int { return bytes.Compare(a.peer[:], b.peer[:]) })
	for _, first := range []bool{true, false} {
		for _, l := range links {
			p := l.neighbour()
			if !p.Inside.IsValid() || !r.hasID(l) || first != (have[p.Inside].Key == p.Key) {
				continue
			}
			clash := !give.to(p)
			if clash && !l.clash {
				r.log.Warn("a peer says it has the tunnel key of another", "peer", l.peer, "addr", l.Addr())
			}
			l.clash = clash
		}
	}
}

// hasID tells whether the short id that a neighbour says it has is its own, and not
// another's as far as the routes say.
func (r *Router) hasID(l *fastLink) bool {
	at, known := r.routes.ByShortID[l.PeerID()]
	return at == l.peer || !known && !l.gone.IsZero()
}

// sharing gives places in the tunnel, no two of which have one key or one address
// inside: the kernel has one neighbour for a key and takes it from its old place.
type sharing struct {
	peers map[netip.Addr]wireguard.Peer
	keys  map[[32]byte]bool
}

func newSharing(own [32]byte) sharing {
	return sharing{make(map[netip.Addr]wireguard.Peer), map[[32]byte]bool{own: true}}
}

// to tells whether p got its place.
func (s sharing) to(p wireguard.Peer) bool {
	if _, taken := s.peers[p.Inside]; taken || s.keys[p.Key] {
		return false
	}
	s.peers[p.Inside], s.keys[p.Key] = p, true
	return true
}
