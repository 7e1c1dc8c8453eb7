package mesh

import (
	"errors"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/session"
)

// bannedKeys has the banned keys by the channel whose state says so. It is immutable.
type bannedKeys map[uint8]map[peer.KeyID]bool

// SetBanned replaces the keys that a channel bans. Sessions with their peers end, and no
// others begin. It takes no lock, so a channel may call it with its own lock held.
func (m *Mesh) SetBanned(channel uint8, keys []peer.KeyID) {
	set := make(map[peer.KeyID]bool, len(keys))
	for _, k := range keys {
		set[k] = true
	}
	for {
		old := m.banned.Load()
		next := bannedKeys{channel: set}
		if old != nil {
			for c, s := range *old {
				if c != channel {
					next[c] = s
				}
			}
		}
		if m.banned.CompareAndSwap(old, &next) {
			break
		}
	}
	m.bansChanged.Store(true)
	m.linksChanged()
}

// isBanned reports whether a key is banned.
func (m *Mesh) isBanned(k peer.Key) bool {
	b := m.banned.Load()
	if b == nil || len(*b) == 0 {
		return false
	}
	id := peer.IDOf(k)
	for _, s := range *b {
		if s[id] {
			return true
		}
	}
	return false
}

var errBanned = errors.New("the peer is banned from the mesh")

// endBanned ends the sessions of banned peers. It is called with mu held.
func (m *Mesh) endBanned() {
	if !m.bansChanged.Swap(false) {
		return
	}
	for _, n := range *m.neighbours.Load() {
		if m.isBanned(n.Peer.Key) {
			m.dismiss(n, session.CodeBanned, errBanned)
		}
	}
}
