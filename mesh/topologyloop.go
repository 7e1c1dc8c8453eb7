package mesh

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
)

const (
	// routesInterval is the least time between two computations of routes: a mesh
	// that starts changes a hundred times a second. It is longer by routesPerPeer for each peer,
	// up to maxRoutesInterval, because the routes, and what follows from them, take longer too.
	routesInterval    = 50 * time.Millisecond
	routesPerPeer     = 5 * time.Millisecond
	maxRoutesInterval = 500 * time.Millisecond
	// routesShare is how many times as long as the last computation took the next one
	// waits, so that a large or restless mesh costs at most a fifth of a core.
	routesShare = 5
	// maxForgottenLines is how many lines about forgotten peers one round logs.
	maxForgottenLines = 16
)

// topologyLoop keeps this peer's entry, forgets lost peers, and computes the routes. It
// has a goroutine of its own, because routes of a large mesh take long.
func (m *Mesh) topologyLoop(ctx context.Context) {
	defer m.wg.Done()
	timer := time.NewTimer(0)
	defer timer.Stop()
	// The first round publishes the view, also if this peer is alone: the router needs its
	// own short id.
	l := topologyState{generation: m.view.Load().generation - 1}
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-m.topologyWake:
		}
		now := time.Now()
		timer.Reset(max(minRoundInterval, m.topologyRound(now, &l).Sub(now)))
	}
}

// topologyState is the state that a round leaves for the next one.
type topologyState struct {
	generation uint64    // of the topology from which the routes were computed
	routesAt   time.Time // when they may be computed again
	slowAt     time.Time // the next time for work that is due every pingEvery
	banned     *bannedKeys
}

// topologyRound does all work that is due and returns the time of the next round.
func (m *Mesh) topologyRound(now time.Time, l *topologyState) (next time.Time) {
	links, addrs := m.ownLinks(), m.ownAddrs()
	topo := m.channels[ChannelTopology]
	var gone []peer.Name
	var v *View
	moved := false

	topo.state.Lock()
	m.topo.SetTime(m.now())
	m.topo.SetAddrs(addrs)
	delta, again := m.topo.OfferLinks(links, now)
	m.Announce(ChannelTopology, delta)
	if banned := m.banned.Load(); banned != l.banned {
		l.banned = banned
		m.topo.DropBanned()
	}
	if !now.Before(l.slowAt) {
		begun := time.Now()
		gone, moved = m.topo.Expire(now)
		l.slowAt = nextTick(now.Add(routesShare * time.Since(begun)))
	}
	next = l.slowAt
	switch {
	case m.topo.Generation() == l.generation:
	case now.Before(l.routesAt):
		next = l.routesAt
	default:
		// Choose an id here, where changes that came together are handled together:
		// each choice is announced to the whole mesh.
		m.Announce(ChannelTopology, m.topo.SettleShortID())
		l.generation = m.topo.Generation()
		v = m.newView()
	}
	if !again.IsZero() && again.Before(next) {
		next = again
	}
	refused := m.topo.Refused()
	stats := m.topo.Stats()
	topo.state.Unlock()

	m.topologyStats.Store(&stats)
	for _, n := range gone[:min(len(gone), maxForgottenLines)] {
		m.log.Info("peer forgotten: no path has led to it for a minute", "peer", n)
	}
	if more := len(gone) - maxForgottenLines; more > 0 {
		m.log.Info("more peers forgotten", "count", more)
	}
	if moved {
		topo.do(func(e *gossip.Engine) { e.Compare(ChannelTopology) })
	}
	m.reportRefusals(refused)
	if v != nil {
		v.computeRoutes()
		m.publishView(v)
		end := time.Now()
		interval := min(maxRoutesInterval, routesInterval+time.Duration(len(v.entries))*routesPerPeer)
		l.routesAt = now.Add(max(interval, routesShare*end.Sub(now)))
	}
	return next
}

// nextTick returns the next time at which all peers do what is due every pingEvery.
func nextTick(now time.Time) time.Time {
	return now.Add(pingEvery - time.Duration(now.UnixNano())%pingEvery)
}

// newView returns a View without routes. It is called with the state of the topology held,
// or before Run.
func (m *Mesh) newView() *View {
	v := &View{
		graph: m.topo.Graph(), entries: slices.Clone(m.topo.Entries()),
		byName: make(map[peer.Name]*topology.Entry), nicknames: make(map[peer.Name]string),
		generation: m.topo.Generation(),
	}
	// The nicknames of lost peers are kept, so that users can name them, for example
	// to remove them.
	if old := m.view.Load(); old != nil && len(old.nicknames) < maxNicknames {
		maps.Copy(v.nicknames, old.nicknames)
	}
	v.dominators = sync.OnceValue(func() map[peer.Name]peer.Name { return topology.Dominators(m.self, v.entries) })
	for _, e := range v.entries {
		v.nicknames[e.Name], v.byName[e.Name] = e.Nickname, e
	}
	return v
}

func (v *View) computeRoutes() {
	v.control, v.data = v.graph.Routes(topology.LinkSession), v.graph.Routes(topology.LinkData)
}

// publishView makes a View the present one.
func (m *Mesh) publishView(v *View) {
	m.view.Store(v)
	relays := v.relays()
	m.onAllChannels(func(e *gossip.Engine) { e.SetRelays(relays) })
	m.updateKnownAddrs(v)
	addrs := m.memberAddrs(v)
	m.mu.Lock()
	m.maker.Members(addrs, time.Now())
	m.events = append(m.events, func(o Observer) {
		o.RoutesChanged(v.data)
		o.ViewChanged(v)
	})
	m.mu.Unlock()
	m.wakeLoop()
}

// wakeTopology starts a round of the topology soon.
func (m *Mesh) wakeTopology() {
	select {
	case m.topologyWake <- struct{}{}:
	default:
	}
}

// ownLinks returns the sessions and data links of this peer, as its entry states them.
func (m *Mesh) ownLinks() []topology.Link {
	m.mu.Lock()
	defer m.mu.Unlock()
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
	return links
}

// reportRefusals logs the entries that were not merged.
func (m *Mesh) reportRefusals(refused []gossip.Refusal) {
	for _, r := range refused {
		text := fmt.Sprintf("entry of peer %s refused, from %s: %v", r.Owner, m.displayName(r.From), r.Cause)
		if m.recordProblem(Problem{Text: text, peer: r.From, gossip: true}) {
			m.log.Warn("topology entry refused", "peer", r.Owner, "from", r.From, "err", r.Cause)
		}
		// An honest peer checks every entry before it passes it on.
		if n := m.direct(r.From); n != nil && errors.Is(r.Cause, gossip.ErrMalformed) {
			m.misbehaved(n, fmt.Sprintf("it passed on an entry of peer %s: %v", r.Owner, r.Cause))
		}
	}
}
