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

// tunnelSecret derives WireGuard's pre-shared key of two neighbours from the secret of
// their session (HKDF, RFC 5869).
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

// openTunnel opens the tunnel if frames must be encrypted and the kernel has
// WireGuard. Else tunnelErr says why there is none.
func (c *Controller) openTunnel() {
	cfg := c.tunnelConfig()
	if !c.cfg.Encrypt || c.cfg.Off {
		return
	}
	// A wider route, such as that to all link-local addresses, does not matter.
	if routes, err := c.sys.Overlapping(cfg.Inside, cfg.Name); err == nil && len(routes) > 0 && routes[0].Dst.Bits() > cfg.Inside.Bits() {
		c.tunnelErr = fmt.Errorf("route %s has addresses of the tunnel, %s", routes[0], cfg.Inside)
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

// removeTunnel removes the tunnel of an earlier router if there is none now. Call it
// after the kernel's maps no longer send to the tunnel, as such packets would leave
// in clear text.
func (c *Controller) removeTunnel() {
	if c.tunnel != nil {
		return
	}
	if err := c.sys.RemoveTunnel(c.tunnelConfig()); err != nil {
		c.log.Warn("cannot remove WireGuard of an earlier router", "err", err)
	}
}

// emptyTunnel removes the peers of an earlier router from the tunnel. Call it after the
// kernel's maps no longer send to them.
func (c *Controller) emptyTunnel() error {
	if c.tunnel == nil || len(c.tunnel.Peers()) == 0 {
		return nil
	}
	return c.tunnel.Apply(nil)
}

// mendTunnel restores what other programs removed of the tunnel. If the tunnel has a new
// key, no longer works or works again, it sends new offers to the neighbours. It runs on the
// goroutine of Run.
func (c *Controller) mendTunnel() error {
	key := c.tunnel.Key()
	err := c.tunnel.Mend()
	if text(err) == text(c.tunnelErr) && key == c.tunnel.Key() {
		return err
	}
	c.tunnelErr = err
	c.offerAgain()
	return err
}

// text returns the text of an error, "" for nil.
func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// tunnelWorks reports whether there is a tunnel that works.
func (c *Controller) tunnelWorks() bool { return c.tunnel != nil && c.tunnelErr == nil }

// setTunnelAddr sets the address of this host inside the tunnel, which depends on its
// short id.
func (c *Controller) setTunnelAddr(self uint16) {
	if c.tunnel == nil || self == 0 {
		return
	}
	if err := c.tunnel.SetSelf(plan.TunnelAddr(self)); err != nil {
		c.log.Warn("cannot set the address of this host in the tunnel", "err", err)
	}
}

// tunnelPeer returns the entry of the tunnel for a link; zero for none.
func (l *link) tunnelPeer() wireguard.Peer {
	if !l.Encrypted() || l.PeerID() == 0 || !l.Addr().IsValid() {
		return wireguard.Peer{}
	}
	t := l.Tunnel()
	return wireguard.Peer{
		Key: t.Key, Secret: l.secret, Endpoint: netip.AddrPortFrom(l.Addr(), t.Port), Inside: plan.TunnelAddr(l.PeerID()),
	}
}

// applyTunnels gives the tunnel an entry for each link that uses it and, for a while, the
// entries of an earlier router.
func (c *Controller) applyTunnels(now time.Time) {
	if !c.tunnelWorks() {
		return
	}
	have := c.tunnel.Peers()
	slots := newTunnelSlots(c.tunnel.Key())
	for _, set := range []map[peer.Name]*link{c.links, c.sessionless} {
		c.fillSlots(slots, set, have)
	}
	if c.adopting(now) {
		for _, a := range slices.SortedFunc(maps.Keys(have), netip.Addr.Compare) {
			slots.give(have[a])
		}
	}
	err := c.tunnel.Apply(slots.peers)
	if err != nil {
		c.stale = true // try again
		if text(err) != text(c.applyErr) {
			c.log.Warn("cannot change the peers of the tunnel", "err", err)
		}
	}
	c.applyErr = err
	for _, l := range c.links {
		c.findHop(l) // there may be new routes into the tunnel
	}
}

// fillSlots adds the entries of a set of links. A link whose entry exists comes
// before one that claims the same key.
func (c *Controller) fillSlots(slots tunnelSlots, set map[peer.Name]*link, have map[netip.Addr]wireguard.Peer) {
	links := slices.SortedFunc(maps.Values(set), func(a, b *link) int { return bytes.Compare(a.peer[:], b.peer[:]) })
	for _, first := range []bool{true, false} {
		for _, l := range links {
			p := l.tunnelPeer()
			if !p.Inside.IsValid() || !c.hasID(l) || first != (have[p.Inside].Key == p.Key) {
				continue
			}
			conflict := !slots.give(p)
			if conflict && !l.keyConflict {
				c.log.Warn("a peer claims the tunnel key of another peer", "peer", l.peer, "addr", l.Addr())
			}
			l.keyConflict = conflict
		}
	}
}

// hasID reports whether the short id that a neighbour claims is its own, as far as
// the routes know, or knew before the neighbour's router was away.
func (c *Controller) hasID(l *link) bool {
	id := l.PeerID()
	at, known := c.routes.ByShortID[id]
	_, other := c.routes.ShortIDs[l.peer]
	return at == l.peer || !known && !other && id != 0 && id == l.provedID
}

// tunnelSlots are entries of the tunnel. No two have the same key or the same
// address inside: the kernel has one entry for a key, and would move it.
type tunnelSlots struct {
	peers map[netip.Addr]wireguard.Peer
	keys  map[[32]byte]bool
}

func newTunnelSlots(own [32]byte) tunnelSlots {
	return tunnelSlots{make(map[netip.Addr]wireguard.Peer), map[[32]byte]bool{own: true}}
}

// give adds p and reports whether its key and its address were free.
func (s tunnelSlots) give(p wireguard.Peer) bool {
	if _, taken := s.peers[p.Inside]; taken || s.keys[p.Key] {
		return false
	}
	s.peers[p.Inside], s.keys[p.Key] = p, true
	return true
}
