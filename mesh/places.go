package mesh

import (
	"net/netip"
	"slices"

	"github.com/weft-net/weft/mesh/peer"
)

// The methods of this file tell package ipam what this peer knows about others by itself.
// They take no lock.

// Key returns the key of a peer by its own entry in the topology, also of this peer.
func (m *Mesh) Key(n peer.Name) (peer.Key, bool) {
	e := m.view.Load().byName[n]
	if e == nil {
		return peer.Key{}, false
	}
	return e.Key, true
}

// Place returns the underlay address of the direct session with a peer. The TCP handshake
// proves that the peer receives packets there.
func (m *Mesh) Place(n peer.Name) (netip.Addr, bool) {
	nb := m.direct(n)
	if nb == nil {
		return netip.Addr{}, false
	}
	a := addrPortOf(nb.RemoteAddr()).Addr()
	return a, a.IsValid()
}

// Neighbours returns the keys of the peers with which there is a direct session. The caller
// owns the map.
func (m *Mesh) Neighbours() map[peer.Name]peer.Key {
	out := make(map[peer.Name]peer.Key)
	for name, n := range *m.neighbours.Load() {
		if !n.relayed {
			out[name] = n.Peer.Key
		}
	}
	return out
}

// LastPeer is a peer with the address at which it listened.
type LastPeer struct {
	Name peer.Name
	Addr netip.AddrPort
}

// DirectPeers returns the peers with which there is a direct session, in order of name, for
// Config.LastPeers of the next run.
func (m *Mesh) DirectPeers() (list []LastPeer) {
	for name, n := range *m.neighbours.Load() {
		if a := n.addr(); !n.relayed && a.IsValid() {
			list = append(list, LastPeer{name, a})
		}
	}
	slices.SortFunc(list, func(a, b LastPeer) int { return a.Name.Compare(b.Name) })
	return list
}

// IsTarget reports whether a peer answers at an address that a user told this peer to
// connect to.
func (m *Mesh) IsTarget(n peer.Name) bool {
	t := m.targetPeers.Load()
	return t != nil && (*t)[n]
}

// AwaitsTarget reports whether a user named peers to connect to, and none of them has
// answered yet.
func (m *Mesh) AwaitsTarget() bool { return !m.targetAnswered.Load() }

// storeTargets notes which peers answer at targets. It is called with mu held.
func (m *Mesh) storeTargets() {
	m.targetAnswered.Store(!m.maker.AwaitsTarget())
	now := m.maker.TargetPeers()
	if old := m.targetPeers.Load(); old == nil || len(*old) != len(now) || !containsAll(*old, now) {
		m.targetPeers.Store(&now)
	}
}

func containsAll(set, of map[peer.Name]bool) bool {
	for n := range of {
		if !set[n] {
			return false
		}
	}
	return true
}
