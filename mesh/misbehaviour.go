package mesh

import (
	"errors"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/session"
)

// A neighbour that sends what no honest peer sends loses its session: records that cannot
// be parsed, and entries whose signature is wrong, because honest peers check what they
// pass on. What an honest peer may pass on without knowing better only costs the neighbour
// a part of its limits: entries for which there is no place, and records that build on
// others that have not arrived.

const (
	// banMin is how long a peer that misbehaved gets no other session. It doubles with each
	// time, up to banMax.
	banMin = 10 * time.Second
	banMax = 10 * time.Minute
	// maxBans bounds the peers that are remembered. Beyond it the oldest is forgotten.
	maxBans = 1024
)

// bans remembers the peers that misbehaved.
type bans struct{ all map[peer.Name]*ban }

type ban struct {
	until time.Time
	delay time.Duration
}

// add bans a peer and returns for how long.
func (b *bans) add(n peer.Name, now time.Time) time.Duration {
	if b.all == nil {
		b.all = make(map[peer.Name]*ban)
	}
	x := b.all[n]
	if x == nil {
		if len(b.all) >= maxBans {
			b.removeOldest()
		}
		x = &ban{delay: banMin / 2}
		b.all[n] = x
	}
	x.delay = min(2*x.delay, banMax)
	x.until = now.Add(x.delay)
	return x.delay
}

func (b *bans) removeOldest() {
	var oldest peer.Name
	for n, x := range b.all {
		if oldest.IsZero() || x.until.Before(b.all[oldest].until) {
			oldest = n
		}
	}
	delete(b.all, oldest)
}

// until returns the end of the ban of n, zero if there is none.
func (b *bans) until(n peer.Name, now time.Time) time.Time {
	if x := b.all[n]; x != nil && now.Before(x.until) {
		return x.until
	}
	return time.Time{}
}

// expire forgets the peers that behaved for as long as their ban lasted.
func (b *bans) expire(now time.Time) {
	for n, x := range b.all {
		if now.After(x.until.Add(banMax)) {
			delete(b.all, n)
		}
	}
}

// misbehaved ends the session with a neighbour that sent what no honest peer sends, after it
// told the neighbour.
func (m *Mesh) misbehaved(n *neighbour, reason string) {
	cause := errors.New(reason)
	m.mu.Lock()
	switch {
	case m.closing:
		m.mu.Unlock()
		n.terminate(reject(cause))
		return
	case n.end.Load() != nil: // it ends already, and may be told why at this moment
		m.mu.Unlock()
		return
	}
	d := m.bans.add(n.name, time.Now())
	m.dismiss(n, session.CodeOther, cause)
	m.mu.Unlock()
	m.counters.misbehaved.Add(1)
	m.log.Warn("session ended: the peer misbehaves", "peer", n.name, "nickname", n.Peer.Nickname, "reason", reason, "wait", d)
}
