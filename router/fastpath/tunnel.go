package fastpath

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

func (c *Controller) tunnelConfig() wireguard.Config {
	return wireguard.Config{Name: netdev.TunnelName, Port: c.cfg.TunnelPort, MTU: plan.TunnelMTU(c.cfg.MTU), Inside: plan.TunnelPrefix}
}

// openTunnel makes the tunnel if frames must be encrypted and the kernel can,
// or says why there is none.
func (c *Controller) openTunnel() {
	cfg := c.tunnelConfig()
	if !c.cfg.Encrypt || c.cfg.Off {
		return
	}
	// A wider route, such as that of all link-local addresses, is no matter.
	if route, err := c.sys.Overlap(cfg.Inside, cfg.Name); err == nil && route != nil && route.Dst.Bits() > cfg.Inside.Bits() {
		c.tunnelErr = fmt.Errorf("route %s has addresses of the tunnel, %s", route, cfg.Inside)
		c.log.Warn("no WireGuard for the fast path", "err", c.tunnelErr)
		return
	}
	tunnel, err := c.sys.OpenTunnel(cfg)
	if err != nil {
		c.tunnelErr = err
		c.log.Info("no WireGuard for the fast path", "err", err)
		return
	}
	c.tunnel = tunnel
}

// removeTunnel removes what an earlier router left, if there is no tunnel. It is to
// be called once the kernel's maps send nothing there any more: what was meant for
// the tunnel would leave in clear.
func (c *Controller) removeTunnel() {
	if c.tunnel != nil {
		return
	}
	if err := c.sys.RemoveTunnel(c.tunnelConfig()); err != nil {
		c.log.Warn("WireGuard of an earlier router", "err", err)
	}
}

// mendTunnel brings back what other programs removed of the tunnel. Neighbours hear if
// it has another key, or no longer works.
func (c *Controller) mendTunnel() {
	if c.tunnel == nil {
		return
	}
	key := c.tunnel.Key()
	err := c.tunnel.Mend()
	if text(err) == text(c.tunnelErr) && key == c.tunnel.Key() {
		return
	}
	if err != nil {
		c.log.Warn("another program changed the tunnel of the fast path, which no longer works", "err", err)
	} else {
		c.log.Warn("repaired the tunnel of the fast path: another program had changed it")
	}
	c.tunnelErr, c.stale = err, true
	now := time.Now()
	for _, l := range c.links {
		c.apply(l, now, l.SetOwn(now, c.offer(l.Addr())))
	}
}

// text is an error's, "" for nil.
func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// sealing reports whether there is a tunnel that works.
func (c *Controller) tunnelWorks() bool { return c.tunnel != nil && c.tunnelErr == nil }

// setTunnelAddr follows the own short id.
func (c *Controller) setTunnelAddr(self uint16) {
	if c.tunnel == nil || self == 0 {
		return
	}
	if err := c.tunnel.SetSelf(plan.TunnelAddr(self)); err != nil {
		c.log.Warn("own address in the tunnel", "err", err)
	}
}

// neighbour is what the tunnel is to have for a link; zero for nothing.
func (l *link) tunnelPeer() wireguard.Peer {
	if !l.Encrypted() || l.PeerID() == 0 || !l.Addr().IsValid() {
		return wireguard.Peer{}
	}
	t := l.Tunnel()
	return wireguard.Peer{
		Key: t.Key, Secret: l.secret, Endpoint: netip.AddrPortFrom(l.Addr(), t.Port), Inside: plan.TunnelAddr(l.PeerID()),
	}
}

// applyTunnels makes the tunnel's neighbours those of the links that use it, and
// for a while those of an earlier router.
func (c *Controller) applyTunnels(now time.Time) {
	if !c.tunnelWorks() {
		return
	}
	have := c.tunnel.Peers()
	give := newTunnelSlots(c.tunnel.Key())
	for _, set := range []map[peer.Name]*link{c.links, c.sessionless} {
		c.fillSlots(give, set, have)
	}
	if now.Sub(c.opened) < adoptTimeout {
		for _, a := range slices.SortedFunc(maps.Keys(have), netip.Addr.Compare) {
			give.give(have[a])
		}
	}
	err := c.tunnel.Apply(give.peers)
	if err != nil {
		c.stale = true // try again
		if text(err) != text(c.applyErr) {
			c.log.Warn("cannot change the peers of the tunnel", "err", err)
		}
	}
	c.applyErr = err
	for _, l := range c.links {
		c.findHop(l) // routes into the tunnel may be new
	}
}

// shareTunnel gives the links of a set their places in the tunnel. One that is
// there already comes before one that says it has the same key.
func (c *Controller) fillSlots(give tunnelSlots, set map[peer.Name]*link, have map[netip.Addr]wireguard.Peer) {
	links := slices.SortedFunc(maps.Values(set), func(a, b *link) int { return bytes.Compare(a.peer[:], b.peer[:]) })
	for _, first := range []bool{true, false} {
		for _, l := range links {
			p := l.tunnelPeer()
			if !p.Inside.IsValid() || !c.hasID(l) || first != (have[p.Inside].Key == p.Key) {
				continue
			}
			clash := !give.give(p)
			if clash && !l.keyConflict {
				c.log.Warn("a peer says it has the tunnel key of another", "peer", l.peer, "addr", l.Addr())
			}
			l.keyConflict = clash
		}
	}
}

// hasID reports whether the short id that a neighbour says it has is its own, and not
// another's as far as the routes say.
func (c *Controller) hasID(l *link) bool {
	at, known := c.routes.ByShortID[l.PeerID()]
	return at == l.peer || !known && (l.resumed || !l.sessionEnded.IsZero())
}

// sharing gives places in the tunnel, no two of which have one key or one address
// inside: the kernel has one neighbour for a key and takes it from its old place.
type tunnelSlots struct {
	peers map[netip.Addr]wireguard.Peer
	keys  map[[32]byte]bool
}

func newTunnelSlots(own [32]byte) tunnelSlots {
	return tunnelSlots{make(map[netip.Addr]wireguard.Peer), map[[32]byte]bool{own: true}}
}

// to reports whether p got its place.
func (s tunnelSlots) give(p wireguard.Peer) bool {
	if _, taken := s.peers[p.Inside]; taken || s.keys[p.Key] {
		return false
	}
	s.peers[p.Inside], s.keys[p.Key] = p, true
	return true
}
