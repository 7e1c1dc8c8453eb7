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
// Run starts one loop, one acceptor, one goroutine for each gossip channel, one for the
// topology and its routes, and for each session a reader and a writer. They change the
// state behind mu in short steps. Nobody touches a socket or a disk, makes a callback or
// merges gossip while holding mu. Code that only reads uses the View, which is immutable.
package mesh

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
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
	ChannelPasswords uint8 = 7
	ChannelBindings  uint8 = 8
	ChannelGroups    uint8 = 9
)

// Kind is the purpose of a unicast message. The numbers are on the wire:
// append-only.
type Kind uint8

// Kinds of unicast messages. KindIPAM and KindIPAM6 are signed by their source; see
// SendSigned.
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
	// KindPassword is for messages between neighbours about a new password; see package
	// mesh/rotation. They are never relayed.
	KindPassword Kind = 8
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
	// Passwords are the keys of the passwords that are accepted; the first one is offered. If
	// there is none, the mesh has no password.
	Passwords []session.PSK
	// ConnLimit is the largest number of sessions, 0 for no limit.
	ConnLimit int
	// Discover makes the peer dial every member, not only the targets.
	Discover bool
	Targets  []string
	// LastPeers are peers with which there was a session in an earlier run. They are dialled
	// at once if Discover is set, so that the others need not find out that this peer is back.
	LastPeers []LastPeer
	// ShortID is the first short id to try, 0 for one that is derived from the
	// name. Routes has the short id that the peer gets in the end.
	ShortID uint16
	// Bindings are the keys of overridden names, as SaveBindings got them in an earlier
	// run. SaveBindings keeps them after each change, nil for not at all; it may block.
	Bindings     []peer.Binding
	SaveBindings func([]peer.Binding) error
	// Refuse returns why there may be no session with a host at an address, nil if there
	// may be one. Neither are connections from such an address accepted, nor are members
	// dialled there. Targets are not checked. It is called often, from any goroutine.
	Refuse func(netip.Addr) error
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

	dialLoopback bool       // dial members on loopback, which tests need
	dialFrom     netip.Addr // dial from this address, in tests
	settleTime   time.Duration
}

// Neighbour is a peer with which there is a session, direct or relayed.
type Neighbour struct {
	Name     peer.Name
	Nickname string
	// Addr is the probable address of the peer's UDP port: the address at which the
	// peer is seen, with the port on which it says that it listens. For a relayed
	// session it is the address at which a common neighbour sees the peer; it is invalid
	// at first, and NeighbourUp is called again, with the same secret, when it is known.
	Addr netip.AddrPort
	// Secret is known only to the two peers, and differs for each session.
	Secret   [32]byte
	Dialled  bool // this peer dialled
	Instance uint64
	Key      peer.Key // that the peer proved
}

// Ending is why a session ended.
type Ending int

// Endings.
const (
	// Away: the connection broke, the peer was silent, it said that it stops, or a new
	// session takes the place of the old one. The peer may be back soon.
	Away Ending = iota
	// Rejected: one of the two peers does not want the session: because of what the other
	// did, because it has too many, or because the name belongs to another key now. Both
	// ends hear the same, unless the connection breaks.
	Rejected
)

// Refused is a handshake that failed because one of the two hosts does not want the
// other: the passwords differ, the name belongs to another key, they have no version of the
// protocol in common, or the peer is banned. Nothing about the far end is proved but that it owns Addr
// or is on the path to it, as it completed a TCP handshake.
type Refused struct {
	Addr netip.Addr
	Code session.Code
	// Dialled reports that this peer opened the connection, so the far end listens on
	// the port of a router. If not, any process behind Addr may have opened it.
	Dialled bool
}

// Observer is called for each event, in order and from one goroutine.
type Observer interface {
	NeighbourUp(Neighbour)
	NeighbourDown(peer.Name, Ending)
	// HandshakeRefused is called for a handshake that failed while there was no
	// session. Such events are lost if too many wait.
	HandshakeRefused(Refused)
	// PeersBanned is called after other peers are banned. banned reports whether the peer
	// with a key is.
	PeersBanned(banned func(peer.Key) bool)
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

	settleTime time.Duration
	hs         session.Config
	listener   net.Listener
	start      time.Time
	members    *member.List
	// relayedStreams carry the sessions of relayed.go.
	relayedStreams *stream.Mux

	// Constant once Run is called.

	handlers [256]func(from peer.Name, msg []byte)
	channels map[uint8]*gossipChannel
	order    []*gossipChannel // the channels in order of number
	topo     *topology.State  // guarded by the state of its channel
	book     names

	signed     signed
	handshakes handshakes

	// Atomic.

	view atomic.Pointer[View]
	// neighbours has the one session with each neighbour, direct or relayed. The
	// map is immutable; setNeighbour replaces it under mu.
	neighbours atomic.Pointer[map[peer.Name]*neighbour]
	// targetPeers has the peers that answer at targets; the map is immutable.
	targetPeers atomic.Pointer[map[peer.Name]bool]
	// targetAnswered is set if there are no targets, or one has answered.
	targetAnswered atomic.Bool
	collided       atomic.Pointer[time.Time]  // when another router last used the identity of this one; nil: never
	passwords      atomic.Pointer[passwords]  // see passwords.go
	banned         atomic.Pointer[bannedKeys] // see ban.go
	refusers       atomic.Pointer[refusers]   // see ban.go
	bansChanged    atomic.Bool
	// bannedPlaces has a lock of its own.
	bannedPlaces bannedPlaces
	counters     counters

	topologyStats atomic.Pointer[topology.Stats]
	knownAddrs    atomic.Pointer[map[netip.Addr]bool] // of targets and entries
	loopback      atomic.Bool                         // members may be dialled on loopback
	clockOffset   atomic.Int64                        // what most peers' clocks show more than that of this host

	// loopWake, topologyWake and saverWake start the next round of their goroutines.
	loopWake, topologyWake, saverWake chan struct{}

	hostAddrs hostAddrs

	// Guarded by mu. It is not held during I/O, merges or callbacks. Gossip channels are
	// called without it, so they may call all methods of Mesh while they hold their own
	// lock, if nobody waits for that lock in a handler or an Observer.
	mu           sync.Mutex
	maker        *dial.Maker
	data         map[peer.Name]dataLink // the state of links that the router reported
	events       []func(Observer)
	relayedTries map[peer.Name]*relayedTry // of relayed sessions
	// wantedSessions are those whose keys the router uses.
	wantedSessions map[peer.Name]*wanted
	punches        int                       // number of requests
	targetAddrs    map[netip.Addr]bool       // at which sessions with targets were
	pendingAddrs   map[peer.Name]pendingAddr // addresses of peers whose relayed session is not up yet
	problems       problems
	bans           bans
	closing        bool

	wg sync.WaitGroup // of all goroutines
}

type dataLink struct {
	up      bool
	rtt     time.Duration
	changed time.Time // of up
}

type counters struct {
	terminations  atomic.Uint64
	relayed       atomic.Uint64
	unicastDrops  atomic.Uint64
	misbehaved    atomic.Uint64
	refusedAddrs  atomic.Uint64 // connections from addresses that Config.Refuse refuses
	evicted       atomic.Uint64 // sessions ended to make room
	unproved      atomic.Uint64 // signed messages that were refused
	unwanted      atomic.Uint64 // sessions that the router wanted and that were too many
	handshakeFail [session.CodeOther + 1]atomic.Uint64
}

// New returns a Mesh that listens on its port.
func New(cfg Config) (*Mesh, error) {
	m := &Mesh{
		cfg: cfg, log: cfg.Log, self: cfg.Identity.Name,
		settleTime: cmp.Or(cfg.settleTime, settleTime),
		loopWake:   make(chan struct{}, 1), topologyWake: make(chan struct{}, 1), saverWake: make(chan struct{}, 1),
		channels: make(map[uint8]*gossipChannel),
		data:     make(map[peer.Name]dataLink),
	}
	var seed [32]byte
	if _, err := crand.Read(seed[:]); err != nil {
		return nil, fmt.Errorf("start the mesh: read random bytes: %w", err)
	}
	m.instance = binary.BigEndian.Uint64(seed[:])
	rng := rand.New(rand.NewChaCha8(seed))
	m.start = time.Now()
	m.book.addrOf = func(n peer.Name) netip.Addr {
		if n.IsZero() { // the name of this host, or one from disk
			return netip.Addr{}
		}
		a, _ := m.Place(n)
		return sourceOf(a)
	}
	for _, err := range m.book.load(cfg.Bindings) {
		m.log.Warn("a stored key is not used", "err", err)
	}
	var err error
	m.topo, err = topology.New(topology.Config{
		Self: m.self, Nickname: cfg.Nickname, Instance: m.instance, Signer: cfg.Identity,
		Verifier: peer.Ed25519{}, Book: &m.book, Start: m.start, ShortID: cfg.ShortID,
		Banned: m.isBanned,
	})
	if err != nil {
		return nil, fmt.Errorf("start the mesh as %s: %w", m.self, err)
	}
	m.topologyStats.Store(&topology.Stats{})
	m.Register(ChannelTopology, m.topo)
	m.maker = dial.New(m.self, cfg.ConnLimit, cfg.Discover, rng)
	for _, t := range cfg.Targets {
		m.maker.AddTarget(t)
	}
	m.allowLoopback(cfg.Targets)
	m.hostAddrs.read(m.start)
	for _, p := range cfg.LastPeers {
		if m.dialable(p.Addr) {
			m.maker.Remember(p.Name, p.Addr, m.start)
		}
	}
	if err := m.prepareHandshakes(); err != nil {
		return nil, err
	}
	m.neighbours.Store(&map[peer.Name]*neighbour{})
	m.relayedTries = make(map[peer.Name]*relayedTry)
	m.targetAddrs = make(map[netip.Addr]bool)
	m.wantedSessions = make(map[peer.Name]*wanted)
	m.pendingAddrs = make(map[peer.Name]pendingAddr)
	v := m.newView()
	v.computeRoutes()
	m.view.Store(v)
	m.updateKnownAddrs(v)
	if err := m.listen(); err != nil {
		return nil, err
	}
	m.members, err = member.Start(member.Config{Self: m.self, Log: m.log, Known: m.knownPeer, Notify: m.memberChanged, Behind: m.behind,
		SendPacket: m.sender(KindMember), SendStream: m.sender(KindMemberStream)})
	if err != nil {
		m.listener.Close()
		return nil, err
	}
	m.Handle(KindMember, m.members.Packet)
	m.handleStreams(KindMemberStream, m.members.Stream)
	m.relayedStreams = stream.New(relayedLimits, m.behind, m.sender(KindRelayed), m.acceptRelayed)
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
	keys := m.cfg.Passwords
	if len(keys) == 0 {
		keys = []session.PSK{{}}
	}
	m.passwords.Store(&passwords{accept: slices.Clone(keys)})
	return nil
}

// Register adds a replicated state under the number of its channel. Call it before
// Run.
func (m *Mesh) Register(channel uint8, c gossip.Channel) {
	if m.channels[channel] != nil {
		panic(fmt.Sprintf("mesh: channel %d registered twice", channel))
	}
	m.channels[channel] = newChannel(m, channel, c, rand.New(rand.NewPCG(m.instance, 0)))
	m.order = m.orderedChannels()
}

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
	m.wg.Add(3 + len(m.order))
	go m.accept(ctx)
	go m.topologyLoop(ctx)
	go m.save(ctx)
	for _, g := range m.order {
		go g.run(ctx)
	}
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

// SetTargets replaces the targets.
func (m *Mesh) SetTargets(targets []string) {
	m.allowLoopback(targets)
	m.mu.Lock()
	for _, t := range targets {
		m.maker.AddTarget(t)
	}
	for _, t := range m.maker.Targets() {
		if !slices.Contains(targets, t) {
			m.maker.ForgetTarget(t)
		}
	}
	m.mu.Unlock()
	m.wakeLoop()
}

// Self returns this peer's name.
func (m *Mesh) Self() peer.Name { return m.self }

// Identity returns this peer's identity.
func (m *Mesh) Identity() *peer.Identity { return m.cfg.Identity }

// Port returns the TCP port on which the mesh listens.
func (m *Mesh) Port() uint16 { return m.hs.Port }
