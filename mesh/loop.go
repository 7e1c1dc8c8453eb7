package mesh

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/member"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/session"
	"github.com/weft-net/weft/mesh/topology"
)

// Times of the loop.
const (
	// routesInterval is the least time between two computations of routes: a mesh
	// that starts changes a hundred times a second.
	routesInterval = 50 * time.Millisecond
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
	generation uint64    // of the topology from which the routes were computed
	routesAt   time.Time // when they were computed
	slowAt     time.Time // the next time for work that is due every pingEvery
}

// round does all work that is due and returns the time of the next round.
func (m *Mesh) round(ctx context.Context, o Observer, now time.Time, l *loopState) (next time.Time) {
	m.takeAnnouncements()
	m.mu.Lock()
	m.topo.SetTime(now)
	m.engine.Tick(now)
	attempts := m.maker.Tick(now)
	var relayed []peer.Name
	if !now.Before(l.slowAt) {
		l.slowAt = now.Add(pingEvery - time.Duration(now.UnixNano())%pingEvery)
		m.pingAll(now)
		relayed = m.relayedDue(now)
		gone, moved := m.topo.Expire(now)
		for _, n := range gone {
			m.log.Info("peer forgotten: no path has led to it for a minute", "peer", n)
		}
		if moved {
			m.engine.Compare(ChannelTopology)
		}
		m.problems.expire(now)
	}
	m.updateLinks()
	m.reportRefusals()
	next = l.slowAt
	for _, t := range []time.Time{m.engine.NextTick(), m.maker.Next()} {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	switch due := l.routesAt.Add(routesInterval); {
	case m.topo.Generation() == l.generation:
	case now.Before(due):
		next = due
	default:
		// Choose an id here, where changes that came together are handled together:
		// each choice is announced to the whole mesh.
		if delta := m.topo.SettleShortID(); delta != nil {
			m.engine.Announce(ChannelTopology, delta)
		}
		l.generation, l.routesAt = m.topo.Generation(), now
		m.refreshView()
		v := m.view.Load()
		m.engine.SetRelays(v.relays())
		m.events = append(m.events, func(o Observer) {
			o.RoutesChanged(v.data)
			o.ViewChanged(v)
		})
	}
	dirty := m.engine.Dirty()
	events := m.events
	m.events = nil
	m.mu.Unlock()

	m.wakeWriters(dirty)
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
	m.members.SetAddrs(m.ownAddrs())
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

// wakeWriters makes the writers of neighbours ask the engine for messages.
func (m *Mesh) wakeWriters(names []peer.Name) {
	all := *m.neighbours.Load()
	for _, name := range names {
		if n := all[name]; n != nil {
			n.wakeWriter()
		}
	}
}

// Announce spreads a change of a registered channel. It neither blocks nor makes a
// callback.
func (m *Mesh) Announce(channel uint8, delta []byte) {
	m.announceMu.Lock()
	m.announced = append(m.announced, announcement{channel, delta})
	m.announceMu.Unlock()
	m.wakeLoop()
}

func (m *Mesh) takeAnnouncements() {
	m.announceMu.Lock()
	list := m.announced
	m.announced = nil
	m.announceMu.Unlock()
	if list == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range list {
		if len(a.delta) > gossip.MaxDelta {
			m.engine.Compare(a.channel)
			continue
		}
		m.engine.Announce(a.channel, a.delta)
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
	m.wakeLoop()
}

// updateLinks publishes the sessions and data links of this peer in its entry.
func (m *Mesh) updateLinks() {
	var links []topology.Link
	for name, n := range *m.neighbours.Load() {
		l := topology.Link{To: name, Cost: topology.CostOf(n.rtt())}
		if !n.relayed {
			l.Flags = topology.LinkSession
		}
		if d := m.data[name]; d.up {
			l.Flags |= topology.LinkData
			l.Cost = topology.CostOf(d.rtt)
		}
		if l.Flags != 0 {
			links = append(links, l)
		}
	}
	if delta := m.topo.SetLinks(links); delta != nil {
		m.engine.Announce(ChannelTopology, delta)
	}
}

// reportRefusals logs the entries that were not merged.
func (m *Mesh) reportRefusals() {
	for _, r := range m.topo.Refused() {
		text := fmt.Sprintf("entry of peer %s refused, from %s: %v", r.Owner, m.displayName(r.From), r.Cause)
		if m.problems.record(text, time.Now()) {
			m.log.Warn("topology entry refused", "peer", r.Owner, "from", r.From, "err", r.Cause)
		}
		// An honest peer checks every entry before it passes it on.
		if n := m.direct(r.From); n != nil && errors.Is(r.Cause, topology.ErrForged) {
			reason := fmt.Sprintf("it passed on an entry of peer %s: %v", r.Owner, r.Cause)
			m.events = append(m.events, func(Observer) { n.goodbye(session.CodeOther, reason) })
		}
	}
}

// memberChanged is called by the member list.
func (m *Mesh) memberChanged(e member.Event) {
	now := time.Now()
	m.mu.Lock()
	if e.Alive {
		m.maker.Member(e.Peer, e.Addrs, now)
	} else {
		m.maker.MemberLost(e.Peer, now)
	}
	m.mu.Unlock()
	m.wakeLoop()
}
