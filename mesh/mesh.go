// Package mesh is the control plane of a router. It finds the other peers, keeps
// sessions with as many of them as it may, replicates state among them, and carries
// messages to any peer over any number of hops.
//
// The decisions are made by step machines in sub-packages: dial (which peers to dial
// and when), topology (links and routes), gossip (how state spreads) and member
// (membership). This package drives them with sockets and the clock.
//
// # Records of a session
//
//	type u8 | body
//
//	0 ping     body: u64, the sender's clock in nanoseconds
//	1 pong     body: the body of the ping
//	2 gossip   body: a message of package gossip
//	3 unicast  body: destination 6 | source 6 | hops left u8 | kind u8 | payload
//	4 bye      body: code u8, a session.Code, ok if the sender stops | reason, UTF-8; the sender closes
//	5 alive    body: as ping, but not answered
//
// Types are append-only; a record of an unknown type is ignored.
//
// # Goroutines
//
// Run starts one loop, one acceptor, and for each session a reader and a writer.
// All of them change the state behind mu in short steps. Nobody touches a socket or
// makes a callback while holding mu. Code that only reads uses the View, which is
// immutable.
package mesh

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/mesh/dial"
	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/member"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/session"
	"github.com/weft-net/weft/mesh/stream"
	"github.com/weft-net/weft/mesh/topology"
)

// DefaultPort is the TCP port of sessions, and the UDP port of sleeve.
const DefaultPort = 6783

// Numbers of the gossip channels. They are on the wire: append-only.
const (
	ChannelTopology  uint8 = 1
	ChannelRing      uint8 = 2
	ChannelElection  uint8 = 3
	ChannelRing6     uint8 = 4
	ChannelElection6 uint8 = 5
	ChannelNames     uint8 = 6
)

// Kind is the purpose of a unicast message. The numbers are on the wire:
// append-only.
type Kind uint8

// Kinds of unicast messages.
const (
	KindMember Kind = 1
	KindIPAM   Kind = 2
	KindIPAM6  Kind = 3
	// KindLink is for messages between two peers with a session. They are never
	// relayed.
	KindLink         Kind = 4
	KindMemberStream Kind = 5
	// KindRelayed carries the session of two peers that cannot dial each other.
	KindRelayed Kind = 6
	// KindPunch is for messages between neighbours; see punch.go.
	KindPunch Kind = 7
)

// MaxUnicast is the size limit of a unicast message, in bytes.
const MaxUnicast = 56 << 10

// Config configures a Mesh.
type Config struct {
	Identity *peer.Identity
	Nickname string
	// Host is the address to listen on, invalid for all addresses. Port is the TCP
	// port, 0 for any free one.
	Host netip.Addr
	Port uint16
	// Passwords are those that are accepted; the first one is offered. If there is
	// none, the mesh has no password.
	Passwords []string
	// ConnLimit is the largest number of sessions, 0 for no limit.
	ConnLimit int
	// Discover makes the peer dial every member, not only the targets.
	Discover bool
	Targets  []string
	// ShortID is the first short id to try, 0 for one that is derived from the
	// name. Routes has the short id that the peer gets in the end.
	ShortID uint16
	// Advertise is the list of addresses at which members dial this peer. If it is
	// nil, they are the addresses that this peer uses and those at which its
	// neighbours see it.
	Advertise []netip.AddrPort
	// UDPAddr returns the UDP address at which a neighbour is seen. If it is nil
	// there are no relayed sessions.
	UDPAddr func(peer.Name) (netip.AddrPort, bool)
	// ProtocolMin and ProtocolMax are for tests of versions; 0 for the versions that
	// this program speaks.
	ProtocolMin, ProtocolMax uint8
	Log                      *slog.Logger
}

// Neighbour is a peer with which there is a session, direct or relayed.
type Neighbour struct {
	Name     peer.Name
	Nickname string
	// Addr is the probable address of the peer's UDP port: the address at which the
	// peer is seen, with the port on which it says that it listens. For a relayed
	// session it is the address at which a common neighbour sees the peer.
	Addr netip.AddrPort
	// Secret is known only to the two peers, and differs for each session.
	Secret   [32]byte
	Dialled  bool // this peer dialled
	Instance uint64
}

// Observer is called for each event, in order and from one goroutine.
type Observer interface {
	NeighbourUp(Neighbour)
	NeighbourDown(peer.Name)
	// LinkMessage is called for a message of KindLink from a neighbour. It owns msg.
	LinkMessage(from peer.Name, msg []byte)
	// RoutesChanged is called with the routes for frames, over working data links.
	RoutesChanged(*topology.Routes)
	// ViewChanged is called when other peers became reachable or unreachable.
	ViewChanged(*View)
}

// Mesh is a control plane. Make it with New, then call Run, or Close to discard it.
type Mesh struct {
	// Constant after New.

	cfg      Config
	log      *slog.Logger
	self     peer.Name
	instance uint64
	hs       session.Config
	listener net.Listener
	sources  sources
	start    time.Time
	members  *member.List
	// relayedStreams carry the sessions of relayed.go.
	relayedStreams *stream.Mux

	// Constant once Run is called.

	handlers [256]func(from peer.Name, msg []byte)

	// Atomic.

	view atomic.Pointer[View]
	// neighbours has the one session with each neighbour, direct or relayed. The
	// map is immutable; setNeighbour replaces it under mu.
	neighbours atomic.Pointer[map[peer.Name]*neighbour]
	counters   counters

	// loopWake starts the next round of the loop.
	loopWake chan struct{}

	// Guarded by mu. It is not held during I/O or callbacks. Gossip channels may take
	// their own lock while it is held. So a channel that holds its lock must not call
	// methods of Mesh that take mu; Announce, Send and View do not.
	mu           sync.Mutex
	topo         *topology.State
	book         *peer.Book
	engine       *gossip.Engine
	maker        *dial.Maker
	data         map[peer.Name]dataLink // the state of links that the router reported
	events       []func(Observer)
	relayedTries map[peer.Name]*relayedTry // of relayed sessions
	punches      int                       // number of requests
	pendingAddrs map[peer.Name]pendingAddr // addresses of peers whose relayed session is not up yet
	problems     problems
	closing      bool

	announceMu sync.Mutex // inner to everything
	announced  []announcement

	wg sync.WaitGroup // of all goroutines
}

type dataLink struct {
	up      bool
	rtt     time.Duration
	changed time.Time // of up
}

type announcement struct {
	channel uint8
	delta   []byte
}

type counters struct {
	terminations  atomic.Uint64
	relayed       atomic.Uint64
	unicastDrops  atomic.Uint64
	handshakeFail [session.CodeOther + 1]atomic.Uint64
}

// New returns a Mesh that listens on its port.
func New(cfg Config) (*Mesh, error) {
	m := &Mesh{
		cfg: cfg, log: cfg.Log, self: cfg.Identity.Name,
		loopWake: make(chan struct{}, 1),
		book:     new(peer.Book),
		data:     make(map[peer.Name]dataLink),
	}
	var seed [32]byte
	if _, err := crand.Read(seed[:]); err != nil {
		return nil, fmt.Errorf("start the mesh: read random bytes: %w", err)
	}
	m.instance = binary.BigEndian.Uint64(seed[:])
	rng := rand.New(rand.NewChaCha8(seed))
	m.start = time.Now()
	var err error
	m.topo, err = topology.New(topology.Config{
		Self: m.self, Nickname: cfg.Nickname, Instance: m.instance, Signer: cfg.Identity,
		Verifier: peer.Ed25519{}, Book: m.book, Start: m.start, ShortID: cfg.ShortID,
	})
	if err != nil {
		return nil, fmt.Errorf("start the mesh as %s: %w", m.self, err)
	}
	m.engine = gossip.NewEngine(rng)
	m.engine.Register(ChannelTopology, m.topo)
	m.maker = dial.New(m.self, cfg.ConnLimit, cfg.Discover, rng)
	for _, t := range cfg.Targets {
		m.maker.AddTarget(t)
	}
	if err := m.prepareHandshakes(); err != nil {
		return nil, err
	}
	m.neighbours.Store(&map[peer.Name]*neighbour{})
	m.relayedTries = make(map[peer.Name]*relayedTry)
	m.pendingAddrs = make(map[peer.Name]pendingAddr)
	m.refreshView()
	if err := m.listen(); err != nil {
		return nil, err
	}
	m.members, err = member.Start(member.Config{Self: m.self, Log: m.log, Notify: m.memberChanged,
		SendPacket: m.sender(KindMember), SendStream: m.sender(KindMemberStream)})
	if err != nil {
		m.listener.Close()
		return nil, err
	}
	m.Handle(KindMember, m.members.Packet)
	m.handleStreams(KindMemberStream, m.members.Stream)
	m.relayedStreams = stream.New(m.sender(KindRelayed), m.acceptRelayed)
	m.handleStreams(KindRelayed, m.relayedStreams.Receive)
	return m, nil
}

func (m *Mesh) listen() (err error) {
	host := ""
	if m.cfg.Host.IsValid() {
		host = m.cfg.Host.String()
	}
	addr := net.JoinHostPort(host, fmt.Sprint(m.cfg.Port))
	l := net.ListenConfig{Control: setUserTimeout}
	if m.listener, err = l.Listen(context.Background(), "tcp", addr); err != nil {
		return fmt.Errorf("listen for peers on TCP %s: %w", addr, errors.Unwrap(err))
	}
	m.hs.Port = uint16(m.listener.Addr().(*net.TCPAddr).Port)
	return nil
}

func (m *Mesh) prepareHandshakes() error {
	static, err := session.NewStatic(crand.Reader)
	if err != nil {
		return fmt.Errorf("start the mesh: make a session key: %w", err)
	}
	m.hs = session.Config{
		Self: m.self, Nickname: m.cfg.Nickname, Instance: m.instance,
		Signer: m.cfg.Identity, Verifier: peer.Ed25519{}, Static: static,
		Min: m.cfg.ProtocolMin, Max: m.cfg.ProtocolMax, Check: m.checkHello, Random: crand.Reader,
	}
	if m.hs.Max == 0 {
		m.hs.Min, m.hs.Max = session.ProtocolMin, session.ProtocolMax
	}
	for _, pw := range m.cfg.Passwords {
		k, err := session.DerivePSK(pw)
		if err != nil {
			return err
		}
		m.hs.Accept = append(m.hs.Accept, k)
	}
	if len(m.hs.Accept) == 0 {
		m.hs.Accept = []session.PSK{{}}
	}
	m.hs.Offer = m.hs.Accept[0]
	return nil
}

// Register adds a replicated state under the number of its channel. Call it before
// Run.
func (m *Mesh) Register(channel uint8, c gossip.Channel) { m.engine.Register(channel, c) }

// Handle registers f for unicast messages of a kind. f owns the message. It is called
// by the readers of sessions, so it must not block. Call Handle before Run.
func (m *Mesh) Handle(k Kind, f func(from peer.Name, msg []byte)) { m.handlers[k] = f }

// Close releases the resources of a Mesh that is not run.
func (m *Mesh) Close() {
	m.listener.Close()
	m.members.Close()
	m.relayedStreams.Close()
}

// Run drives the mesh until ctx is done. Then it says goodbye to the other peers, and
// returns after all its goroutines have ended.
func (m *Mesh) Run(ctx context.Context, o Observer) error {
	m.wg.Add(1)
	go m.accept(ctx)
	m.loop(ctx, o)

	m.mu.Lock()
	m.closing = true
	m.mu.Unlock()
	m.listener.Close()
	m.members.Leave()
	// The relayed ones first: their goodbyes go through the others.
	for _, relayed := range []bool{true, false} {
		for _, n := range *m.neighbours.Load() {
			if n.relayed == relayed {
				n.goodbye(session.CodeOK, "the router is stopping")
			}
		}
	}
	m.relayedStreams.Close()
	m.wg.Wait()
	return nil
}

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
	m.engine.Tick(now)
	attempts := m.maker.Tick(now)
	var relayed []peer.Name
	if !now.Before(l.slowAt) {
		l.slowAt = now.Add(pingEvery - time.Duration(now.UnixNano())%pingEvery)
		m.pingAll(now)
		relayed = m.relayedDue(now)
		for _, n := range m.topo.Expire(now) {
			m.log.Info("peer forgotten: no path has led to it for a minute", "peer", n)
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

// Connect adds targets. If replace is set it forgets all others.
func (m *Mesh) Connect(targets []string, replace bool) {
	m.mu.Lock()
	keep := make(map[string]bool)
	for _, t := range targets {
		keep[t] = true
		m.maker.AddTarget(t)
	}
	if replace {
		for _, t := range m.maker.Targets() {
			if !keep[t] {
				m.maker.ForgetTarget(t)
			}
		}
	}
	m.mu.Unlock()
	m.wakeLoop()
}

// Forget drops targets, and returns the addresses that were not targets.
func (m *Mesh) Forget(targets []string) (unknown []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range targets {
		if !m.maker.ForgetTarget(t) {
			unknown = append(unknown, t)
		}
	}
	return unknown
}

// Targets returns the addresses the user gave, in order.
func (m *Mesh) Targets() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.maker.Targets()
}

// Self returns this peer's name.
func (m *Mesh) Self() peer.Name { return m.self }

// Identity returns this peer's identity.
func (m *Mesh) Identity() *peer.Identity { return m.cfg.Identity }

// Port returns the TCP port on which the mesh listens.
func (m *Mesh) Port() uint16 { return m.hs.Port }
