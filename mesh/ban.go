package mesh

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

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
	if b := m.banned.Load(); b == nil || len(*b) == 0 {
		return false // IDOf costs 1,000 hashes
	}
	return m.IsBanned(peer.IDOf(k))
}

// IsBanned reports whether the key with an id is banned.
func (m *Mesh) IsBanned(id peer.KeyID) bool {
	b := m.banned.Load()
	if b == nil {
		return false
	}
	for _, s := range *b {
		if s[id] {
			return true
		}
	}
	return false
}

var errBanned = errors.New("the peer is banned from the mesh")

const (
	// maxBannedPlaces bounds the addresses of banned peers that are remembered, and
	// keepBannedPlace how long after the last sign of the peer.
	maxBannedPlaces = 1024
	keepBannedPlace = 24 * time.Hour
)

// bannedPlaces are the addresses at which banned peers were seen. Whoever has such a host can
// make a new key, so other peers there are not trusted in everything.
type bannedPlaces struct {
	mu sync.Mutex // no other lock is taken while it is held
	at map[netip.Addr]bannedPlace
}

type bannedPlace struct {
	last time.Time
	key  peer.KeyID // of the peer that was there
}

func (p *bannedPlaces) add(a netip.Addr, k peer.Key, now time.Time) {
	id := peer.IDOf(k)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at == nil {
		p.at = make(map[netip.Addr]bannedPlace)
	}
	maps.DeleteFunc(p.at, func(_ netip.Addr, b bannedPlace) bool { return now.Sub(b.last) > keepBannedPlace })
	if _, known := p.at[a]; a.IsValid() && (known || len(p.at) < maxBannedPlaces) {
		p.at[a] = bannedPlace{now, id}
	}
}

// HadBanned reports whether a peer that is banned was seen at an address during the last day,
// since this router started.
func (m *Mesh) HadBanned(a netip.Addr) bool {
	m.bannedPlaces.mu.Lock()
	b, ok := m.bannedPlaces.at[a]
	m.bannedPlaces.mu.Unlock()
	return ok && time.Since(b.last) <= keepBannedPlace && m.IsBanned(b.key)
}

// endBanned ends the sessions of banned peers, and reports them. It is called with mu held.
func (m *Mesh) endBanned() {
	if !m.bansChanged.Swap(false) {
		return
	}
	for _, n := range *m.neighbours.Load() {
		if m.isBanned(n.Peer.Key) {
			m.bannedPlaces.add(n.Peer.From, n.Peer.Key, time.Now())
			m.dismiss(n, session.CodeBanned, errBanned)
			m.problems.forgetGossip(n.name)
		}
	}
	m.events = append(m.events, func(o Observer) { o.PeersBanned(m.isBanned) })
}

// BannedBy is a peer that refuses this one because the voters banned it, by its own word.
type BannedBy struct {
	Name     peer.Name
	Nickname string
	Last     time.Time // when it refused last
}

const (
	// maxBannedBy bounds the peers that are remembered to refuse this one. They proved that
	// they know the password, if there is one.
	maxBannedBy = 64
	// keepBannedBy is how long one is remembered after the last refusal. A ban ends only when
	// the voters lift it, but they may do so while this peer cannot reach anybody.
	keepBannedBy = 24 * time.Hour
)

// refusers are immutable.
type refusers map[peer.Name]BannedBy

// changeRefusers replaces the peers that refuse this one by what change makes of a copy.
func (m *Mesh) changeRefusers(change func(refusers)) {
	for {
		old, next := m.refusers.Load(), make(refusers)
		if old != nil {
			maps.Copy(next, *old)
		}
		change(next)
		if m.refusers.CompareAndSwap(old, &next) {
			return
		}
	}
}

// noteBannedBy notes that a peer refused this one because it is banned, and reports whether that
// is new.
func (m *Mesh) noteBannedBy(n peer.Name, nickname string) (fresh bool) {
	m.changeRefusers(func(r refusers) {
		_, known := r[n]
		fresh = !known && len(r) < maxBannedBy
		if known || fresh {
			r[n] = BannedBy{n, nickname, time.Now()}
		}
	})
	return fresh
}

// expireBannedBy forgets the peers that this one reaches again, and those of long ago.
func (m *Mesh) expireBannedBy(now time.Time) {
	if r := m.refusers.Load(); r == nil || len(*r) == 0 {
		return
	}
	v := m.view.Load()
	m.changeRefusers(func(r refusers) {
		maps.DeleteFunc(r, func(n peer.Name, b BannedBy) bool { return v.Reachable(n) || now.Sub(b.Last) > keepBannedBy })
	})
}

// BannedBy returns the peers that refuse this one because it is banned, in order. Not among them
// is who can be reached, as a mesh that banned this peer passes nothing on for it. It takes no
// lock.
func (m *Mesh) BannedBy() (list []BannedBy) {
	r := m.refusers.Load()
	if r == nil {
		return nil
	}
	v, now := m.view.Load(), time.Now()
	for _, b := range *r {
		if !v.Reachable(b.Name) && now.Sub(b.Last) <= keepBannedBy {
			list = append(list, b)
		}
	}
	slices.SortFunc(list, func(a, b BannedBy) int { return a.Name.Compare(b.Name) })
	return list
}

// Banned reports whether this peer is banned, as far as it knows. It takes no lock.
func (m *Mesh) Banned() bool { return len(m.BannedBy()) > 0 }
