// Package mesh is the control plane of a router: it finds the other peers,
// keeps sessions with as many of them as it may, floods and repairs the
// replicated state, and carries messages to any peer over any number of hops.
//
// The thinking is done by step machines in sub-packages: dial (whom to dial
// and when), topology (who is linked to whom, routes), gossip (how state
// spreads), member (who is there). This package drives them with sockets and
// the clock.
//
// # Records of a session
//
//	type u8 | body
//
//	0 ping     body: u64, the sender's clock in nanoseconds
//	1 pong     body: that of the ping
//	2 gossip   body: a message of package gossip
//	3 unicast  body: destination 6 | source 6 | hops left u8 | kind u8 | payload
//	4 bye      body: code u8, a session.Code, ok for one that stops | reason, UTF-8; the sender closes
//
// Types are append only; a record of an unknown type is ignored.
//
// # Goroutines
//
// Run starts one loop, one acceptor, and for each session a reader and a
// writer. The state behind mu is changed by all of them in short steps; no
// socket is touched and no callback made while mu is held. Whoever needs only
// to read takes the View, which is immutable.
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

// Numbers of the gossip channels. They are on the wire: append only.
const (
	ChannelTopology  uint8 = 1
	ChannelRing      uint8 = 2
	ChannelElection  uint8 = 3
	ChannelRing6     uint8 = 4
	ChannelElection6 uint8 = 5
	ChannelNames     uint8 = 6
)

// Kind tells apart what unicast messages are for. They are on the wire: append
// only.
type Kind uint8

// Kinds of unicast messages.
const (
	KindMember Kind = 1
	KindIPAM   Kind = 2
	KindIPAM6  Kind = 3
	// KindLink is between two peers with a session: it is neither relayed nor
	// taken from a relay.
	KindLink         Kind = 4
	KindMemberStream Kind = 5
	// KindRelayed carries the session of two peers that cannot dial each other.
	KindRelayed Kind = 6
	// KindPunch is between neighbours; see punch.go.
	KindPunch Kind = 7
)

// MaxUnicast is the most bytes of a unicast message.
const MaxUnicast = 56 << 10

// Config is what a Mesh starts from.
type Config struct {
	Identity *peer.Identity
	Nickname string
	// Host is the address to listen at, invalid for all; Port the TCP port.
	Host netip.Addr
	Port uint16
	// Passwords that are accepted; the first is offered. None: a mesh without
	// a password.
	Passwords []string
	// ConnLimit is the most sessions, 0 for any number.
	ConnLimit int
	// Discover has every member dialled, not only the targets.
	Discover bool
	Targets  []string
	// ShortID is the short id to begin with, 0 for that which the name gives.
	// Which one the peer has in the end is in the Routes.
	ShortID uint16
	// Advertise is where the members are told to dial, if set; else they are
	// told the addresses that this peer uses and is seen at.
	Advertise []netip.AddrPort
	// UDPAddr tells at which UDP address a neighbour is seen. Without it there
	// are no relayed sessions.
	UDPAddr func(peer.Name) (netip.AddrPort, bool)
	// ProtocolMin and ProtocolMax are for tests of versions; 0 for what this
	// program speaks.
	ProtocolMin, ProtocolMax uint8
	Log                      *slog.Logger
}

// Neighbour is a peer with which there is a session, direct or relayed.
type Neighbour struct {
	Name     peer.Name
	Nickname string
	// Addr is where the peer's UDP port should be: the address at which the peer
	// is seen with the port at which it says it listens; for a relayed session
	// what a common neighbour sees.
	Addr netip.AddrPort
	// Secret is known to the two peers alone, and another one for each session.
	Secret   [32]byte
	Dialled  bool // this peer dialled
	Instance uint64
}

// Observer is told what happens, in order and from one goroutine.
type Observer interface {
	NeighbourUp(Neighbour)
	NeighbourDown(peer.Name)
	// LinkMessage is a message of KindLink from a neighbour. It owns msg.
	LinkMessage(from peer.Name, msg []byte)
	// RoutesChanged has the routes for frames, over working data links.
	RoutesChanged(*topology.Routes)
	// ViewChanged tells that who can be reached has changed.
	ViewChanged(*View)
}

// Mesh is a running control plane.
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

	// wake has the loop go round now.
	loopWake chan struct{}

	// Guarded by mu. It is held for no I/O and no callback; channels of gossip
	// may take their own lock while it is held, so none may call Mesh's methods
	// that take mu while it holds that lock. Announce, Send and View do not.
	mu           sync.Mutex
	topo         *topology.State
	book         *peer.Book
	engine       *gossip.Engine
	maker        *dial.Maker
	data         map[peer.Name]dataLink // what the router says of its links
	events       []func(Observer)
	relayedTries map[peer.Name]*relayedTry // at relayed sessions
	punches      int                       // asked for
	pendingAddrs map[peer.Name]pendingAddr // addresses of peers whose relayed session is not there yet
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

// New prepares a Mesh and opens its port.
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
		return fmt.Errorf("listen for peers at TCP %s: %w", addr, errors.Unwrap(err))
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

// Register adds a replicated state. Call it before Run.
func (m *Mesh) Register(channel uint8, c gossip.Channel) { m.engine.Register(channel, c) }

// Handle has f called with each unicast message of a kind, which f then owns.
// F is called from the readers of sessions: it must not block. Call Handle
// before Run.
func (m *Mesh) Handle(k Kind, f func(from peer.Name, msg []byte)) { m.handlers[k] = f }

// Close gives back what New opened, if Run will not be called.
func (m *Mesh) Close() {
	m.listener.Close()
	m.members.Close()
	m.relayedStreams.Close()
}

// Run drives the mesh until ctx is done; then it takes leave of the others and
// returns when all that it started has ended.
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
				n.goodbye(session.CodeOK, "the router stops")
			}
		}
	}
	m.relayedStreams.Close()
	m.wg.Wait()
	return nil
}

// Times of the loop.
const (
	// routesEvery is how often at most routes are worked out: a mesh that comes
	// up changes a hundred times a second.
	routesInterval = 50 * time.Millisecond
	// soonest is the least time from one round that only a timer asked for to the
	// next.
	minRoundInterval = 10 * time.Millisecond
)

// loop does what is due, when it is due and when it is woken.
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

// rounds is what one round of the loop leaves to the next.
type loopState struct {
	generation uint64    // of the topology that the routes are of
	routesAt   time.Time // when they were worked out
	slowAt     time.Time // when to do next what is done every pingEvery
}

// round does what is due and returns when the next round is.
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
		// Here, where changes that came together are worked off together: each
		// choice of an id is told to the whole mesh.
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

// pingAll gives neighbours a sign of life. It is called with mu held.
func (m *Mesh) pingAll(now time.Time) {
	all := now.UnixNano()/int64(pingEvery)%linkedPingFactor == 0
	for _, n := range *m.neighbours.Load() {
		if all || !n.linked.Load() {
			n.ping()
		}
	}
}

// poke has the loop go round soon.
func (m *Mesh) wakeLoop() {
	select {
	case m.loopWake <- struct{}{}:
	default:
	}
}

// rouse has the writers of neighbours ask the engine for messages.
func (m *Mesh) wakeWriters(names []peer.Name) {
	all := *m.neighbours.Load()
	for _, name := range names {
		if n := all[name]; n != nil {
			n.wakeWriter()
		}
	}
}

// Announce spreads a change of a registered channel. It does not block and
// calls nothing back.
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

// SetData tells what the router has found of its data link to a neighbour.
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

// updateLinks puts what this peer has with its neighbours into its entry.
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

// noteRefusals logs the entries that were not taken in.
func (m *Mesh) reportRefusals() {
	for _, r := range m.topo.Refused() {
		text := fmt.Sprintf("entry of peer %s refused, from %s: %v", r.Owner, m.displayName(r.From), r.Cause)
		if m.problems.record(text, time.Now()) {
			m.log.Warn("topology entry refused", "peer", r.Owner, "from", r.From, "err", r.Cause)
		}
		// Who is honest passes nothing on that it has not checked.
		if n := m.direct(r.From); n != nil && errors.Is(r.Cause, topology.ErrForged) {
			reason := fmt.Sprintf("it handed over an entry of peer %s: %v", r.Owner, r.Cause)
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

// Connect adds targets; with replace, those not among them are forgotten.
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

// Forget drops targets and returns those that were none.
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

// Self is this peer's name.
func (m *Mesh) Self() peer.Name { return m.self }

// Identity signs for this peer.
func (m *Mesh) Identity() *peer.Identity { return m.cfg.Identity }

// Port is the TCP port at which the mesh listens.
func (m *Mesh) Port() uint16 { return m.hs.Port }
