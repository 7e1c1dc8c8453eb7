package fastpath

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/owned"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/plan"
	"github.com/weft-net/weft/router/mac"
	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/origin"
	"github.com/weft-net/weft/router/resolve"
	"github.com/weft-net/weft/router/wire"
	"github.com/weft-net/weft/router/wireguard"
)

// Settings are what a user decides about the fast path.
type Settings struct {
	// PinDir is the folder in which programs and maps are pinned, so that they
	// outlive this process. If it is not on a file system of type bpf, one is
	// mounted there.
	PinDir string
	// Port is the UDP port of VXLAN, the same on all hosts. TunnelPort is the UDP
	// port of WireGuard on this host.
	Port, TunnelPort int
	// Off keeps the links of this host off the fast path. Frames that this host
	// forwards for other peers still use it.
	Off bool
	// NoExpress makes all frames cross the bridge and the VXLAN device.
	NoExpress bool
	// NoExpressTo does the same for frames from and to peers at these addresses.
	NoExpressTo []netip.Prefix
	// Encaps are the encapsulations in which IP packets may leave and come. The first of EncapsTo
	// that has the address of a peer replaces them.
	Encaps   plan.Encaps
	EncapsTo []EncapsTo
	// Encrypt allows clear text only between this host and addresses of Trusted.
	// Other frames use WireGuard if the kernel has it, else sleeve.
	Encrypt bool
	Trusted []netip.Prefix
	// Binding says for which configuration the state in the kernel is valid. State of
	// an earlier process with another one is removed. Make it with Bind.
	Binding kernel.Binding
	// Guard is the spoof guard of the containers, nil if there is none.
	Guard *kernel.Guard
}

// EncapsTo are the encapsulations of packets from and to peers in a network.
type EncapsTo struct {
	Peers   netip.Prefix
	Encaps  plan.Encaps
	NoVXLAN bool // no packet as large as the MTU needs to fit into VXLAN
}

// plain reports whether plain packets may be exchanged with any peer. A peer that takes any takes IPIP, too.
func (s *Settings) plain() bool {
	if s.Off || s.NoExpress || s.Encrypt && len(s.Trusted) == 0 {
		return false
	}
	return len(s.Encaps.List()) > 0 || slices.ContainsFunc(s.EncapsTo, func(t EncapsTo) bool { return len(t.Encaps.List()) > 0 })
}

// encapsTo returns the encapsulations of packets from and to a peer at an address.
func (s *Settings) encapsTo(a netip.Addr) plan.Encaps {
	for _, t := range s.EncapsTo {
		if t.Peers.Contains(a) {
			return t.Encaps
		}
	}
	return s.Encaps
}

// allow returns VXLAN in place of the encapsulations that the settings do not allow to a peer at an address.
func (s *Settings) allow(encaps [2]plan.Encap, a netip.Addr) [2]plan.Encap {
	allowed := s.encapsTo(a)
	for f, e := range encaps {
		if !slices.Contains(allowed.List(), e) {
			encaps[f] = plan.VXLAN
		}
	}
	return encaps
}

// Config configures a Controller.
type Config struct {
	Settings
	Self        peer.Name
	Bridge, TAP string     // names of interfaces, which must exist
	MTU         int        // of containers, in bytes of IP packet
	Host        netip.Addr // on which the router listens; invalid for all addresses
	SleevePort  uint16     // UDP port of the router, which containers must not reach as this host; 0 if none
	Sysctls     netdev.Sysctls
	MACs        *mac.Table   // shared with the router
	Start       time.Time    // origin of the times in MACs
	Epoch       time.Time    // of the moments at which all links send probes
	Log         *slog.Logger // must not be nil
	System      System       // Linux if nil
	// Keeper keeps what the fast path has in the kernel; nobody does if it is nil.
	Keeper Keeper
}

// Host is what the controller needs of the router. One goroutine calls it. Its methods
// may wait for the router, as the router never waits for the controller.
type Host interface {
	// Send sends a message of link control to a neighbour over its session.
	Send(to peer.Name, c wire.Control)
	// Inject writes a frame with its virtio-net header to the TAP.
	Inject(h offload.Header, frame []byte)
	// SetFast reports that the fast path to a neighbour came into use or out of use.
	SetFast(n peer.Name, up bool)
	// Check reports that the path to a neighbour may be dead or too narrow, as echoes are
	// late.
	Check(n peer.Name)
	// Carries reports whether the router lately sent frames to a neighbour itself. It never
	// waits.
	Carries(n peer.Name) bool
	// Backlog reports whether frames wait in the TAP. It never waits.
	Backlog() bool
}

// Controller controls the fast path of one host. Make it with Open or Off, and call Run.
// All methods may be called from any goroutine. None waits for the kernel, except
// Status and FDB, which read counters, and SetBinding.
type Controller struct {
	// Constant.
	cfg      Config
	host     Host
	sys      System
	self     peer.Name
	macs     *mac.Table
	log      *slog.Logger
	kernel   Kernel // nil if not attached
	attached bool   // the programs of the kernel are at work
	off      error  // not nil: made by Off, for this reason
	tunnel   Tunnel // nil: there is none
	// unsupported says why this host has no fast path, expressErr why no frame may
	// bypass the VXLAN device; nil if that is not so.
	unsupported, expressErr error
	watch                   Watch
	echoes                  chan Echo         // from lanes
	learned                 chan ethernet.MAC // from lanes: addresses that came or moved

	events  chan kernel.Event // from the kernel
	changes chan struct{}     // of capacity 1: interfaces or routes changed
	rules   chan rulesReport  // of capacity 1: the newest that watchRules found
	calls   chan func()       // from the keeper, see ask
	ended   chan struct{}     // closed when Run has returned
	kept    []owned.ID        // what was declared to the keeper; constant after Open

	// Goroutine of Run only.
	routes *topology.Routes
	from   origin.Table // of routes and of those before
	// fromEnds is when the tables differ because of from although no route changed, on
	// the clock of since; 0 for never.
	fromEnds time.Duration
	links    map[peer.Name]*link
	// sessionless are links whose session ended: the peer's router is being restarted, and frames
	// keep using the fast path while the peer's kernel echoes.
	sessionless   map[peer.Name]*link
	adopted       adopted                 // of an earlier process
	installed     plan.Tables             // what the kernel's maps contain
	tablesErr     error                   // of the last change of the maps
	ids           map[peer.Name]uint16    // short ids, as in the kernel
	names         map[uint16]peer.Name    // likewise, by short id
	shortID       uint16                  // of this host
	vethOf        map[ethernet.MAC]int    // host's ends of veths, by the container's MAC address
	containers    map[int]bool            // veths that have a program
	containersErr error                   // of the last list of interfaces of containers
	rateLimited   map[int]bool            // veths with a queueing discipline, which express would bypass
	underlays     map[int]bool            // interfaces of the underlay that have a program
	underlayCache map[int]netdev.Underlay // properties of such interfaces
	badChecksums  map[int]bool            // interfaces of the underlay whose cards compute wrong inner checksums
	ipsecPrefixes []netip.Prefix          // networks of peers to which IPsec of the host applies
	filter        filter                  // rules that must see bridged frames
	tunnelErr     error                   // why there is no tunnel that works, nil if there is one or none is wanted
	applyErr      error                   // of the last change of the tunnel
	opened        time.Time
	routed        map[netip.Addr]netdev.OwnHop // the routes of setOwnRoutes
	trafficAt     time.Time                    // when to look at the kernel's counters again
	busy          int                          // how many links carried frames at the last look
	stale         bool                         // tables must be planned again
	resync        bool                         // MAC addresses must be compared with the kernel's
	bound         bound

	// Guarded by mu, which is never held during a call to the kernel.
	mu        sync.RWMutex
	in        inbox
	uses      map[peer.Name]use // of the fast path to neighbours, without unused; see Keeps
	lost      map[peer.Name]lostPeer
	keptPaths map[peer.Name]KeptPath // of sessionless
	shown     map[peer.Name]LinkStatus
	state     hostMode

	// closing is held by readers of counters, and by Close.
	closing sync.RWMutex
	closed  bool // guarded by closing

	// Atomic.
	began     atomic.Bool   // Run or Close was called
	overflow  atomic.Bool   // learned was full
	overflows atomic.Uint64 // how often
}

// link is the fast path to one neighbour.
type link struct {
	*plan.Link
	peer         peer.Name
	key          peer.Key // identity that the peer proved
	secret       [32]byte // pre-shared key of the tunnel
	pathMTU      int      // that the Link heard last
	id           uint16   // short id of the peer when it was last known
	hop          netdev.Hop
	outer        netdev.Hop     // of the packets of the tunnel; zero if frames do not use it
	carried      uint64         // frames sent over it at the last look
	tunnel       wireguard.Peer // entry of the tunnel when it was last planned; zero for none
	keyConflict  bool           // the peer claims the tunnel key of another peer
	sessionEnded time.Time      // zero while the session lives
	wasUp        bool           // or plain packets passed, while the session lived
	planned      works          // what the tables were last planned with
	use          use            // as published by setUse
	provedID     uint16         // short id that routes said is the peer's; 0 if they never did
}

// Echo is a probe that came back.
type Echo struct {
	From   netip.Addr
	Nonce  [plan.NonceLen]byte
	Summed bool // its checksum is right
}

const (
	// sessionlessTimeout is how long the kernel keeps forwarding to a peer whose
	// router is away, and to any peer if the router of this host is.
	sessionlessTimeout = 10 * time.Minute
	// adoptTimeout is how long after the start entries of an earlier process stay
	// in the kernel although this process does not know their peers yet.
	adoptTimeout = time.Minute
	// lastResortTimeout is how long after its last echo a silent path still carries frames
	// that have no other way.
	lastResortTimeout = time.Minute
	// rulesInterval is how often netfilter's rules are read if nothing reports
	// changes. After a read, the next one waits for rulesPause and for rulesShare
	// times the duration of the read: a host may have many rules that change often.
	rulesInterval = 2 * time.Second
	rulesPause    = 50 * time.Millisecond
	rulesShare    = 20
	// rulesMaxPause bounds that: a read that was held up once must not leave changes
	// unseen for minutes.
	rulesMaxPause = 10 * time.Second
	// trafficInterval is how often the kernel's counters are read, to find out which links
	// carry frames. All hosts do it at the moments of the probes.
	trafficInterval = plan.Beat
	// syncInterval is how often the table of MAC addresses is compared with the
	// kernel's, which have the times of last use of different frames.
	syncInterval = time.Minute
)

// Off returns a controller for a router that has no fast path for a reason. Its methods
// do nothing.
func Off(reason error) *Controller { return &Controller{off: reason} }

// Open opens the fast path around the TAP cfg.TAP. If the kernel refuses, the
// controller says so to the neighbours, and Attached is false: then the TAP must
// become a port of the bridge. An error means that the router cannot work without the
// fast path either.
func Open(cfg Config, host Host) (*Controller, error) {
	c, err := newController(cfg, host)
	if err != nil {
		return nil, err
	}
	if err := c.open(); err != nil {
		c.Close()
		return nil, err
	}
	c.publishMode()
	return c, nil
}

func newController(cfg Config, host Host) (*Controller, error) {
	c := &Controller{
		cfg: cfg, host: host, sys: cfg.System, self: cfg.Self, macs: cfg.MACs, log: cfg.Log, opened: time.Now(),
		events: make(chan kernel.Event), changes: make(chan struct{}, 1), rules: make(chan rulesReport, 1), calls: make(chan func()), ended: make(chan struct{}),
		routes: &topology.Routes{}, echoes: make(chan Echo, 256), learned: make(chan ethernet.MAC, 1024),
		links: make(map[peer.Name]*link), sessionless: make(map[peer.Name]*link), names: make(map[uint16]peer.Name),
		vethOf: make(map[ethernet.MAC]int), containers: make(map[int]bool), underlays: make(map[int]bool),
		underlayCache: make(map[int]netdev.Underlay), badChecksums: make(map[int]bool), shown: make(map[peer.Name]LinkStatus),
		bound: newBound(), uses: make(map[peer.Name]use), lost: make(map[peer.Name]lostPeer), keptPaths: make(map[peer.Name]KeptPath),
	}
	c.in = inbox{wake: make(chan struct{}, 1), pending: make(map[peer.Name]*report), routes: c.routes, refused: make(map[netip.Addr]bool), neighbours: make(map[netip.Addr]resolve.Place)}
	if c.sys == nil {
		c.sys = Linux
	}
	var err error
	c.watch, err = c.sys.Watch()
	return c, err
}

// since returns the time on the clock of MACs.
func (c *Controller) since() time.Duration { return time.Since(c.cfg.Start) }

// Close closes what Open opened. Run must have returned. The kernel keeps forwarding.
func (c *Controller) Close() {
	c.release() // a round of the keeper may read counters
	c.closing.Lock()
	defer c.closing.Unlock()
	if c.closed || c.off != nil {
		return
	}
	c.closed = true
	c.began.Store(true)
	if c.attached {
		_ = c.kernel.Close()
	}
	if c.tunnel != nil {
		c.tunnel.Close()
	}
	c.watch.Close()
}

// Attached reports whether the programs of the kernel are at work: frames from the
// TAP may begin with a metadata header, and the TAP must not be a port of the bridge.
// It never changes.
func (c *Controller) Attached() bool { return c.attached }

// trusts reports whether clear text is allowed between this host and a.
func (c *Controller) trusts(a netip.Addr) bool {
	return !c.cfg.Encrypt || within(a, c.cfg.Trusted)
}

func within(a netip.Addr, any []netip.Prefix) bool {
	return slices.ContainsFunc(any, func(p netip.Prefix) bool { return p.Contains(a) })
}

// allowed reports whether VXLAN may be sent to a, which is an address inside the tunnel
// or one that clear text is allowed to.
func (c *Controller) allowed(a netip.Addr) bool {
	if plan.TunnelPrefix.Contains(a) {
		return c.tunnel != nil
	}
	return c.trusts(a)
}

// offer returns what this host offers to a neighbour at a.
func (c *Controller) offer(a netip.Addr) plan.Offer {
	o := plan.Offer{ShortID: c.shortID, Port: uint16(c.cfg.Port)}
	refuse := func(v wire.Verdict, why error) plan.Offer {
		o.Verdict, o.Why = v, why
		return o
	}
	switch {
	case c.cfg.Off:
		return refuse(wire.FastOff, because(ErrDisabled, "switched off by --no-fastdp"))
	case c.unsupported != nil:
		return refuse(wire.FastNoKernel, c.unsupported)
	case !c.tunnelWorks() && !c.trusts(a):
		return refuse(wire.FastEncrypted, plan.Because(ErrEncryption, fmt.Errorf("a password is set, %w, and %s is in none of --trusted-subnets", c.tunnelErr, a)))
	case c.shortID == 0:
		return refuse(wire.FastNoID, because(ErrUnsupported, "there are more peers than short ids, or one is being chosen"))
	}
	if c.tunnelWorks() {
		o.Tunnel = wire.Tunnel{Port: uint16(c.cfg.TunnelPort), Key: c.tunnel.Key()}
	}
	if !c.trusts(a) {
		o.Verdict = wire.FastEncrypted
	} else if a.Unmap().Is4() && c.expressErr == nil && !within(a, c.cfg.NoExpressTo) {
		o.Encaps = c.cfg.encapsTo(a.Unmap())
	}
	return o
}

// offerTo is offer for a link, of which more is known: plain packets need the programs of express.
func (c *Controller) offerTo(l *link) plan.Offer {
	o := c.offer(l.Addr())
	if l.hop.Ifindex == 0 || len(o.Encaps.List()) == 0 {
		return o
	}
	if o.NoPlain = c.plainErr(l); o.NoPlain != nil {
		o.Encaps = plan.Encaps{}
	}
	return o
}

// plainErr says why this host takes no plain packets from a peer, nil if it does.
func (c *Controller) plainErr(l *link) error {
	if err := c.expressLinkErr(l); err != nil {
		return err
	}
	if c.underlay(l.hop.Ifindex).Netfilter {
		// They would cross it with the addresses of containers, as those of another flow.
		return because(ErrUnderlay, "packets of the interface towards the peer cross netfilter")
	}
	return nil
}

// cannotSend says why this host cannot send packets of a family in an encapsulation by the interface towards a
// peer; nil if it can.
func (c *Controller) cannotSend(l *link, e plan.Encap, f plan.Family) error {
	if e == plan.None && f == plan.V6 && !c.underlay(l.hop.Ifindex).Forwards {
		return because(ErrUnderlay, "for packets of IPv6 this host must forward IPv4 (sysctl net.ipv4.ip_forward)")
	}
	return nil
}

// Run keeps the kernel up to date until ctx ends, which is no error, or the kernel no
// longer reports changes. It may be called once.
func (c *Controller) Run(ctx context.Context) error {
	if c.off != nil {
		return nil
	}
	if c.began.Swap(true) {
		return errors.New("run the fast path: it was run or closed before")
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { c.loop(ctx); return nil })
	if !c.attached {
		return g.Wait()
	}
	g.Go(func() error { return c.watch.Run(ctx, func() { signal(c.changes) }) })
	g.Go(func() error {
		return c.kernel.Events(ctx, func(e kernel.Event) {
			select {
			case c.events <- e:
			case <-ctx.Done():
			}
		})
	})
	changed := make(chan struct{}, 1)
	g.Go(func() error {
		if err := c.watch.Rules(ctx, func() { signal(changed) }); err != nil {
			c.log.Warn("the kernel does not report changes of netfilter's rules: they are read periodically", "interval", rulesInterval, "err", err)
		}
		return nil
	})
	g.Go(func() error { c.watchRules(ctx, changed); return nil })
	return g.Wait()
}

// signal wakes the reader of a channel of capacity 1.
func signal(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// loop owns the links and the kernel's tables until ctx ends.
func (c *Controller) loop(ctx context.Context) {
	defer close(c.ended)
	if c.attached {
		c.lease()
		c.refresh()
		c.adoptPaths()
		c.resync = c.kernel.Adopted() // what an earlier process knew of this host
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	sync := time.NewTicker(syncInterval)
	defer sync.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-c.in.wake:
		case e := <-c.echoes:
			c.echoed(e, time.Now())
		case m := <-c.learned:
			c.copyMAC(m)
		case e := <-c.events:
			c.handleEvent(e)
		case <-c.changes:
			c.refresh()
		case f := <-c.calls:
			f()
		case r := <-c.rules:
			c.takeRules(r)
		case <-sync.C:
			c.lease()
			c.resync = true
		}
		// Before a link is found silent: echoes may have waited behind slow kernel calls.
		for range len(c.echoes) {
			c.echoed(<-c.echoes, time.Now())
		}
		c.receive(time.Now())
		c.tick(time.Now())
		timer.Reset(c.untilNext(time.Now()))
	}
}

// lease lets the kernel forward frames for sessionlessTimeout more.
func (c *Controller) lease() {
	if !c.attached {
		return
	}
	if err := c.kernel.Lease(sessionlessTimeout); err != nil {
		c.log.Warn("the kernel will not forward frames while the router is away", "err", err)
	}
}

// untilNext returns how long nothing is due, at least a millisecond.
func (c *Controller) untilNext(now time.Time) time.Duration {
	if next := c.next(); !next.IsZero() {
		return max(next.Sub(now), time.Millisecond)
	}
	return time.Hour
}

// tick does what is due and then brings the kernel up to date.
func (c *Controller) tick(now time.Time) {
	if !c.attached {
		return
	}
	for _, set := range []map[peer.Name]*link{c.links, c.sessionless} {
		for _, l := range set {
			if next := l.Next(); !next.IsZero() && !now.Before(next) {
				c.apply(l, now, l.Tick(now))
			}
		}
	}
	c.endLeaving(now)
	c.watchTraffic(now)
	c.updateUses(now)
	c.endSessionless(now)
	c.tickAdopted(now)
	if c.overflow.Swap(false) {
		c.resync = true
	}
	if c.fromEnds != 0 && c.since() >= c.fromEnds {
		c.stale = true
	}
	c.replan()
	if c.resync {
		c.resync = false
		c.syncMACs()
	}
}

// next returns when tick must be called at the latest; zero for never.
func (c *Controller) next() (next time.Time) {
	if !c.adopted.empty() || len(c.bound.unconfirmed) > 0 {
		next = c.opened.Add(adoptTimeout)
	}
	for _, l := range c.adopted.paths {
		if t := l.Next(); !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	if t := c.nextLeaving(); !t.IsZero() && (next.IsZero() || t.Before(next)) {
		next = t
	}
	if c.fromEnds != 0 {
		if t := c.cfg.Start.Add(c.fromEnds); next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for _, set := range []map[peer.Name]*link{c.links, c.sessionless} {
		for _, l := range set {
			if t := l.Next(); !t.IsZero() && (next.IsZero() || t.Before(next)) {
				next = t
			}
			if (l.Up() || l.Plain()) && c.trafficAt.Before(next) {
				next = c.trafficAt
			}
		}
	}
	return next
}

// watchTraffic reports to the links that carried frames since the last look that they are
// used, so that they find out soon if they no longer work.
func (c *Controller) watchTraffic(now time.Time) {
	if now.Before(c.trafficAt) {
		return
	}
	c.trafficAt = now.Add(trafficInterval - now.Sub(c.cfg.Epoch)%trafficInterval)
	c.busy = 0
	var carried map[uint16]uint64 // by the short id of the next hop
	for _, set := range []map[peer.Name]*link{c.links, c.sessionless} {
		for _, l := range set {
			if !l.Up() && !l.Plain() {
				continue
			}
			if carried == nil {
				carried = c.carried()
			}
			if n := carried[l.PeerID()]; n != l.carried {
				l.carried = n
				c.apply(l, now, l.Used(now))
			}
			if l.Busy(now) {
				c.busy++
			}
		}
	}
}

// carried returns how many frames were sent to each next hop.
func (c *Controller) carried() map[uint16]uint64 {
	n := make(map[uint16]uint64)
	for id, p := range c.installed.Peers {
		if !p.Carries() {
			continue
		}
		t, err := c.kernel.Traffic(id)
		if err != nil {
			continue // the entry was not written; the next round tries again
		}
		n[p.Next] += t.TxPackets + t.RelayedPackets
	}
	return n
}

func newNonce() (n [plan.NonceLen]byte) {
	_, _ = crand.Read(n[:]) // never fails, by its documentation
	return n
}
