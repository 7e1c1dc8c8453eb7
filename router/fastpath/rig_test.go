package fastpath_test

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/kerneltest"
	"github.com/weft-net/weft/router/mac"
	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/wire"
)

const (
	mtu        = 1376
	port       = 6784
	tunnelPort = 6785
	rtt        = time.Millisecond
)

// Peer n has this name, the short id n and the address addrOf(n). This host is peer 1.
func nameOf(n byte) peer.Name         { return peer.Name{2, 0, 0, 0, 0, n} }
func addrOf(n byte) netip.Addr        { return netip.AddrFrom4([4]byte{192, 0, 2, n}) }
func macOf(n, host byte) ethernet.MAC { return ethernet.MAC{2, 0, 0, 0, n, host} }

// router runs a controller and plays the router around it and the kernels of its
// neighbours, which echo probes.
type router struct {
	*fastpath.Controller
	t      *testing.T
	m      *kerneltest.Machine
	macs   *mac.Table
	stop   func() // ends the controller; the kernel works on
	keeper *kerneltest.Keeper

	mu     sync.Mutex
	offers map[peer.Name]wire.Control // to each neighbour, last
	silent map[netip.Addr]bool        // neighbours whose kernels do not echo
	card   bool                       // computes wrong checksums inside VXLAN
	plain  map[kernel.Encap]bool      // encapsulations that pass the underlay
	wrong  bool                       // plain packets come with wrong checksums
	gone   map[netip.Addr]bool        // addresses that no container has any more
	probed netip.Addr                 // address of a container to which a plain probe went last
	up     map[peer.Name]bool         // as the controller reported
	checks map[peer.Name]int          // likewise
}

// Send implements fastpath.Host.
func (r *router) Send(to peer.Name, c wire.Control) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.offers[to] = c
}

// Inject implements fastpath.Host.
func (r *router) Inject(_ offload.Header, frame []byte) {
	if p, ok := kerneltest.ParsePlainProbe(frame); ok {
		r.echoPlain(p)
		return
	}
	p, ok := kerneltest.ParseProbe(frame)
	if !ok {
		r.t.Errorf("injected %x, which is no probe", frame)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.silent[p.To] || !r.m.Echoes(p.To) {
		return
	}
	e := fastpath.Echo{From: p.To, Nonce: p.Nonce, Summed: !r.card || r.m.SoftwareChecksums()}
	time.AfterFunc(rtt, func() { r.Echoed(e) })
}

// echoPlain plays the kernel of a neighbour.
func (r *router) echoPlain(p kernel.PlainProbe) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.probed = p.To
	if e := r.m.Peer(p.Dst); r.plain[p.Encap] && !r.gone[p.To] && e.Next == p.Dst && e.Ifindex != 0 && r.m.Plain() {
		e := fastpath.Echo{From: kernel.ToAddr(e.Remote), Nonce: p.Nonce, Summed: !r.wrong}
		time.AfterFunc(rtt, func() { r.Echoed(e) })
	}
}

// passes says which plain packets pass the underlay.
func (r *router) passes(encaps ...kernel.Encap) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.plain = make(map[kernel.Encap]bool)
	for _, e := range encaps {
		r.plain[e] = true
	}
}

// SetFast implements fastpath.Host.
func (r *router) Carries(peer.Name) bool { return true }

func (r *router) SetFast(n peer.Name, up bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.up[n] = up
}

// Check implements fastpath.Host.
func (r *router) Check(n peer.Name) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.checks[n]++
}

// Backlog implements fastpath.Host.
func (r *router) Backlog() bool { return false }

// silence makes the kernel of a neighbour stop echoing, or echo again.
func (r *router) silence(n byte, silent bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.silent[addrOf(n)] = silent
}

// setCard makes the card of the underlay compute wrong checksums inside VXLAN, or right
// ones.
func (r *router) setCard(wrong bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.card = wrong
}

func (r *router) lastOffer(to byte) wire.Control {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.offers[nameOf(to)]
}

// newMachine is a host with routes to peers 2 to 9.
func newMachine(t *testing.T) *kerneltest.Machine {
	m := kerneltest.New(t)
	for n := byte(2); n < 10; n++ {
		m.SetRoute(addrOf(n), netdev.Hop{Ifindex: kerneltest.Uplink, Local: addrOf(1), Gateway: addrOf(n)})
	}
	return m
}

var defaults = fastpath.Settings{Port: port, TunnelPort: tunnelPort}

// open opens a controller that does not run.
func open(t *testing.T, m *kerneltest.Machine, s fastpath.Settings) *router {
	t.Helper()
	return openWith(t, m, m, s)
}

// openWith is open with a System that changes what some calls to the machine do.
func openWith(t *testing.T, m *kerneltest.Machine, sys fastpath.System, s fastpath.Settings) *router {
	t.Helper()
	r := &router{t: t, m: m, macs: mac.New(mac.Limits{}), offers: make(map[peer.Name]wire.Control), silent: make(map[netip.Addr]bool), up: make(map[peer.Name]bool), checks: make(map[peer.Name]int)}
	r.keeper = kerneltest.NewKeeper(m)
	c, err := fastpath.Open(fastpath.Config{
		Keeper:   r.keeper,
		Settings: s, Self: nameOf(1), Bridge: "weft", TAP: "vethwe-tap", MTU: mtu, MACs: r.macs, Start: time.Now().Add(-time.Hour),
		Epoch: time.Now(), Log: slog.New(slog.DiscardHandler), System: sys,
	}, r)
	if err != nil {
		t.Fatal(err)
	}
	r.Controller, r.stop = c, c.Close
	return r
}

// start opens a controller and runs it until stop or the end of the test.
func start(t *testing.T, m *kerneltest.Machine, s fastpath.Settings) *router {
	t.Helper()
	return startWith(t, m, m, s)
}

// startWithPeer2 is start, and the kernel forwards to peer 2 when it returns.
func startWithPeer2(t *testing.T, m *kerneltest.Machine) *router {
	t.Helper()
	r := start(t, m, defaults)
	r.routes([]byte{2}, nil)
	r.meet(2)
	pass(time.Second)
	return r
}

// startWith is start with a System that changes what some calls to the machine do.
func startWith(t *testing.T, m *kerneltest.Machine, sys fastpath.System, s fastpath.Settings) *router {
	t.Helper()
	r := openWith(t, m, sys, s)
	r.run()
	return r
}

// run runs the controller until stop or the end of the test.
func (r *router) run() {
	ctx, cancel := context.WithCancel(r.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	var keeping sync.WaitGroup
	keeping.Go(func() { r.keeper.Run(ctx) })
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			r.t.Errorf("Run: %v", err)
		}
		keeping.Wait()
		r.Close()
	})
	r.t.Cleanup(r.stop)
}

// sessionOf is a session with a peer.
func sessionOf(n byte) fastpath.Session {
	return fastpath.Session{Secret: [32]byte{n}, Key: peer.Key{n}, Addr: addrOf(n)}
}

// meet begins a session with peers, which say that they are willing.
func (r *router) meet(peers ...byte) {
	for _, n := range peers {
		r.Up(nameOf(n), sessionOf(n))
		r.Control(nameOf(n), wire.Control{Type: wire.Fast, ShortID: uint16(n), Port: port})
	}
}

// emptyRoutes are the routes of a router that knows nobody, not even its own short id.
func (r *router) emptyRoutes() *topology.Routes {
	return &topology.Routes{
		Self: nameOf(1), Unicast: make(map[peer.Name]peer.Name), From: make(map[peer.Name][]peer.Name),
		ShortIDs: make(map[peer.Name]uint16), ByShortID: make(map[uint16]peer.Name),
	}
}

// unreached takes peers out of routes, as if no path led to them. The mesh still knows them.
func unreached(t *topology.Routes, peers ...byte) *topology.Routes {
	for _, n := range peers {
		delete(t.Unicast, nameOf(n))
		delete(t.From, nameOf(n))
	}
	return t
}

// routes puts routes in force: peers are reached directly, or over the peer that the
// map names.
func (r *router) routes(peers []byte, over map[byte]byte) { r.Routes(r.routesTo(peers, over)) }

func (r *router) routesTo(peers []byte, over map[byte]byte) *topology.Routes {
	t := r.emptyRoutes()
	t.ShortIDs[nameOf(1)], t.ByShortID[1] = 1, nameOf(1)
	for _, n := range peers {
		t.ShortIDs[nameOf(n)], t.ByShortID[uint16(n)] = uint16(n), nameOf(n)
		t.Unicast[nameOf(n)] = nameOf(n)
		if via, ok := over[n]; ok {
			t.Unicast[nameOf(n)] = nameOf(via)
		}
		t.From[nameOf(n)] = []peer.Name{t.Unicast[nameOf(n)]}
	}
	return t
}

// pass lets time pass until nothing is left to do.
func pass(d time.Duration) {
	time.Sleep(d) // of the bubble's clock
	synctest.Wait()
}

// want checks how frames to peers are forwarded.
func (r *router) want(way kerneltest.Way, peers ...byte) {
	r.t.Helper()
	for _, n := range peers {
		if got := r.m.Way(uint16(n)); got != way {
			s, _ := r.Link(nameOf(n))
			r.t.Errorf("frames to peer %d go by %s, want %s (status %+v)", n, got, way, s)
		}
	}
}

// never checks that no line of the machine's log since the last look begins with one of
// these words.
func (r *router) never(lines ...string) {
	r.t.Helper()
	log := r.m.Log()
	for _, l := range log {
		if slices.Contains(lines, l) {
			r.t.Errorf("%q in %q", l, log)
		}
	}
}
