package mesh

import (
	"context"
	"time"

	"github.com/weft-net/weft/mesh/member"
	"github.com/weft-net/weft/mesh/peer"
)

// Times of the loop.
const (
	// minRoundInterval is the least time between two rounds that only the timer
	// starts.
	minRoundInterval = 10 * time.Millisecond
)

// loop runs a round whenever something is due or loopWake is signalled.
func (m *Mesh) loop(ctx context.Context, o Observer) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var l loopState
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-m.loopWake:
		}
		now := time.Now()
		timer.Reset(max(minRoundInterval, m.round(ctx, o, now, &l).Sub(now)))
	}
}

// loopState is the state that a round of the loop leaves for the next one.
type loopState struct {
	slowAt time.Time // the next time for work that is due every pingEvery
}

// round does all work that is due and returns the time of the next round.
func (m *Mesh) round(ctx context.Context, o Observer, now time.Time, l *loopState) (next time.Time) {
	m.mu.Lock()
	attempts := m.maker.Tick(now)
	var relayed []peer.Name
	slow := !now.Before(l.slowAt)
	if slow {
		l.slowAt = nextTick(now)
		m.pingAll(now)
		relayed = m.relayedDue(now)
		m.problems.expire(now)
		m.expireBannedBy(now)
		m.bans.expire(now)
		m.updateClock()
		m.endUnproved(now)
	}
	m.storeTargets()
	m.endBanned()
	relayed = append(relayed, m.wantedDue(now)...)
	next = l.slowAt
	if t := m.maker.Next(); !t.IsZero() && t.Before(next) {
		next = t
	}
	events := m.events
	m.events = nil
	m.mu.Unlock()

	if slow {
		m.wakeSaver()
	}
	for _, a := range attempts {
		m.wg.Add(1)
		go m.dial(ctx, a)
	}
	for _, n := range relayed {
		m.wg.Add(1)
		go m.dialRelayed(n)
	}
	for _, f := range events {
		f(o)
	}
	return next
}

// pingAll sends neighbours a sign of life. It is called with mu held.
func (m *Mesh) pingAll(now time.Time) {
	all := now.UnixNano()/int64(pingEvery)%linkedPingFactor == 0
	for _, n := range *m.neighbours.Load() {
		if all || !n.linked.Load() {
			n.ping()
		}
	}
}

// wakeLoop starts a round of the loop soon.
func (m *Mesh) wakeLoop() {
	select {
	case m.loopWake <- struct{}{}:
	default:
	}
}

// linksChanged starts a round of the loop and of the topology soon.
func (m *Mesh) linksChanged() {
	m.wakeTopology()
	m.wakeLoop()
}

// DoubtSession ends the session with a neighbour soon unless it answers.
func (m *Mesh) DoubtSession(n peer.Name) {
	if nb := (*m.neighbours.Load())[n]; nb != nil {
		nb.doubt()
	}
}

// SetData reports the state of the router's data link to a neighbour.
func (m *Mesh) SetData(n peer.Name, up bool, rtt time.Duration) {
	m.mu.Lock()
	l := m.data[n]
	if l.up != up {
		l.changed = time.Now()
	}
	l.up, l.rtt = up, rtt
	m.data[n] = l
	if nb := (*m.neighbours.Load())[n]; nb != nil {
		nb.setLinked(up)
	}
	m.mu.Unlock()
	m.linksChanged()
}

// memberChanged is called by the member list.
func (m *Mesh) memberChanged(e member.Event) {
	m.mu.Lock()
	m.maker.Hint(e.Peer, e.Alive, time.Now())
	m.mu.Unlock()
	m.wakeLoop()
}

// knownPeer reports whether a peer is in the topology or has a session. Others do not become
// members.
func (m *Mesh) knownPeer(n peer.Name) bool {
	return m.view.Load().byName[n] != nil || m.direct(n) != nil
}
