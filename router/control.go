package router

import (
	"context"
	crand "crypto/rand"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/udp"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/link"
	"github.com/weft-net/weft/router/liveness"
	"github.com/weft-net/weft/router/origin"
	"github.com/weft-net/weft/router/seal"
	"github.com/weft-net/weft/router/wire"
)

// event is what a lane saw and the step machine of a link must know.
type event struct {
	kind  eventKind
	link  *sleeve
	addr  netip.AddrPort // of moved
	probe wire.ProbeBody // of answered
	index uint32         // of firstUse
	size  int            // of tooBig, in bytes of IP packet
}

type eventKind int

const (
	asked eventKind = iota
	answered
	moved
	firstUse
	tooBig
	used
)

// maxPending bounds the events of one link that wait, so that a peer that floods
// this host with probes leaves space for the others. A search of the path MTU sends
// 17 probes at once.
const maxPending = 64

// notify hands an event to the control goroutine. If too many wait, the event is
// dropped and counted: lanes never wait.
func (r *Router) notify(e event) bool {
	if e.link.pending.Add(1) <= maxPending {
		select {
		case r.events <- e:
			return true
		default:
		}
	}
	e.link.pending.Add(-1)
	e.link.drops.add(DropBusy)
	return false
}

// controlLane is lane 0. It sends the probes of all links.
type controlLane struct {
	w     udp.Writer
	nonce seal.Nonce
	out   []udp.Message
	of    []sentProbe // of each of out
	arena []byte
	used  int
	// tooBig are probes that the interface refused as too big.
	tooBig []sentProbe
	// held sends frames that waited for keys, and announcements to the containers of this host.
	held *lane
}

// sentProbe is the link of a probe and its size, in bytes of IP packet.
type sentProbe struct {
	link *sleeve
	size int
}

func (r *Router) newControlLane() *controlLane {
	return &controlLane{w: r.conn.NewSingleWriter(64), arena: make([]byte, 2*maxPacket), held: r.newLane(r.lanes-2, r.queues[0])}
}

// sweepEvery is how often old MAC addresses are removed.
const sweepEvery = time.Minute

// rttEvery is the least time between two reports of a round trip time to the mesh.
const rttEvery = 5 * time.Second

// controlLoop owns the links until ctx ends.
func (r *Router) controlLoop(ctx context.Context) error {
	r.ctl = r.newControlLane()
	timer := time.NewTimer(0)
	defer timer.Stop()
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case f := <-r.calls:
			f()
		case e := <-r.events:
			r.handle(e)
		case w := <-r.wants:
			r.control.Want(w.peer, w.sends)
		case <-r.groups.wake:
		case <-timer.C:
			// Before a path is called dead: answers may have waited for this goroutine.
			for range len(r.events) {
				r.handle(<-r.events)
			}
			now := time.Now()
			for _, l := range r.links {
				if !l.deadline.IsZero() && !now.Before(l.deadline) {
					r.step(l, l.machine.Tick(now))
				}
			}
		case <-sweep.C:
			r.macs.Expire(r.since())
		}
		r.flushProbes()
		r.announceMoves(r.ctl.held)
		groups := r.tickGroups(r.ctl.held)
		timer.Reset(max(min(r.untilNext(), time.Until(groups)), time.Millisecond))
	}
}

// untilNext returns how long nothing is due, at least a millisecond, so that a
// faulty step machine cannot take the CPU.
func (r *Router) untilNext() time.Duration {
	next := time.Hour
	now := time.Now()
	dropped, heldUntil := r.held.expire(r.since())
	r.drops[DropNoKey].Add(uint64(dropped))
	if heldUntil != 0 {
		next = heldUntil - r.since()
	}
	if at, ok := r.neighbours.moves.Next(); ok {
		next = min(next, at.Sub(now))
	}
	for _, l := range r.links {
		if !l.deadline.IsZero() {
			next = min(next, l.deadline.Sub(now))
		}
	}
	return max(next, time.Millisecond)
}

func (r *Router) handle(e event) {
	l := e.link
	l.pending.Add(-1)
	if r.links[l.peer] != l {
		return // the link has ended
	}
	now, before := time.Now(), l.machine.Addr()
	switch e.kind {
	case asked:
		r.step(l, l.machine.Asked(now))
	case answered:
		r.step(l, l.machine.Answered(now, e.probe))
	case moved:
		r.step(l, l.machine.Moved(now, e.addr))
	case firstUse:
		r.step(l, l.machine.FirstUse(now, e.index))
	case tooBig:
		r.step(l, l.machine.TooBig(now, e.size))
	case used:
		r.step(l, l.machine.Used(now))
	}
	if after := l.machine.Addr(); after != before {
		r.log.Info("peer moved", "peer", l.peer, "from", before, "to", after)
	}
}

func (r *Router) neighbourUp(n Neighbour) {
	if n.Name == r.self {
		r.log.Error("session with a peer that has this router's own name", "peer", n.Name)
		return
	}
	if n.Addr.IsValid() {
		// As the socket reports it, or the peer would seem to have moved.
		n.Addr = netip.AddrPortFrom(n.Addr.Addr().Unmap(), n.Addr.Port())
	}
	if l, ok := r.links[n.Name]; ok {
		if l.secret == n.Secret {
			r.step(l, l.machine.SetAddr(time.Now(), n.Addr))
			return
		}
		r.neighbourDown(n.Name, r.fast.Down)
	}
	l := newSleeve(n)
	cfg := link.Config{
		Self: r.self, Peer: n.Name, Secret: n.Secret, Suites: seal.Local(), Addr: n.Addr,
		Lanes: r.lanes, MaxMTU: r.cfg.MaxUnderlayMTU, Epoch: r.epoch, Entropy: crand.Reader,
		Jitter:   rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		NewIndex: func() uint32 { return r.newIndex(l) }, RenewPackets: r.cfg.renewPackets,
		Traffic: l.uses.Load, Pace: func() time.Duration { return liveness.Pace(r.busy) },
		Links: func() int { return len(r.links) },
	}
	if c, ok := r.conn.(udp.Backlogger); ok {
		cfg.Unread = c.Backlog
	}
	r.links[n.Name] = l
	r.fast.Up(n.Name, fastpath.Session{Secret: n.Secret, Key: n.Key, Addr: n.Addr.Addr()})
	var effects []link.Effect
	l.machine, effects = link.New(cfg, time.Now())
	r.step(l, effects)
	r.rebuild()
}

// neighbourDown ends a link. down tells the fast path.
func (r *Router) neighbourDown(name peer.Name, down func(peer.Name)) {
	l, ok := r.links[name]
	if !ok {
		down(name) // it may keep a path from an earlier session
		return
	}
	delete(r.links, name)
	if l.busy {
		r.busy--
	}
	r.changeKeys(func(keys map[uint32]*rxKey) {
		maps.DeleteFunc(keys, func(_ uint32, k *rxKey) bool { return k.link == l })
	})
	for _, i := range l.indexes {
		delete(r.taken, i)
	}
	l.tx.Store(nil)
	l.maxBody.Store(0)
	down(name)
	r.rebuild()
	if l.reported.up {
		r.linksLost.Add(1)
		r.control.SetLink(name, false, 0)
	}
}

// newIndex returns a random receiver index. It is random so that a packet for a key
// of an earlier process of this router seldom matches.
func (r *Router) newIndex(l *sleeve) uint32 {
	for {
		i := 1 + rand.Uint32N(wire.MaxIndex)
		if !r.taken[i] {
			r.taken[i] = true
			l.indexes = append(l.indexes, i)
			return i
		}
	}
}

func (r *Router) handleControl(from peer.Name, msg []byte) {
	l, ok := r.links[from]
	if !ok {
		r.log.Debug("ignored link control from a peer that is no neighbour", "peer", from)
		return
	}
	if msg, ok = l.session.Message(msg); !ok {
		r.log.Debug("ignored link control of another session", "peer", from)
		return
	}
	if c, known, err := wire.ParseControl(msg); err == nil && known && c.Type == wire.Fast {
		r.fast.Control(from, c)
		return
	}
	effects, err := l.machine.Control(time.Now(), msg)
	if err != nil && l.refused.Allow() {
		r.log.Warn("refused link control", "peer", from, "err", err)
	}
	r.step(l, effects)
}

func (r *Router) setRoutes(routes *topology.Routes) {
	old := r.routes
	r.routes, r.from = routes, origin.New(routes.From, r.from, r.since())
	r.rebuild()
	r.fast.Routes(routes) // before Keeps, so that either the router or the controller forgets
	for name := range old.Unicast {
		if _, ok := routes.Unicast[name]; !ok && !r.fast.Keeps(name) {
			r.macs.Forget(name)
		}
	}
}

// rebuild builds the lanes' tables after a change of links or routes.
func (r *Router) rebuild() {
	r.fib.Store(newFIB(r.self, r.routes, r.links, r.from, r.cfg.SealRelayed))
	r.viewGroups()
	byName := maps.Clone(r.links)
	r.byName.Store(&byName)
}

// changeKeys replaces the table of receive keys with a changed copy.
func (r *Router) changeKeys(change func(map[uint32]*rxKey)) {
	keys := maps.Clone(*r.keys.Load())
	change(keys)
	r.keys.Store(&keys)
}

// step carries out the effects of a step machine and publishes the state of the
// link.
func (r *Router) step(l *sleeve, effects []link.Effect) {
	for _, e := range effects {
		r.effect(l, e)
	}
	l.deadline = l.machine.Next()
	if busy := l.machine.Busy(time.Now()); busy != l.busy {
		if l.busy = busy; busy {
			r.busy++
		} else {
			r.busy--
		}
		l.quiet.Store(!busy)
	}
	state := l.publish()
	r.followPath(l, state)
	r.reportLink(l, state)
}

// followPath reports the address of the peer's end and the MTU of the path to the
// fast path, if they changed.
func (r *Router) followPath(l *sleeve, state link.State) {
	p := l.path
	if p.addr = l.machine.Addr().Addr(); state == link.Established {
		p.mtu = l.machine.MTU()
	}
	if p != l.path {
		l.path = p
		r.fast.Path(l.peer, p.addr, p.mtu)
	}
}

func (r *Router) effect(l *sleeve, e link.Effect) {
	switch e := e.(type) {
	case link.SendControl:
		r.sendControl(l, e.Msg)
	case link.SendProbe:
		r.sendProbe(l, e)
	case link.Silent:
		r.control.Doubt(l.peer)
	case link.InstallRx:
		r.changeKeys(func(keys map[uint32]*rxKey) { keys[e.Index] = &rxKey{rx: e.Rx, link: l} })
	case link.RemoveRx:
		r.changeKeys(func(keys map[uint32]*rxKey) { delete(keys, e.Index) })
		delete(r.taken, e.Index)
		l.indexes = slices.DeleteFunc(l.indexes, func(i uint32) bool { return i == e.Index })
	case link.UseTx:
		l.tx.Store(e.Tx)
		if e.Tx != nil && r.cfg.SealRelayed {
			r.sendHeld(l.peer)
		}
	}
}

// sendControl sends a message of link control over the session.
func (r *Router) sendControl(l *sleeve, msg []byte) {
	if err := r.control.Send(l.peer, l.session.Tagged(msg)); err != nil {
		r.log.Debug("link control not sent", "peer", l.peer, "err", err)
	}
}

// sendProbe seals a probe. flushProbes sends it.
func (r *Router) sendProbe(l *sleeve, e link.SendProbe) {
	tx := l.tx.Load()
	if tx == nil || !e.To.IsValid() {
		return
	}
	c := r.ctl
	n := wire.HeaderLen + max(wire.ProbeLen, int(e.Body.Size)-outerLen(e.To)-wire.Overhead)
	if c.used+n+wire.AuthTagLen > len(c.arena) {
		c.write()
	}
	b := c.arena[c.used:][:n]
	c.used += n + wire.AuthTagLen
	clear(b)
	e.Body.Put(b[wire.HeaderLen:])
	p, err := tx.Seal(wire.Probe, 0, b, &c.nonce)
	if err != nil {
		l.drops.add(DropSend)
		return
	}
	c.out = append(c.out, udp.Message{Buf: p, N: len(p), Addr: e.To})
	c.of = append(c.of, sentProbe{l, int(e.Body.Size)})
}

// write hands the waiting probes to the kernel.
func (c *controlLane) write() {
	for first := 0; first < len(c.out); {
		n, err := c.w.WriteBatch(c.out[first:])
		for i := first; i < first+n; i++ {
			c.of[i].link.countSent(c.out[i].N)
			c.of[i].link.sendErr = ""
		}
		first += n
		if err == nil || first == len(c.out) {
			continue
		}
		if p := c.of[first]; udp.IsTooBig(err) && p.size > 0 {
			c.tooBig = append(c.tooBig, p)
		} else {
			p.link.drops.add(DropSend)
			p.link.sendErr = "send: " + err.Error()
			p.link.publish()
		}
		first++
	}
	c.out, c.of, c.used = c.out[:0], c.of[:0], 0
}

// flushProbes sends the waiting probes, and smaller ones in place of those that the
// interface refused.
func (r *Router) flushProbes() {
	c := r.ctl
	for c.write(); len(c.tooBig) > 0; c.write() {
		refused := c.tooBig
		c.tooBig = nil
		for _, p := range refused {
			if r.links[p.link.peer] == p.link {
				r.step(p.link, p.link.machine.TooBig(time.Now(), p.size))
			}
		}
	}
}

// reportLink reports a change of a link to the mesh and the log.
func (r *Router) reportLink(l *sleeve, state link.State) {
	if r.links[l.peer] != l {
		return
	}
	up, rtt, now := state == link.Established, l.machine.RTT(), time.Now()
	switch {
	case up != l.reported.up:
		s := l.status.Load()
		if up {
			r.log.Info("link established", "peer", l.peer, "addr", s.addr, "cipher", s.suite, "mtu", s.mtu, "rtt", rtt)
		} else {
			r.linksLost.Add(1)
			r.log.Warn("link lost", "peer", l.peer, "addr", s.addr, "reason", s.reason)
		}
	case !up || now.Sub(l.reported.at) < rttEvery || (rtt-l.reported.rtt).Abs() <= l.reported.rtt/4+time.Millisecond:
		return
	}
	l.reported = reportedLink{up, rtt, now}
	r.control.SetLink(l.peer, up, rtt)
}
