package mesh

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

// A merge can take long: signatures are checked, and allocators write to disk. So each
// channel has an engine and a goroutine of its own. While it works, sessions, pings, the
// other channels and control records go on. Neighbours hand it messages through bounded
// inboxes. If the inbox of a neighbour is full, only the reader of that neighbour waits,
// and only for a while: then the message is dropped, and digests repair the loss.

const (
	// maxInbox is how many bytes wait for a channel from one neighbour. One message is
	// always taken.
	maxInbox = 64 << 10
	// inboxTimeout is how long a reader waits for space. While it waits it reads no pings,
	// so it must be much shorter than sessionTimeout.
	inboxTimeout = time.Second
	// A neighbour whose messages took longer than mergeBurst, of which one mergeShare is
	// forgiven as time passes, has to wait. So one neighbour costs at most a fourth of a
	// core for each channel.
	mergeBurst = 5 * time.Second
	mergeShare = 4
	// floodCost is added for a message with more new entries than the neighbour may make
	// this peer check, so that a neighbour that floods is read more and more slowly.
	floodCost = 100 * time.Millisecond
)

// gossipChannel runs one channel.
type gossipChannel struct {
	// Constant.

	id   uint8
	mesh *Mesh
	wake chan struct{}

	// state guards the engine and the replicated state behind it. It is held during
	// merges, so nobody takes it while holding Mesh.mu.
	state  sync.Mutex
	engine *gossip.Engine

	stats   atomic.Pointer[gossip.Stats]
	dropped atomic.Uint64 // messages of neighbours with a full inbox

	// mu guards the fields below. No other lock is taken while it is held.
	mu      sync.Mutex
	ops     []func(*gossip.Engine)
	refill  map[peer.Name]bool    // neighbours whose writer took a message
	inboxes map[*neighbour]*inbox // that are not empty
	debts   map[peer.Name]*debt
}

// inbox has the messages of one neighbour that wait to be merged.
type inbox struct {
	messages [][]byte
	bytes    int
	space    chan struct{} // signalled when a message was taken; nil if nobody waits for that
}

// debt is how long the messages of a neighbour took.
type debt struct {
	time time.Duration
	at   time.Time
}

func (d *debt) settle(now time.Time) time.Duration {
	d.time, d.at = max(0, d.time-now.Sub(d.at)/mergeShare), now
	return d.time
}

func newChannel(m *Mesh, id uint8, c gossip.Channel, rng *rand.Rand) *gossipChannel {
	g := &gossipChannel{
		id: id, mesh: m, wake: make(chan struct{}, 1), engine: gossip.NewEngine(rng),
		refill: make(map[peer.Name]bool), inboxes: make(map[*neighbour]*inbox), debts: make(map[peer.Name]*debt),
	}
	g.engine.Register(id, c)
	g.stats.Store(&gossip.Stats{})
	return g
}

func (g *gossipChannel) wakeUp() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// do makes the channel's goroutine call f, in the order of the calls of do.
func (g *gossipChannel) do(f func(*gossip.Engine)) {
	g.mu.Lock()
	g.ops = append(g.ops, f)
	g.mu.Unlock()
	g.wakeUp()
}

// taken says that the writer of a neighbour can take another message.
func (g *gossipChannel) taken(n peer.Name) {
	g.mu.Lock()
	g.refill[n] = true
	g.mu.Unlock()
	g.wakeUp()
}

// put hands a message of a neighbour to the channel. It is called by the neighbour's
// reader, and waits while the inbox is full.
func (g *gossipChannel) put(n *neighbour, msg []byte) {
	msg = slices.Clone(msg)
	var timeout <-chan time.Time
	for {
		g.mu.Lock()
		in := g.inboxes[n]
		if in == nil {
			in = &inbox{}
			g.inboxes[n] = in
		}
		if len(in.messages) == 0 || in.bytes+len(msg) <= maxInbox {
			in.messages = append(in.messages, msg)
			in.bytes += len(msg)
			g.mu.Unlock()
			g.wakeUp()
			return
		}
		if in.space == nil {
			in.space = make(chan struct{}, 1)
		}
		space := in.space
		g.mu.Unlock()
		if timeout == nil {
			timeout = time.After(inboxTimeout)
		}
		select {
		case <-space:
		case <-n.done:
			return
		case <-timeout:
			g.dropped.Add(1)
			g.do(func(e *gossip.Engine) { e.CompareWith(g.id, n.name) })
			return
		}
	}
}

// take returns the next message: of all neighbours that have one, that of the neighbour
// whose messages took the least time. If all of them have to wait, it returns the time
// until when.
func (g *gossipChannel) take(now time.Time) (from *neighbour, msg []byte, wait time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var least time.Duration
	for n := range g.inboxes {
		if n.ended() {
			delete(g.inboxes, n)
			continue
		}
		var owed time.Duration
		if d := g.debts[n.name]; d != nil {
			owed = d.settle(now)
		}
		if from == nil || owed < least || owed == least && n.name.Compare(from.name) < 0 {
			from, least = n, owed
		}
	}
	if from == nil {
		return nil, nil, time.Time{}
	}
	if least > mergeBurst {
		return nil, nil, now.Add((least - mergeBurst) * mergeShare)
	}
	in := g.inboxes[from]
	msg = in.messages[0]
	in.messages = slices.Delete(in.messages, 0, 1)
	in.bytes -= len(msg)
	if in.space != nil {
		select {
		case in.space <- struct{}{}:
		default:
		}
	}
	if len(in.messages) == 0 {
		delete(g.inboxes, from)
	}
	return from, msg, time.Time{}
}

// charge records how long a message of a neighbour took.
func (g *gossipChannel) charge(n peer.Name, took time.Duration, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := g.debts[n]
	if d == nil {
		maps.DeleteFunc(g.debts, func(_ peer.Name, d *debt) bool { return d.settle(now) == 0 })
		d = &debt{at: now}
		g.debts[n] = d
	}
	d.settle(now)
	d.time += took
}

// run works until ctx is done.
func (g *gossipChannel) run(ctx context.Context) {
	defer g.mesh.wg.Done()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		more, next := g.step(time.Now())
		if more {
			continue
		}
		g.publishStats()
		timer.Reset(max(minRoundInterval, time.Until(next)))
		select {
		case <-ctx.Done():
		case <-g.wake:
		case <-timer.C:
		}
	}
}

// step does the work of others for the engine and then handles one message. It returns
// whether there may be more to do now, else when.
func (g *gossipChannel) step(now time.Time) (more bool, next time.Time) {
	g.mu.Lock()
	ops, refill := g.ops, g.refill
	g.ops, g.refill = nil, make(map[peer.Name]bool)
	g.mu.Unlock()
	from, msg, wait := g.take(now)

	g.state.Lock()
	for _, f := range ops {
		f(g.engine)
	}
	g.engine.Tick(now)
	var changed bool
	var err error
	var refused []gossip.Refusal
	var extra time.Duration
	if msg != nil {
		if g.id == ChannelTopology {
			g.mesh.topo.SetTime(g.mesh.now())
		}
		changed, err = g.engine.Receive(from.name, msg)
		if g.id == ChannelTopology {
			refused = g.mesh.topo.Refused()
			if g.mesh.topo.Exhausted() {
				extra = floodCost
			}
		}
	}
	for _, n := range g.engine.Dirty() {
		refill[n] = true
	}
	g.deliver(refill)
	next = g.engine.NextTick()
	g.state.Unlock()

	if msg == nil {
		if !wait.IsZero() && wait.Before(next) {
			next = wait
		}
		return false, next
	}
	end := time.Now()
	g.charge(from.name, end.Sub(now)+extra, end)
	g.mesh.reportRefusals(refused)
	if changed && g.id == ChannelTopology {
		g.mesh.wakeTopology()
	}
	if err != nil {
		g.mesh.gossipRefused(from, err)
	}
	return true, next
}

// deliver makes the next message of each neighbour that can take one. It is called with
// state held.
func (g *gossipChannel) deliver(names map[peer.Name]bool) {
	all := *g.mesh.neighbours.Load()
	for name := range names {
		n := all[name]
		if n == nil || n.relayed || len(n.gossip[g.id]) > 0 {
			continue
		}
		if msg := g.engine.Next(name); msg != nil {
			n.gossip[g.id] <- msg // it is empty, and only this goroutine fills it
			n.wakeWriter()
		}
	}
}

// publishStats makes the present counts visible without state.
func (g *gossipChannel) publishStats() {
	g.state.Lock()
	s := g.engine.Stats()
	g.state.Unlock()
	g.stats.Store(&s)
}

// orderedChannels returns all channels in order of number.
func (m *Mesh) orderedChannels() []*gossipChannel {
	var list []*gossipChannel
	for _, id := range slices.Sorted(maps.Keys(m.channels)) {
		list = append(list, m.channels[id])
	}
	return list
}

// onAllChannels makes the goroutine of each channel call f.
func (m *Mesh) onAllChannels(f func(*gossip.Engine)) {
	for _, g := range m.channels {
		g.do(f)
	}
}

// Announce spreads a change of a registered channel. It neither blocks nor makes a
// callback, and keeps delta.
func (m *Mesh) Announce(channel uint8, delta []byte) {
	if g := m.channels[channel]; g != nil && len(delta) > 0 {
		g.do(func(e *gossip.Engine) { e.Announce(channel, delta) })
	}
}

// gossipStats returns the sums over all channels.
func (m *Mesh) gossipStats() (s gossip.Stats) {
	for _, g := range m.channels {
		c := g.stats.Load()
		s.Sent += c.Sent
		s.Received += c.Received
		s.SentBytes += c.SentBytes
		s.RecvdBytes += c.RecvdBytes
		s.Dropped += c.Dropped + g.dropped.Load()
		s.Refused += c.Refused
		s.Repairs += c.Repairs
		s.QueuedDeltas += c.QueuedDeltas
		s.MaxQueue = max(s.MaxQueue, c.MaxQueue)
	}
	return s
}

// receiveGossip handles a gossip message from a neighbour. An error ends the session.
func (m *Mesh) receiveGossip(n *neighbour, body []byte) error {
	switch {
	case n.relayed:
		return fmt.Errorf("gossip over a relayed session: %w", gossip.ErrMalformed)
	case len(body) < 2:
		return fmt.Errorf("gossip message of %d bytes: %w", len(body), gossip.ErrMalformed)
	}
	if g := m.channels[body[1]]; g != nil { // else of a newer peer
		g.put(n, body)
	}
	return nil
}

// gossipRefused reports an error of a channel. A neighbour that sends what no honest peer
// passes on loses its session.
func (m *Mesh) gossipRefused(n *neighbour, err error) {
	if m.recordProblem(Problem{Text: fmt.Sprintf("gossip refused, from %s: %v", m.displayName(n.name), err), peer: n.name, gossip: true}) {
		m.log.Warn("gossip refused", "from", n.name, "err", err)
	}
	if errors.Is(err, gossip.ErrMalformed) {
		m.misbehaved(n, "gossip "+err.Error())
	}
}
