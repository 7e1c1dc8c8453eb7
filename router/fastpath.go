package router

import (
	"context"
	crand "crypto/rand"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/plan"
	"github.com/weft-net/weft/router/tap"
	"github.com/weft-net/weft/router/wire"
	"github.com/weft-net/weft/router/wireguard"
)

// FastConfig says how the fast datapath is to be.
type FastConfig struct {
	// PinDir is where programs and maps are pinned, so that they outlive this
	// process. A file system of type bpf is mounted there if none is.
	PinDir string
	// Port is the UDP port of VXLAN, the same on all hosts, TunnelPort that of
	// WireGuard on this one.
	Port, TunnelPort int
	// Off has no link use it; what it carries for others goes on.
	Off bool
	// NoExpress has all frames go by the bridge and the VXLAN device.
	NoExpress bool
	// NoExpressTo has only those do so that go to or come from peers at these
	// addresses.
	NoExpressTo []netip.Prefix
	// Encrypt has frames leave in clear only between addresses of Trusted; others
	// go through WireGuard, if the kernel has it.
	Encrypt bool
	Trusted []netip.Prefix
}

// fastpath is the fast datapath as the router sees it.
type fastpath struct {
	// Constant.
	cfg       FastConfig
	dp        *kernel.Datapath  // nil: the kernel refused, why says what
	why       string            // there is no fast datapath
	noExpress string            // no frame may pass by the bridge, whatever judged says
	tunnel    *wireguard.Device // nil: there is none
	watch     *netdev.Watch
	tap       tap.Writer
	echoes    chan echo         // from lanes
	learned   chan ethernet.MAC // from lanes: stations that came or moved

	// Control goroutine only.
	links map[peer.Name]*fastLink
	// away are links whose sessions ended while their kernels still echoed: the
	// peer's router is being restarted, and what goes by the kernel goes on.
	away        map[peer.Name]*fastLink
	adopted     plan.Tables             // what was there at the start and is not confirmed yet
	have        plan.Tables             // in the kernel
	names       map[uint16]peer.Name    // by short id, as in the kernel
	self        uint16                  // own short id
	veths       map[ethernet.MAC]int    // of stations of this host, by the host's end
	containers  map[int]bool            // whose veths have a program
	shaped      map[int]bool            // whose veths hold frames back, so that none may pass them by
	underlays   map[int]bool            // likewise
	looked      map[int]netdev.Underlay // what the interfaces of the underlay are
	wrongSums   map[int]bool            // interfaces of the underlay whose cards make wrong checksums inside VXLAN
	secured     []netip.Prefix          // networks of peers to which packets go through IPsec of the host
	judged      string                  // why express is off, "" if it is not
	noTunnel    string                  // why there is no tunnel that works, "" if there is one or none is wanted
	tunnelFault string                  // what its neighbours could not be made, as it was logged last
	began       time.Time
	dirty       bool // tables are to be planned anew
	resync      bool // stations are to be compared with the kernel's

	// Guards closed. Whoever is not the control goroutine holds it while it reads
	// from dp.
	mu     sync.RWMutex
	closed bool

	// Atomic.
	missed  atomic.Bool // learned was full
	changes atomic.Bool // a refresh is under way
}

// fastLink is the fast datapath of one link.
type fastLink struct {
	*plan.Link
	peer   peer.Name
	secret [32]byte // for the tunnel
	path   int      // MTU of the way there that the Link knows
	id     uint16   // short id of the peer when it was last known
	hop    netdev.Hop
	tunnel wireguard.Peer // what the tunnel is to have for it when it was last looked; zero for nothing
	clash  bool           // it says it has the tunnel key of another
	gone   time.Time      // when the session ended; zero while it lives
}

type echo struct {
	from   netip.Addr
	nonce  [plan.NonceLen]byte
	summed bool // its checksum is right
}

const (
	// awayStay is how long the kernel goes on with a peer whose router is away.
	awayStay = 10 * time.Minute
	// adoptStay is how long after the start what an earlier process left in the
	// kernel stays, although this one does not know it yet.
	adoptStay = time.Minute
	// lookEvery is how often netfilter's rules are looked at where nobody tells that
	// they have changed. After a look there is none for lookPause, nor for lookShare
	// times what it took: a host may have many rules that change all the time.
	lookEvery = 2 * time.Second
	lookPause = 50 * time.Millisecond
	lookShare = 20
)

// openFast makes the fast datapath around the TAP q, which is no port of the
// bridge then. It returns an error only for what the portable path can not do
// without either; where the kernel refuses, the fastpath says why.
func (r *Router) openFast(tapName string, q tap.Queue) (*fastpath, error) {
	f, err := newFastpath(*r.cfg.Fast)
	if err != nil {
		return nil, err
	}
	o := kernel.Options{
		PinDir: f.cfg.PinDir, Bridge: r.cfg.Bridge, Port: netdev.PortName, PortPeer: netdev.PortPeerName, TAP: tapName,
		VXLAN: netdev.VXLANName, VXLANPort: f.cfg.Port, MTU: r.cfg.MTU, Sysctls: r.cfg.Sysctls, Log: r.log,
	}
	r.openTunnel(f)
	if f.cfg.Encrypt && len(f.cfg.Trusted) == 0 && f.tunnel == nil {
		if err := r.leaveAllToSleeve(f, o); err != nil {
			f.close()
			return nil, err
		}
		return f, nil
	}
	if _, err := f.guard(); err != nil {
		// Containers could send frames as this host.
		err = fmt.Errorf("keep containers from UDP %d: %w", f.cfg.Port, err)
		f.why = err.Error()
		r.log.Warn("no fast datapath", "err", err)
		if err := kernel.Remove(o); err != nil {
			return f, err
		}
		r.removeTunnel(f)
		return f, nil
	}
	if r.openDatapath(f, o); f.dp == nil {
		return f, nil
	}
	f.tap = q.NewWriter()
	if err := f.adopt(); err != nil {
		f.close()
		return nil, fmt.Errorf("take over the fast datapath of an earlier router: %w", err)
	}
	r.removeTunnel(f)
	return f, nil
}

func newFastpath(cfg FastConfig) (*fastpath, error) {
	watch, err := netdev.NewWatch()
	if err != nil {
		return nil, err
	}
	return &fastpath{
		cfg: cfg, watch: watch, began: time.Now(),
		echoes: make(chan echo, 256), learned: make(chan ethernet.MAC, 1024),
		links: make(map[peer.Name]*fastLink), away: make(map[peer.Name]*fastLink), names: make(map[uint16]peer.Name),
		veths: make(map[ethernet.MAC]int), containers: make(map[int]bool), underlays: make(map[int]bool),
		looked: make(map[int]netdev.Underlay), wrongSums: make(map[int]bool),
	}, nil
}

// leaveAllToSleeve removes what an earlier router left where no link can be fast. It
// may send nothing in clear any more; and frames need not go round by a port of their
// own, which is a twentieth of an idle round trip.
func (r *Router) leaveAllToSleeve(f *fastpath, o kernel.Options) error {
	if err := kernel.Remove(o); err != nil {
		return err
	}
	r.removeTunnel(f)
	if _, err := f.watch.Guard(0, netip.Prefix{}); err != nil {
		r.log.Warn("rules for a fast datapath that is not there", "err", err)
	}
	return nil
}

// openDatapath opens the kernel's part, or notes why there is none, and why frames
// must cross the bridge if they must.
func (r *Router) openDatapath(f *fastpath, o kernel.Options) {
	if f.cfg.NoExpress {
		f.noExpress = "switched off by --no-express"
	}
	f.judged = f.watch.Judged()
	var err error
	if f.secured, err = f.watch.Secured(); err != nil {
		f.noExpress = err.Error()
		r.log.Warn("no express path", "err", err)
	}
	o.Express = f.express()
	dp, err := kernel.Open(o)
	if err != nil {
		f.why = err.Error()
		r.log.Warn("no fast datapath", "err", err)
		return
	}
	f.dp = dp
	if err := dp.Fast(); err != nil {
		f.why = err.Error()
		r.log.Warn("no fast datapath", "err", err)
	} else if err := dp.Express(); err != nil {
		f.noExpress = err.Error()
		r.log.Warn("no express path", "err", err)
	}
}

// close leaves the kernel's part at work.
func (f *fastpath) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	f.closed = true
	if f.dp != nil {
		_ = f.dp.Close()
	}
	if f.tunnel != nil {
		f.tunnel.Close()
	}
	f.watch.Close()
}

// express tells whether frames may pass by the bridge.
func (f *fastpath) express() bool { return f.noExpress == "" && f.judged == "" }

// trusts tells whether frames may go in clear between this host and a.
func (f *fastpath) trusts(a netip.Addr) bool {
	return !f.cfg.Encrypt || within(a, f.cfg.Trusted)
}

func within(a netip.Addr, any []netip.Prefix) bool {
	return slices.ContainsFunc(any, func(p netip.Prefix) bool { return p.Contains(a) })
}

// allowed tells whether VXLAN may be sent to a: in clear, or as it is inside the
// tunnel.
func (f *fastpath) allowed(a netip.Addr) bool {
	if plan.TunnelPrefix.Contains(a) {
		return f.tunnel != nil
	}
	return f.trusts(a)
}

// offer is what this end says of itself on a link to a.
func (f *fastpath) offer(a netip.Addr) plan.Offer {
	o := plan.Offer{ShortID: f.self, Port: uint16(f.cfg.Port)}
	refuse := func(v wire.Verdict, why string) plan.Offer {
		o.Verdict, o.Why = v, why
		return o
	}
	switch {
	case f.cfg.Off:
		return refuse(wire.FastOff, "switched off by --no-fastdp")
	case f.why != "":
		return refuse(wire.FastNoKernel, f.why)
	case !f.sealing() && !f.trusts(a):
		return refuse(wire.FastEncrypted, fmt.Sprintf("a password is set, %s, and %s is in none of --trusted-subnets", f.noTunnel, a))
	case f.self == 0:
		return refuse(wire.FastNoID, "there are more peers than short ids, or one is being chosen")
	}
	if f.sealing() {
		o.Tunnel = wire.Tunnel{Port: uint16(f.cfg.TunnelPort), Key: f.tunnel.Key()}
	}
	if !f.trusts(a) {
		o.Verdict = wire.FastEncrypted
	}
	return o
}

// runFast waits for what the kernel tells, until ctx ends.
func (r *Router) runFast(ctx context.Context) error {
	f := r.fast
	if f.dp == nil {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return f.watch.Run(ctx, func() {
			if !f.changes.Swap(true) {
				r.do(func() { f.changes.Store(false); r.refreshFast() })
			}
		})
	})
	g.Go(func() error {
		return f.dp.Events(ctx, func(e kernel.Event) { r.do(func() { r.stationSeen(e) }) })
	})
	rules := make(chan struct{}, 1)
	g.Go(func() error {
		err := f.watch.Rules(ctx, func() {
			select {
			case rules <- struct{}{}:
			default:
			}
		})
		if err != nil {
			r.log.Warn("netfilter's rules are looked at now and then only", "every", lookEvery, "err", err)
		}
		return nil
	})
	g.Go(func() error { r.watchRules(ctx, rules); return nil })
	return g.Wait()
}

// watchRules looks at netfilter's rules when they change, and every now and then: the
// iptables of old tell nobody of changes. What guards the port is written anew if others have
// removed it, and what judges bridged frames turns express off.
func (r *Router) watchRules(ctx context.Context, changed <-chan struct{}) {
	f := r.fast
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-changed:
		}
		began := time.Now()
		switch again, err := f.guard(); {
		case err != nil:
			r.log.Warn("guard the fast datapath's port", "port", f.cfg.Port, "err", err)
		case again:
			r.log.Warn("others removed the rules that guard the fast datapath's port", "port", f.cfg.Port)
		}
		judged := f.watch.Judged()
		secured, err := f.watch.Secured()
		if err != nil {
			r.log.Warn("look for IPsec", "err", err)
		}
		r.do(func() {
			r.setJudged(judged)
			if err == nil && !slices.Equal(secured, f.secured) {
				f.secured, f.dirty = secured, true
			}
			if f.noTunnel != "" {
				r.mendTunnel() // it may be possible now
			}
		})
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(lookPause, lookShare*time.Since(began))):
		}
	}
}

// guard writes the rules that guard the port, if they are not there.
func (f *fastpath) guard() (again bool, err error) {
	var sealed netip.Prefix
	if f.tunnel != nil {
		sealed = plan.TunnelPrefix
	}
	return f.watch.Guard(uint16(f.cfg.Port), sealed)
}

// setJudged takes in what judges bridged frames, "" if nothing does.
func (r *Router) setJudged(judged string) {
	f := r.fast
	if judged == f.judged {
		return
	}
	r.log.Info("express path", "on", judged == "" && f.noExpress == "", "reason", judged)
	f.judged, f.dirty = judged, true
	if err := f.dp.SetExpress(f.express()); err != nil {
		r.log.Warn("switch the express path", "on", f.express(), "err", err)
	}
}

// mendFast brings back what others removed of the kernel's part.
func (r *Router) mendFast() {
	f := r.fast
	mended, err := f.dp.Mend()
	switch {
	case err != nil:
		r.log.Warn("others changed the fast datapath", "err", err)
	case mended:
		r.log.Warn("others changed the fast datapath, it is as it was again", "interfaces", []string{netdev.PortName, netdev.VXLANName})
		if len(f.wrongSums) > 0 {
			if err := f.dp.SumInSoftware(true); err != nil {
				r.log.Warn("make checksums in software", "err", err)
			}
		}
	}
}

// refreshFast looks at interfaces and routes again.
func (r *Router) refreshFast() {
	f := r.fast
	r.mendFast()
	r.mendTunnel()
	clear(f.looked)
	ports, err := f.watch.Containers(r.cfg.Bridge, netdev.PortName)
	if err != nil {
		r.log.Warn("containers' interfaces", "err", err)
		return
	}
	there, shaped := make(map[int]bool, len(ports)), make(map[int]bool)
	for _, p := range ports {
		there[p.Ifindex] = true
		if p.Shaped {
			shaped[p.Ifindex] = true
			continue
		}
		if f.containers[p.Ifindex] || f.noExpress != "" || f.why != "" {
			continue
		}
		if err := f.dp.AttachContainer(p.Ifindex); err != nil {
			r.log.Warn("no express path", "interface", p.Name, "err", err)
			continue
		}
		f.containers[p.Ifindex] = true
	}
	for i := range f.containers {
		if !there[i] || shaped[i] {
			delete(f.containers, i)
			if err := f.dp.DetachContainer(i); err != nil {
				r.log.Warn("express path of a container that left, or is limited", "ifindex", i, "err", err)
			}
		}
	}
	f.shaped = shaped
	for m, i := range f.veths {
		switch {
		case !there[i]:
			r.stationGone(m)
		case shaped[i]:
			delete(f.veths, m)
			r.copyStation(m)
		}
	}
	for _, l := range f.links {
		r.findHop(l)
	}
	for _, l := range f.away {
		r.findHop(l)
	}
	f.dirty = true
}

// findHop asks the routes for the way to a peer.
func (r *Router) findHop(l *fastLink) {
	hop := netdev.Hop{}
	if a := l.Remote(); a.IsValid() {
		var err error
		if hop, err = r.fast.watch.Hop(a); err != nil {
			r.log.Debug("no route for the fast datapath", "peer", l.peer, "err", err)
		}
	}
	if hop != l.hop {
		l.hop, r.fast.dirty = hop, true
	}
}

// tickFast does what is due, and at last brings the kernel up to date.
func (r *Router) tickFast(now time.Time) {
	f := r.fast
	if f == nil || f.dp == nil {
		return
	}
	for _, set := range []map[peer.Name]*fastLink{f.links, f.away} {
		for _, l := range set {
			if next := l.Next(); !next.IsZero() && !now.Before(next) {
				r.fastEffects(l, now, l.Tick(now))
			}
		}
	}
	for n, l := range f.away {
		if !l.Up() || now.Sub(l.gone) >= awayStay {
			delete(f.away, n)
			f.dirty = true
			if _, reached := r.routes.Unicast[n]; !reached {
				r.macs.Forget(n)
			}
		}
	}
	if len(f.adopted.Peers)+len(f.adopted.Remotes) > 0 && now.Sub(f.began) >= adoptStay {
		f.dirty = true // what nobody has confirmed goes, also where nothing else happens
	}
	if f.missed.Swap(false) {
		f.resync = true
	}
	r.planFast()
	if f.resync {
		f.resync = false
		r.syncStations()
	}
}

// nextFast is when tickFast is to be called at the latest; zero for never.
func (f *fastpath) next() (next time.Time) {
	if f == nil {
		return next
	}
	if len(f.adopted.Peers)+len(f.adopted.Remotes) > 0 {
		next = f.began.Add(adoptStay)
	}
	for _, set := range []map[peer.Name]*fastLink{f.links, f.away} {
		for _, l := range set {
			if t := l.Next(); !t.IsZero() && (next.IsZero() || t.Before(next)) {
				next = t
			}
		}
	}
	return next
}

func newNonce() (n [plan.NonceLen]byte) {
	_, _ = crand.Read(n[:]) // never fails, by its documentation
	return n
}
