package topology

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

// sim is a mesh of pure machines: states joined by gossip engines over links
// that lose messages. Time passes only in steps.
type sim struct {
	rng   *rand.Rand
	now   time.Time
	loss  float64
	nodes []*simNode
	sent  []uint64 // bytes sent by each node
}

type simNode struct {
	*State
	engine *gossip.Engine
	links  map[int]bool
	dead   bool
}

func simName(i int) peer.Name { return peer.Name{2, 0, 0, 0, byte(i >> 8), byte(i)} }

func simIndex(n peer.Name) int { return int(n[4])<<8 | int(n[5]) }

// newSim links n peers at random, each with about degree others.
func newSim(t testing.TB, seed uint64, n, degree int, loss float64) *sim {
	return newSimWithIDs(t, seed, n, degree, loss, MaxShortID)
}

func newSimWithIDs(t testing.TB, seed uint64, n, degree int, loss float64, ids uint16) *sim {
	w := &sim{rng: rand.New(rand.NewPCG(seed, 0)), now: epoch, loss: loss, sent: make([]uint64, n)}
	for i := range n {
		id := peer.Cheap{ID: peer.Key{1, byte(i >> 8), byte(i)}}
		s, err := New(Config{Self: simName(i), Nickname: "sim", Instance: uint64(i), Signer: id, Verifier: id, Book: new(peer.Book), Start: epoch,
			shortIDs: ids})
		if err != nil {
			t.Fatal(err)
		}
		nd := &simNode{State: s, engine: gossip.NewEngine(rand.New(rand.NewPCG(seed, uint64(i)))), links: make(map[int]bool)}
		nd.engine.Register(1, s)
		w.nodes = append(w.nodes, nd)
	}
	for i := range n {
		w.join(i, (i+1)%n)
		for range degree/2 - 1 {
			if j := w.rng.IntN(n); j != i {
				w.join(i, j)
			}
		}
	}
	for i := range n {
		w.tell(i)
	}
	return w
}

func (w *sim) link(i, j int) {
	w.join(i, j)
	w.tell(i)
	w.tell(j)
}

func (w *sim) join(i, j int) {
	for _, p := range [][2]int{{i, j}, {j, i}} {
		if n := w.nodes[p[0]]; !n.links[p[1]] {
			n.links[p[1]] = true
			n.engine.NeighbourUp(simName(p[1]))
		}
	}
}

func (w *sim) unlink(i, j int) {
	for _, p := range [][2]int{{i, j}, {j, i}} {
		delete(w.nodes[p[0]].links, p[1])
		w.nodes[p[0]].engine.NeighbourDown(simName(p[1]))
	}
	w.tell(i)
	w.tell(j)
}

func (w *sim) tell(i int) {
	n := w.nodes[i]
	var l []Link
	for j := range n.links {
		l = append(l, Link{To: simName(j), Flags: LinkSession | LinkData})
	}
	if d := n.SetLinks(l); d != nil {
		n.engine.Announce(1, d)
	}
}

func (w *sim) kill(i int) {
	for j := range w.nodes[i].links {
		w.unlink(i, j)
	}
	w.nodes[i].dead = true
}

// step lets one second pass, in which a message makes at most hops hops.
func (w *sim) step(t testing.TB, hops int) {
	w.now = w.now.Add(time.Second)
	for _, n := range w.nodes {
		n.engine.Tick(w.now)
	}
	for range hops {
		type msg struct {
			from, to int
			b        []byte
		}
		var air []msg
		for i, n := range w.nodes {
			for _, to := range n.engine.Dirty() {
				for b := n.engine.Next(to); b != nil; b = n.engine.Next(to) {
					w.sent[i] += uint64(len(b))
					if w.rng.Float64() >= w.loss {
						air = append(air, msg{i, simIndex(to), b})
					}
				}
			}
		}
		if air == nil {
			return
		}
		for _, m := range air {
			if _, err := w.nodes[m.to].engine.Receive(simName(m.from), m.b); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range w.nodes {
			if d := n.SettleShortID(); d != nil {
				n.engine.Announce(1, d)
			}
		}
	}
}

// shortIDs fails the test unless all living peers know the same short ids, and returns
// them.
func (w *sim) shortIDs(t testing.TB) (ids map[peer.Name]uint16) {
	t.Helper()
	for i, n := range w.nodes {
		if n.dead {
			continue
		}
		g := n.Graph() // all routes of all peers take ten seconds
		if ids == nil {
			ids = g.shortIDs
		}
		if !maps.Equal(g.shortIDs, ids) {
			t.Fatalf("peer %d knows different ids than the first peer", i)
		}
		if len(g.byShortID) != len(ids) {
			t.Fatalf("%d ids of %d peers", len(g.byShortID), len(ids))
		}
		if got := ids[simName(i)]; got != n.own.ShortID {
			t.Fatalf("peer %d claims id %d, all know %d", i, n.own.ShortID, got)
		}
	}
	return ids
}

// differing counts the living peers whose state is not the most common one.
func (w *sim) differing() (differ int) {
	var want []byte
	for _, n := range w.nodes {
		if n.dead {
			continue
		}
		d := n.Digest()
		if want == nil {
			want = d
		}
		if !bytes.Equal(d, want) {
			differ++
		}
	}
	return differ
}

// converge steps until all living peers have the same state, and returns the number of
// steps.
func (w *sim) converge(t testing.TB) int {
	for s := range 300 {
		if s > 0 && w.differing() == 0 {
			return s
		}
		w.step(t, 4)
	}
	t.Fatalf("%d peers still differ after 300 seconds", w.differing())
	return 0
}

func TestManyPeersConvergeUnderLossAndChurn(t *testing.T) {
	t.Parallel()
	peers := 1000
	if testing.Short() {
		peers = 300
	}
	w := newSim(t, seed.New(t), peers, 4, 0.2)
	t.Logf("from the start: %d simulated seconds", w.converge(t))
	for range 3 {
		for range 20 {
			i := w.rng.IntN(len(w.nodes))
			j := w.rng.IntN(len(w.nodes))
			switch {
			case w.nodes[i].dead || w.nodes[j].dead || i == j:
			case w.nodes[i].links[j]:
				w.unlink(i, j)
			default:
				w.link(i, j)
			}
		}
		w.kill(w.rng.IntN(len(w.nodes)))
		w.step(t, 4)
	}
	t.Logf("after churn: %d simulated seconds", w.converge(t))
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	t.Logf("%d MiB for all", mem.HeapAlloc>>20)
	if ids := w.shortIDs(t); len(ids) != len(w.nodes) {
		t.Errorf("%d of %d peers have a short id of their own", len(ids), len(w.nodes))
	}
	alive := 0
	for _, n := range w.nodes {
		if !n.dead {
			alive++
		}
	}
	for _, n := range w.nodes[:3] {
		if r := n.Graph().Routes(LinkData); !n.dead && len(r.Unicast) != alive-1 {
			t.Errorf("routes to %d of %d peers", len(r.Unicast), alive-1)
		}
	}
}

// The bytes that one change in a stable mesh costs each peer do not grow faster than the
// number of peers.
func TestOneChangeCostsAtMostLinearBytes(t *testing.T) {
	t.Parallel()
	cost := func(n int) uint64 {
		w := newSim(t, 1, n, 8, 0)
		w.converge(t)
		for range 40 { // the last digests
			w.step(t, 4)
		}
		clear(w.sent)
		w.unlink(0, 1)
		for range 5 {
			w.step(t, 8)
		}
		if w.differing() > 0 {
			t.Fatalf("%d peers: the change did not arrive within 5 s", n)
		}
		var sum uint64
		for _, b := range w.sent {
			sum += b
		}
		return sum / uint64(n)
	}
	few := 100
	if testing.Short() {
		few = 50
	}
	small, large := cost(few), cost(4*few)
	t.Logf("bytes per peer for one change: %d with %d peers, %d with %d", small, few, large, 4*few)
	if large > 4*small {
		t.Errorf("four times the peers cost each %.1f times the bytes", float64(large)/float64(small))
	}
}
