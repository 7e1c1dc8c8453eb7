package router

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/internal/udp"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/multicast"
	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/resolve"
	"github.com/weft-net/weft/router/tap"
	"github.com/weft-net/weft/router/wire"
)

// fabric is an underlay in memory.
type fabric struct {
	mu    sync.Mutex
	ports map[netip.AddrPort]*memConn
	rng   *rand.Rand
	loss  float64
	swap  float64                                 // share of packets that the next one overtakes
	lost  map[wire.Type]int                       // packets that loss took
	held  map[netip.AddrPort]*udp.Message         // by destination
	mtu   int                                     // larger IP packets vanish; 0 for no limit
	spy   func(from, to netip.AddrPort, p []byte) // sees every packet that is sent
	late  time.Duration                           // each packet takes up to this long, at random, and so overtakes others
	cut   map[[2]netip.AddrPort]bool
	nat   map[netip.AddrPort]netip.AddrPort // what a source looks like from elsewhere
}

func newFabric(t testing.TB) *fabric {
	return &fabric{ports: map[netip.AddrPort]*memConn{}, rng: seed.Rand(t), cut: map[[2]netip.AddrPort]bool{}, nat: map[netip.AddrPort]netip.AddrPort{},
		lost: map[wire.Type]int{}, held: map[netip.AddrPort]*udp.Message{}}
}

// memConn is a udp.Conn on a fabric.
type memConn struct {
	f    *fabric
	addr netip.AddrPort
	in   chan udp.Message
	gone chan struct{}
	once sync.Once
}

func (f *fabric) listen(addr netip.AddrPort) *memConn {
	c := &memConn{f: f, addr: addr, in: make(chan udp.Message, 4096), gone: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ports[addr] = c
	return c
}

func (f *fabric) send(from, to netip.AddrPort, p []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.spy != nil {
		f.spy(from, to, p)
	}
	c := f.ports[to]
	if n, ok := f.nat[from]; ok {
		from = n
	}
	if c == nil || f.cut[[2]netip.AddrPort{from, to}] || f.mtu > 0 && len(p)+28 > f.mtu {
		return
	}
	if f.rng.Float64() < f.loss {
		f.lost[wire.Type(p[0])]++
		return
	}
	m := udp.Message{Buf: append([]byte(nil), p...), Addr: from}
	if f.late > 0 {
		time.AfterFunc(time.Duration(f.rng.Int64N(int64(f.late))), func() { c.put(m) })
		return
	}
	old := f.held[to]
	if delete(f.held, to); old == nil && f.rng.Float64() < f.swap {
		f.held[to] = &m
		return
	}
	c.put(m)
	if old != nil {
		c.put(*old)
	}
}

func (c *memConn) put(m udp.Message) {
	select {
	case c.in <- m:
	default:
	}
}

func (c *memConn) NewReader(int) udp.Reader { return c }
func (c *memConn) NewWriter(int) udp.Writer { return c }

func (c *memConn) NewSingleWriter(int) udp.Writer { return c }
func (c *memConn) LocalAddr() netip.AddrPort      { return c.addr }
func (c *memConn) Close() error                   { c.once.Do(func() { close(c.gone) }); return nil }

func (c *memConn) ReadBatch() (m []udp.Message, _ error) {
	put := func(p udp.Message) { p.N = len(p.Buf); m = append(m, p) }
	select {
	case <-c.gone:
		return nil, net.ErrClosed
	case p := <-c.in:
		put(p)
	}
	for len(m) < 64 {
		select {
		case p := <-c.in:
			put(p)
		default:
			return m, nil
		}
	}
	return m, nil
}

func (c *memConn) WriteBatch(m []udp.Message) (int, error) {
	for i := range m {
		c.f.send(c.addr, m[i].Addr, m[i].Buf[:m[i].N])
	}
	return len(m), nil
}

// memTAP is a tap.Queue; frames from containers are put in, those for them
// come out. GSO packets come out in their segments, complete.
type memTAP struct {
	can tap.Offloads
	in  chan memFrame
	// sparse, if set, is asked of each frame that comes in.
	sparse func(frame []byte) bool

	mu         sync.Mutex
	out        [][]byte
	gsoPackets int                    // GSO packets that came out
	no         map[offload.Kind]error // how kinds are refused, though can says other
	gone       chan struct{}
	once       sync.Once
}

type memFrame struct {
	h offload.Header
	b []byte
}

func newMemTAP() *memTAP {
	return &memTAP{in: make(chan memFrame, 4096), gone: make(chan struct{}), can: tap.Offloads{Checksum: true, TCP: true, UDP: true}}
}

func (q *memTAP) NewReader() tap.Reader  { return q }
func (q *memTAP) NewWriter() tap.Writer  { return q }
func (q *memTAP) Offloads() tap.Offloads { return q.can }

func (q *memTAP) Prioritize(sparse func(frame []byte) bool) { q.sparse = sparse }

func (q *memTAP) ReadBatch() (all []tap.Frame, _ error) {
	put := func(f memFrame) {
		b := make([]byte, tap.Headroom+len(f.b), tap.Headroom+len(f.b)+tap.Tailroom)
		copy(b[tap.Headroom:], f.b)
		all = append(all, tap.Frame{Header: f.h, Buf: b, Sparse: q.sparse != nil && q.sparse(f.b)})
	}
	select {
	case <-q.gone:
		return nil, os.ErrClosed
	case b := <-q.in:
		put(b)
	}
	for len(all) < 64 {
		select {
		case b := <-q.in:
			put(b)
		default:
			return all, nil
		}
	}
	return all, nil
}

func (q *memTAP) Write(h offload.Header, parts [][]byte) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.no[h.Kind]; err != nil {
		return err
	}
	if h.NeedsSum && !q.can.Checksum || h.Kind == offload.UDP && !q.can.UDP || (h.Kind == offload.TCP4 || h.Kind == offload.TCP6) && !q.can.TCP {
		return unix.EINVAL
	}
	b := bytes.Join(parts, nil)
	if h.Kind == offload.None {
		if h.NeedsSum && !offload.Complete(h, b) {
			return unix.EINVAL
		}
		q.out = append(q.out, b)
		return nil
	}
	var s offload.Splitter
	if err := s.Reset(h, b); err != nil {
		return err
	}
	q.gsoPackets++
	for i := range s.Count() {
		seg := make([]byte, s.Len(i))
		s.PutComplete(seg, i)
		q.out = append(q.out, seg)
	}
	return nil
}

func (q *memTAP) Close() error { q.once.Do(func() { close(q.gone) }); return nil }

// took returns the frames that came out since the last call.
func (q *memTAP) took() [][]byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := q.out
	q.out = nil
	return out
}

var _ tap.Queue = (*memTAP)(nil)

// node is a router of a simulated mesh.
type node struct {
	*Router
	name peer.Name
	addr netip.AddrPort
	tap  *memTAP   // the first queue, which all that is for the host comes out of
	more []*memTAP // the others
	stop func()
	m    *mesh

	mu sync.Mutex
	up map[peer.Name]bool
}

func (n *node) Self() peer.Name { return n.name }

func (n *node) Send(to peer.Name, msg []byte) error {
	for _, o := range n.m.nodes {
		if o.name == to {
			o.HandleControl(n.name, msg)
			return nil
		}
	}
	return fmt.Errorf("no session with %s", to)
}

func (n *node) Doubt(peer.Name) {}

func (n *node) SetLink(to peer.Name, up bool, _ time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.up[to] = up
}

// Want makes a session without an address, as the mesh does over other peers, unless there
// is one.
func (n *node) Want(to peer.Name, _ bool) {
	if n.m.wanted != nil {
		n.m.wanted(int(n.name[5]) - 1)
	}
	for _, o := range n.m.nodes {
		if o.name == to && !n.m.alone.Load() {
			n.m.relay(n, o)
		}
	}
}

// relay makes a session without an address, or nothing if there is one between the routers
// as they run now.
func (m *mesh) relay(a, b *node) {
	if a.name.Compare(b.name) > 0 {
		a, b = b, a
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	k := [2]*Router{a.Router, b.Router}
	if _, ok := m.relayed[k]; ok {
		return
	}
	secret := [32]byte{8, byte(len(m.relayed))}
	m.relayed[k] = secret
	a.NeighbourUp(Neighbour{Name: b.name, Secret: secret})
	b.NeighbourUp(Neighbour{Name: a.name, Secret: secret})
}

func (n *node) isUp(to *node) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.up[to.name]
}

// mesh is some routers in one process.
type mesh struct {
	t     *testing.T
	f     *fabric
	nodes []*node
	edges [][2]int
	o     meshOptions
	stop  func()

	joins   int
	wanted  func(i int) // called when node i needs a session over other peers
	alone   atomic.Bool // no such session comes about
	mu      sync.Mutex
	relayed map[[2]*Router][32]byte // secrets of such sessions
}

// names of peers: those that share the low 32 bits end in the same digit.
func nameOf(i int) peer.Name { return peer.Name{2, 0, 0, 0, 0, byte(i + 1)} }

// newMesh starts n routers, whose neighbours the edges say, inside a synctest
// bubble, and waits until all links are up. Their TAPs can do all, but those
// that cans are given for.
func newMesh(t *testing.T, mtu int, names []peer.Name, edges [][2]int, cans ...tap.Offloads) *mesh {
	return newMeshOf(t, meshOptions{mtu: mtu, cans: cans}, names, edges)
}

// meshOptions may be zero, except mtu.
type meshOptions struct {
	mtu          int
	underlayMTU  int                            // 1500 if 0
	cans         []tap.Offloads                 // of the nodes' TAPs
	queues       int                            // of each TAP, one if 0
	renewPackets uint64                         // after which keys are renewed
	seal         bool                           // Config.SealRelayed
	log          *slog.Logger                   // none if nil
	placeOf      func(netip.Addr) resolve.Place // nil for the first blind nodes
	blind        int
	wanted       func(i int, w multicast.Wants) // Config.Wanted of node i
}

func newMeshOf(t *testing.T, o meshOptions, names []peer.Name, edges [][2]int) *mesh {
	m := &mesh{t: t, f: newFabric(t), edges: edges, o: o, relayed: make(map[[2]*Router][32]byte)}
	for i, name := range names {
		m.nodes = append(m.nodes, &node{name: name, addr: netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:6783", i+1)), m: m})
		m.start(i)
	}
	m.stop = func() {
		for _, n := range m.nodes {
			n.stop()
		}
	}
	for i := range edges {
		m.join(i)
	}
	m.route()
	time.Sleep(3 * time.Second)
	synctest.Wait()
	for _, e := range edges {
		if !m.nodes[e[0]].isUp(m.nodes[e[1]]) || !m.nodes[e[1]].isUp(m.nodes[e[0]]) {
			s, _ := m.nodes[e[0]].Link(m.nodes[e[1]].name)
			t.Fatalf("link %v is not up: %+v", e, s)
		}
	}
	return m
}

// start starts the router of node i, which does not run: for the first time, or
// again as after a crash.
func (m *mesh) start(i int) {
	n := m.nodes[i]
	queues := make([]tap.Queue, max(1, m.o.queues))
	n.more = nil
	for j := range queues {
		q := newMemTAP()
		if i < len(m.o.cans) {
			q.can = m.o.cans[i]
		}
		queues[j] = q
		if j == 0 {
			n.tap = q
		} else {
			n.more = append(n.more, q)
		}
	}
	n.mu.Lock()
	n.up = map[peer.Name]bool{}
	n.mu.Unlock()
	mtu := m.o.underlayMTU
	if mtu == 0 {
		mtu = 1500
	}
	c := Config{MTU: m.o.mtu, Conn: m.f.listen(n.addr), Queues: queues, MaxUnderlayMTU: mtu, renewPackets: m.o.renewPackets, SealRelayed: m.o.seal, Log: m.o.log}
	if i >= m.o.blind {
		c.PlaceOf = m.o.placeOf
	}
	if m.o.wanted != nil {
		c.Wanted = func(w multicast.Wants) { m.o.wanted(i, w) }
	}
	r, err := New(c, n)
	if err != nil {
		m.t.Fatal(err)
	}
	n.Router = r
	ctx, cancel := context.WithCancel(m.t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := r.Run(ctx); err != nil {
			m.t.Error(err)
		}
	}()
	n.stop = func() { cancel(); <-ended }
}

// restart ends the router of node i and starts it again: with its old name and
// address, and nothing else that it had.
func (m *mesh) restart(i int) {
	m.nodes[i].stop()
	synctest.Wait()
	m.start(i)
	for j, e := range m.edges {
		if e[0] == i || e[1] == i {
			m.join(j)
		}
	}
	m.route()
	time.Sleep(3 * time.Second)
	synctest.Wait()
}

func (m *mesh) join(i int) {
	a, b := m.nodes[m.edges[i][0]], m.nodes[m.edges[i][1]]
	m.joins++
	secret := [32]byte{byte(i), 7, byte(m.joins)} // each session has its own
	a.NeighbourUp(Neighbour{Name: b.name, Addr: b.addr, Secret: secret, Dialled: true})
	b.NeighbourUp(Neighbour{Name: a.name, Addr: a.addr, Secret: secret})
}

// route works routes out by breadth-first search from each node.
func (m *mesh) route() {
	next := map[peer.Name][]peer.Name{}
	byID := map[uint32]peer.Name{}
	for _, n := range m.nodes {
		id := n.name.ID()
		if _, dup := byID[id]; dup {
			byID[id] = peer.Name{}
		} else {
			byID[id] = n.name
		}
	}
	for _, e := range m.edges {
		a, b := m.nodes[e[0]].name, m.nodes[e[1]].name
		next[a], next[b] = append(next[a], b), append(next[b], a)
	}
	routes := map[peer.Name]*topology.Routes{}
	for _, n := range m.nodes {
		routes[n.name] = &topology.Routes{Self: n.name, ByID: byID, Unicast: map[peer.Name]peer.Name{}, Broadcast: map[peer.Name][]peer.Name{},
			From: map[peer.Name][]peer.Name{}}
	}
	for _, n := range m.nodes {
		parent, hops := map[peer.Name]peer.Name{n.name: n.name}, map[peer.Name]int{n.name: 0}
		for queue := []peer.Name{n.name}; len(queue) > 0; queue = queue[1:] {
			at := queue[0]
			for _, to := range next[at] {
				if h, seen := hops[to]; !seen || h == hops[at]+1 {
					routes[to].From[n.name] = append(routes[to].From[n.name], at)
				}
				if _, seen := parent[to]; seen {
					continue
				}
				parent[to], hops[to] = at, hops[at]+1
				queue = append(queue, to)
				routes[at].Broadcast[n.name] = append(routes[at].Broadcast[n.name], to)
				routes[to].Unicast[n.name] = at // links are the same both ways
			}
		}
	}
	for _, n := range m.nodes {
		n.SetRoutes(routes[n.name])
	}
	synctest.Wait()
}

func line(n int) (edges [][2]int) {
	for i := range n - 1 {
		edges = append(edges, [2]int{i, i + 1})
	}
	return edges
}

func names(n int) (all []peer.Name) {
	for i := range n {
		all = append(all, nameOf(i))
	}
	return all
}

// inMesh runs a test on a mesh in a bubble with fake time.
func inMesh(t *testing.T, names []peer.Name, edges [][2]int, f func(m *mesh)) {
	inMeshOf(t, names, edges, nil, f)
}

func inMeshOf(t *testing.T, names []peer.Name, edges [][2]int, cans []tap.Offloads, f func(m *mesh)) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 1376, names, edges, cans...)
		defer m.stop()
		f(m)
	})
}

func inMeshWith(t *testing.T, o meshOptions, names []peer.Name, edges [][2]int, f func(m *mesh)) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeshOf(t, o, names, edges)
		defer m.stop()
		f(m)
	})
}

// macOf is the address of the only container of node i.
func macOf(i int) ethernet.MAC { return ethernet.MAC{2, 0, 0, 0, 1, byte(i)} }

// frameOf makes a frame of size bytes with an ethertype of nobody's.
func frameOf(dst, src ethernet.MAC, size int, mark byte) []byte {
	b := make([]byte, max(size, 15))
	copy(b, dst[:])
	copy(b[6:], src[:])
	binary.BigEndian.PutUint16(b[12:], 0x88b5) // for experiments, IEEE 802
	for i := 14; i < len(b); i++ {
		b[i] = mark
	}
	return b
}

// say puts a frame in at node i and waits until all is quiet.
func (m *mesh) say(i int, b []byte) {
	m.nodes[i].tap.in <- memFrame{b: b}
	synctest.Wait()
}

// got returns, for each node, the frames that came out there.
func (m *mesh) got() (all [][][]byte) {
	for _, n := range m.nodes {
		all = append(all, n.tap.took())
	}
	return all
}

// wantCounts compares how many frames came out at each node.
func (m *mesh) wantCounts(what string, want ...int) {
	m.t.Helper()
	var got []int
	for _, f := range m.got() {
		got = append(got, len(f))
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		m.t.Errorf("%s: frames that came out at each node: %v, want %v", what, got, want)
	}
}

// dropped sums a reason over all links and the router itself.
func (n *node) dropped(r Reason) (sum uint64) {
	s := n.Status()
	sum = s.Drops[r.String()]
	for _, l := range s.Links {
		sum += l.Drops[r.String()]
	}
	return sum
}
