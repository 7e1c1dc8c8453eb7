package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/keeper"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/owned"
	"github.com/weft-net/weft/internal/udp"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/link"
	"github.com/weft-net/weft/router/mac"
	"github.com/weft-net/weft/router/multicast"
	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/origin"
	"github.com/weft-net/weft/router/resolve"
	"github.com/weft-net/weft/router/tap"
	"github.com/weft-net/weft/router/wire"
)

// Bounds of Config.MTU, in bytes of IP packet: the least that IPv4 hosts must accept, and
// the most that a TAP carries.
const (
	MinMTU = 576
	MaxMTU = 65521
)

// Control is what the router needs of the mesh. One goroutine calls its methods.
// They must not wait for a call into the router.
type Control interface {
	// Self returns the name of this router. It never changes.
	Self() peer.Name
	// Send sends a message of link control to a neighbour over the session:
	// reliable, in order, encrypted. The mesh owns msg after the call.
	Send(to peer.Name, msg []byte) error
	// SetLink reports that the link to a neighbour came up or went down, and its
	// round trip time. It is called again when the time changes a lot.
	SetLink(to peer.Name, up bool, rtt time.Duration)
	// Doubt says that a neighbour does not answer on its link, although its kernel forwards
	// frames. If it does not answer on the session either its router is away, and the session
	// must end before the link fails.
	Doubt(to peer.Name)
	// Want says that this router needs keys with a peer that it has no link with, as
	// frames go there over other peers, or come from there if sends is false. The mesh makes
	// a session with the peer if it can, and keeps it while Want is called every few
	// seconds.
	Want(to peer.Name, sends bool)
}

// Neighbour is a peer that this router has a session with.
type Neighbour struct {
	Name peer.Name
	// Addr is where the UDP port of the peer probably is: the address of its session
	// with the port that it reported. If it is invalid, the link waits for a packet
	// of the peer.
	Addr netip.AddrPort
	// Secret is known to both ends of the session and to nobody else. It is part of
	// every key of the link.
	Secret [32]byte
	// Dialled reports that this end opened the session. For status only.
	Dialled bool
	// Key is the identity that the peer proved. A kernel path outlives a session only
	// towards the same key.
	Key peer.Key
}

// Config configures a Router.
type Config struct {
	// Host and Port are the UDP address to listen on. Host "" is all addresses, port
	// 0 any port.
	Host string
	Port int
	// Bridge and TAP are names of interfaces. The bridge must exist. The router
	// makes the TAP, as a port of the bridge if there is no fast path.
	Bridge, TAP string
	// MTU is the MTU of containers, MinMTU to MaxMTU. A larger one costs fewer
	// packets, but frames that are larger than the links carry are fragmented.
	MTU int
	// MaxUnderlayMTU is the largest packet that links try, in bytes; 65535 if 0.
	// Links find by themselves which sizes pass.
	MaxUnderlayMTU int
	// NoTAPOffload keeps frames of containers at MTU size with complete checksums,
	// instead of GSO packets of up to 64 KB with partial checksums. NoUDPOffload
	// makes each packet cross the kernel by itself. The router finds out by trying
	// which offloads work, so these two are for kernels and cards with faults.
	NoTAPOffload, NoUDPOffload bool
	// SealRelayed keeps peers that relay unicast frames from reading them: such frames are
	// sealed for the peer at the end, and refused if they are not. All peers of a mesh
	// must agree on it.
	SealRelayed bool
	// PlaceOf returns where an IP address is, by the signed word of its host. Requests for the MAC
	// address of one with a place do not leave this host. If it is nil no address has one. It must
	// be safe for concurrent use and not wait for a call into the router.
	PlaceOf func(netip.Addr) resolve.Place
	// Wanted is called with the multicast groups that the containers of this host want, when that changes.
	// If it is nil this router does not ask them. It must not wait for a call into the router.
	Wanted func(multicast.Wants)
	// Fast are the settings of the fast path. If it is nil, or if the kernel refuses
	// eBPF, the TAP is a port of the bridge.
	Fast *fastpath.Settings
	// Keeper keeps the interfaces of the router, and must run. If it is nil the router has
	// one of its own.
	Keeper *keeper.Keeper
	// TAPKernel and UDPKernel are asked for offloads; this host's kernel if nil.
	// Tests set lesser ones.
	TAPKernel *tap.Kernel
	UDPKernel *udp.Kernel
	Sysctls   netdev.Sysctls
	// Log gets what an operator should know; nothing if nil.
	Log *slog.Logger

	// Conn and Queues replace the socket and the TAP if they are not nil. The router
	// closes them.
	Conn   udp.Conn
	Queues []tap.Queue

	// renewPackets is that of link.Config. Tests lower it.
	renewPackets uint64
}

// Router is the data plane of one peer. Make it with New and call Run. All methods
// are safe for concurrent use.
type Router struct {
	// Constant.
	self    peer.Name
	cfg     Config
	control Control
	log     *slog.Logger
	conn    udp.Conn
	queues  []tap.Queue
	start   time.Time
	epoch   time.Time // of heartbeats
	lanes   int
	macs    *mac.Table
	done    chan struct{} // closed when Run has returned
	calls   chan func()   // for the control goroutine
	events  chan event    // likewise, from lanes
	wants   chan want     // likewise: peers with which keys are used
	held    heldQueue
	// neighbours has its own groups of fields.
	neighbours neighbours
	groups     multicastGroups // likewise
	fast       *fastpath.Controller
	keeper     *keeper.Keeper // nil without a TAP of its own
	tap        owned.ID

	// Control goroutine only.
	links  map[peer.Name]*sleeve
	routes *topology.Routes
	from   origin.Table // of routes and of those before
	ctl    *controlLane
	taken  map[uint32]bool // receiver indexes
	busy   int             // how many links carry frames

	// Atomic.
	running   atomic.Bool
	fib       atomic.Pointer[fib]
	keys      atomic.Pointer[map[uint32]*rxKey]
	byName    atomic.Pointer[map[peer.Name]*sleeve] // links, for status
	drops     drops                                 // that belong to no link
	tapIn     atomic.Uint64
	tapOut    atomic.Uint64
	tapGSOIn  atomic.Uint64
	tapGSOOut atomic.Uint64
	linksLost atomic.Uint64
	refused   [offload.UDP + 1]atomic.Bool // kinds of GSO packets that the kernel refuses

	closeOnce sync.Once
}

// New opens the socket and the TAP in the network namespace of the calling thread.
// Nothing is sent until Run is called. Close closes a router that will not run.
func New(cfg Config, control Control) (*Router, error) {
	r := &Router{
		self: control.Self(), cfg: cfg, control: control, log: cfg.Log,
		conn: cfg.Conn, queues: cfg.Queues, start: time.Now(), macs: mac.New(mac.Limits{}),
		done: make(chan struct{}), calls: make(chan func(), 1024), events: make(chan event, 1024),
		wants: make(chan want, 64), held: heldQueue{peers: make(map[peer.Name]*heldPeer)},
		links: make(map[peer.Name]*sleeve), taken: make(map[uint32]bool), fast: fastpath.Off(fastpath.ErrDisabled),
	}
	if cfg.MTU < MinMTU || cfg.MTU > MaxMTU {
		return nil, fmt.Errorf("start the router: mtu %d: want %d to %d", cfg.MTU, MinMTU, MaxMTU)
	}
	// With synchronised clocks all routers send heartbeats at the same moments, and
	// a router does not wake up for each of its links.
	r.epoch = r.start.Add(-time.Duration(r.start.UnixNano()) % link.Beat)
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.cfg.MaxUnderlayMTU == 0 {
		r.cfg.MaxUnderlayMTU = 65535
	}
	if r.conn == nil {
		k := udp.Linux
		if cfg.UDPKernel != nil {
			k = *cfg.UDPKernel
		}
		k.Offloads = k.Offloads && !cfg.NoUDPOffload
		s, err := udp.Listen(cfg.Host, cfg.Port, k)
		if err != nil {
			return nil, fmt.Errorf("start the router: %w", err)
		}
		r.conn = s
	}
	if r.queues == nil {
		q, err := r.openTAP()
		if err != nil {
			r.Close()
			return nil, fmt.Errorf("start the router: %w", err)
		}
		r.queues = []tap.Queue{q}
	}
	if r.lanes = 1 + 2*len(r.queues) + 2 + 2; r.lanes > wire.MaxLanes {
		r.Close()
		return nil, fmt.Errorf("start the router with %d TAP queues: needs %d lanes, limit %d", len(r.queues), r.lanes, wire.MaxLanes)
	}
	r.routes = &topology.Routes{Self: r.self, ByID: map[uint32]peer.Name{r.self.ID(): r.self}}
	r.keys.Store(&map[uint32]*rxKey{})
	r.groups.init()
	r.rebuild()
	return r, nil
}

// openTAP makes the TAP, with offloads if the settings allow and the kernel has
// them, and makes it a port of the bridge unless the fast path has the bridge's
// port.
func (r *Router) openTAP() (tap.Queue, error) {
	q, name, err := r.makeTAP()
	if err != nil {
		return nil, err
	}
	if r.keeper = r.cfg.Keeper; r.keeper == nil {
		if r.keeper, err = keeper.New(r.log); err != nil {
			q.Close()
			return nil, err
		}
	}
	if r.cfg.Fast != nil {
		fast, err := r.openFast(name, q)
		if err != nil {
			q.Close()
			return nil, err
		}
		r.fast = fast
	}
	if err := r.keeper.Add(r.tapObject(name, q)); err != nil {
		q.Close()
		return nil, err
	}
	return q, nil
}

// tapObject is the TAP, which is a port of the bridge unless the fast path has the bridge's
// port.
func (r *Router) tapObject(name string, q tap.Queue) keeper.Object {
	port := netdev.BridgePort{Name: name, Bridge: r.cfg.Bridge, MTU: r.cfg.MTU, Sysctls: r.cfg.Sysctls}
	alone := netdev.Interface{Name: name, MTU: r.cfg.MTU, Sysctls: r.cfg.Sysctls}
	attached := r.fast.Attached()
	r.tap = owned.ID{Kind: owned.TAP, Name: name}
	return keeper.Object{
		ID: r.tap,
		Look: func(v *netdev.View) ([]string, error) {
			switch {
			case attached:
				return alone.Faults(v), nil
			case v.Links[r.cfg.Bridge] == nil:
				return nil, owned.ErrWaits
			}
			return port.Faults(v), nil
		},
		Make: func() error {
			if _, err := netdev.MTU(name); errors.Is(err, unix.ENODEV) {
				if err := q.(tap.Reopener).Reopen(); err != nil {
					return err
				}
			}
			if attached {
				return alone.Ensure()
			}
			return port.Ensure()
		},
	}
}

func (r *Router) openFast(tapName string, q tap.Queue) (*fastpath.Controller, error) {
	host, _ := netip.ParseAddr(r.cfg.Host) // "" for all addresses
	return fastpath.Open(fastpath.Config{
		Host: host, Settings: *r.cfg.Fast, Self: r.self, Bridge: r.cfg.Bridge, TAP: tapName, SleevePort: r.LocalAddr().Port(), MTU: r.cfg.MTU, Sysctls: r.cfg.Sysctls, MACs: r.macs,
		Start: r.start, Epoch: r.epoch, Log: r.log, Keeper: r.keeper,
	}, fastHost{r, q.NewWriter(), q})
}

func (r *Router) makeTAP() (q tap.Queue, name string, err error) {
	if !r.cfg.NoTAPOffload {
		k := tap.Linux
		if r.cfg.TAPKernel != nil {
			k = *r.cfg.TAPKernel
		}
		d, err := tap.Open(r.cfg.TAP, k)
		if err == nil {
			return d, d.Name(), nil
		}
		if !errors.Is(err, tap.ErrRefused) {
			return nil, "", err
		}
		r.log.Warn("the TAP has no offloads", "err", err)
	}
	p, err := tap.OpenPlain(r.cfg.TAP, r.cfg.MTU+maxFrameHead)
	if err != nil {
		return nil, "", err
	}
	return p, p.Name(), nil
}

// Close closes what New opened. It is not needed after Run.
func (r *Router) Close() {
	r.closeOnce.Do(func() {
		_ = r.conn.Close()
		if r.keeper != nil {
			r.keeper.Drop(r.tap)
		}
		for _, q := range r.queues {
			_ = q.Close()
		}
		if !r.running.Load() {
			r.fast.Close()
			r.closeKeeper()
		}
	})
}

// closeKeeper closes the keeper if it is the router's own. Nothing uses it any more.
func (r *Router) closeKeeper() {
	if r.keeper != nil && r.cfg.Keeper == nil {
		r.keeper.Close()
	}
}

// LocalAddr returns the UDP address that the router listens on.
func (r *Router) LocalAddr() netip.AddrPort { return r.conn.LocalAddr() }

// since returns the time on the clock of the lanes.
func (r *Router) since() time.Duration { return time.Since(r.start) }

// Run carries frames until ctx ends, which is no error, or until the socket or the
// TAP fails. It may be called once, and closes what New opened.
func (r *Router) Run(ctx context.Context) error {
	if r.running.Swap(true) {
		return errors.New("run the router: it ran before")
	}
	defer r.Close()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(r.done) // other goroutines of the group may wait in do
		return r.controlLoop(gctx)
	})
	g.Go(func() error { return r.fast.Run(gctx) })
	if r.keeper != nil && r.cfg.Keeper == nil {
		g.Go(func() error { r.keeper.Run(gctx); return nil })
	}
	g.Go(func() error {
		<-gctx.Done()
		r.Close() // ends the reads
		return nil
	})
	for i, q := range r.queues {
		ln := r.newLane(1+2*i, q)
		g.Go(func() error { return r.readTAP(ln, q) })
	}
	ln := r.newLane(1+2*len(r.queues), r.queues[0])
	g.Go(func() error { return r.readUDP(ln) })
	err := g.Wait()
	r.fast.Close() // only status used it still
	r.closeKeeper()
	if ctx.Err() != nil || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// maxFrameHead is the largest Ethernet header of a frame, in bytes.
const maxFrameHead = ethernet.HeaderLen + 2*ethernet.TagLen

// do queues f for the control goroutine, waiting for space in the queue. After Run
// it does nothing.
func (r *Router) do(f func()) {
	select {
	case r.calls <- f:
	case <-r.done:
	}
}

// NeighbourUp begins the link to a neighbour. An existing link ends, as the session
// is a new one. If it has the same secret, only the address of the neighbour is new.
func (r *Router) NeighbourUp(n Neighbour) { r.do(func() { r.neighbourUp(n) }) }

// NeighbourDown ends the link to a neighbour whose session ended because its router is
// away. The kernel's path to it may stay for a while.
func (r *Router) NeighbourDown(name peer.Name) { r.do(func() { r.neighbourDown(name, r.fast.Down) }) }

// NeighbourRejected ends the link to a neighbour whose session ended because one of the
// two does not want the other. Nothing goes to it or comes from it any more.
func (r *Router) NeighbourRejected(name peer.Name) {
	r.do(func() { r.neighbourDown(name, r.fast.Reject) })
}

// SetBinding says for which configuration what the fast path keeps in the kernel is valid from
// now on; see fastpath.Bind.
func (r *Router) SetBinding(b kernel.Binding) error { return r.fast.SetBinding(b) }

// HandshakeRefused reports that a handshake with a host at addr failed because one of the
// two hosts does not want the other, and whether this host opened the connection. It
// never waits.
func (r *Router) HandshakeRefused(addr netip.Addr, dialled bool) { r.fast.Refused(addr, dialled) }

// PeersBanned reports that other peers are banned, and which. Nothing goes any more to those
// that are away, nor comes from them.
func (r *Router) PeersBanned(banned func(peer.Key) bool) { r.fast.PeersBanned(banned) }

// HandleControl handles a message that the neighbour sent with Control.Send. The
// router owns msg after the call.
func (r *Router) HandleControl(from peer.Name, msg []byte) {
	r.do(func() { r.handleControl(from, msg) })
}

// SetRoutes replaces the routes. MAC addresses behind peers that are no longer
// reached are forgotten.
func (r *Router) SetRoutes(routes *topology.Routes) { r.do(func() { r.setRoutes(routes) }) }
