package names

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

// sim is a mesh without goroutines and sockets: states joined by gossip engines over links that
// lose messages. A change of the reachable peers is reported to all peers at once, as if the
// topology needed no time.
type sim struct {
	rng   *rand.Rand
	now   time.Time
	loss  float64
	nodes []*simNode
	sent  uint64 // bytes
}

type simNode struct {
	*State
	engine *gossip.Engine
	links  map[int]bool
	dead   bool
	names  map[Entry]bool
}

func simIndex(n peer.Name) int { return int(n[4])<<8 | int(n[5]) }

func newSim(seed uint64, n, degree int, loss float64) *sim {
	w := &sim{rng: rand.New(rand.NewPCG(seed, 0)), now: epoch, loss: loss}
	for i := range n {
		w.nodes = append(w.nodes, &simNode{links: make(map[int]bool), dead: true})
		w.boot(i)
	}
	for i := range n {
		w.join(i, (i+1)%n)
		for range degree/2 - 1 {
			if j := w.rng.IntN(n); j != i {
				w.join(i, j)
			}
		}
	}
	w.updatePeers()
	return w
}

// boot starts a router without any state.
func (w *sim) boot(i int) {
	n := w.nodes[i]
	n.State = newState(i, uint64(w.now.UnixMicro()))
	n.engine = gossip.NewEngine(rand.New(rand.NewPCG(w.rng.Uint64(), uint64(i))))
	n.engine.Register(6, n.State)
	n.dead, n.names = false, make(map[Entry]bool)
	for _, j := range slices.Sorted(maps.Keys(n.links)) { // in the same order in each run of a seed
		if !w.nodes[j].dead {
			n.engine.NeighbourUp(nameOf(j))
			w.nodes[j].engine.NeighbourUp(nameOf(i))
		}
	}
}

func (w *sim) kill(i int) {
	w.nodes[i].dead = true
	for _, j := range slices.Sorted(maps.Keys(w.nodes[i].links)) {
		w.nodes[j].engine.NeighbourDown(nameOf(i))
	}
}

func (w *sim) join(i, j int) {
	for _, p := range [][2]int{{i, j}, {j, i}} {
		if n := w.nodes[p[0]]; !n.links[p[1]] {
			n.links[p[1]] = true
			n.engine.NeighbourUp(nameOf(p[1]))
		}
	}
}

// closeRing joins each living peer to the next living one, as dialling does for peers
// whose neighbours died: a mesh in two parts would not converge.
func (w *sim) closeRing() {
	last := -1
	for i := range 2 * len(w.nodes) {
		if i %= len(w.nodes); !w.nodes[i].dead {
			if last >= 0 && last != i {
				w.join(last, i)
			}
			last = i
		}
	}
}

// updatePeers reports to all routers which peers are alive.
func (w *sim) updatePeers() {
	var alive []int
	for i, n := range w.nodes {
		if !n.dead {
			alive = append(alive, i)
		}
	}
	for _, n := range w.nodes {
		if !n.dead {
			w.announce(n, setReached(n.State, alive...))
		}
	}
}

func (w *sim) announce(n *simNode, deltas [][]byte) {
	for _, d := range deltas {
		n.engine.Announce(6, d)
	}
}

// churn removes and adds random names of a router.
func (w *sim) churn(t testing.TB, i int) {
	n := w.nodes[i]
	var out, in []Entry
	compare := func(a, b Entry) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) }
	for _, e := range slices.SortedFunc(maps.Keys(n.names), compare) {
		if w.rng.IntN(2) == 0 {
			out = append(out, e)
			delete(n.names, e)
		}
	}
	for range 1 + w.rng.IntN(5) {
		e := entry(fmt.Sprintf("n%d.weft.internal", w.rng.IntN(1000)), fmt.Sprintf("c%d", w.rng.IntN(100)), fmt.Sprintf("10.%d.%d.1", i>>8, i&255))
		in = append(in, e)
		n.names[e] = true
	}
	w.announce(n, change(t, n.State, out, in))
}

// step simulates one second, in which a message crosses up to four hops.
func (w *sim) step(t testing.TB) {
	w.now = w.now.Add(time.Second)
	for _, n := range w.nodes {
		if !n.dead {
			n.engine.Tick(w.now)
			w.announce(n, n.Tick(w.now))
		}
	}
	for range 4 {
		type msg struct {
			from, to int
			b        []byte
		}
		var air []msg
		for i, n := range w.nodes {
			if n.dead {
				continue
			}
			for _, to := range n.engine.Dirty() {
				for b := n.engine.Next(to); b != nil; b = n.engine.Next(to) {
					w.sent += uint64(len(b))
					if w.rng.Float64() >= w.loss {
						air = append(air, msg{i, simIndex(to), b})
					}
				}
			}
		}
		for _, m := range air {
			if n := w.nodes[m.to]; !n.dead {
				if _, err := n.engine.Receive(nameOf(m.from), m.b); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// converge steps until all living peers show the same names, and returns the seconds that it took.
func (w *sim) converge(t testing.TB) int {
	t.Helper()
	differ := 0
	for s := range 300 {
		w.step(t)
		differ = 0
		var want []byte
		for _, n := range w.nodes {
			if n.dead {
				continue
			}
			// Names that are kept of dead peers are not shown and may differ.
			got := fmt.Append(nil, n.table.Len())
			for _, l := range n.List() {
				got = fmt.Append(got, l.Entry, l.Owner)
			}
			if want == nil {
				want = got
			}
			if !bytes.Equal(got, want) {
				differ++
			}
		}
		if differ == 0 {
			return s + 1
		}
	}
	t.Fatalf("%d peers still differ after 300 seconds", differ)
	return 0
}

// check wants every living peer to show exactly the names of all living peers.
func (w *sim) check(t testing.TB) {
	t.Helper()
	total := 0
	for _, n := range w.nodes {
		if !n.dead {
			total += len(n.names)
		}
	}
	for i, n := range w.nodes {
		if n.dead {
			continue
		}
		list := n.List()
		if len(list) != total {
			t.Fatalf("peer %d shows %d entries, want %d", i, len(list), total)
		}
		for _, l := range list {
			if !w.nodes[simIndex(l.Owner)].names[l.Entry] {
				t.Fatalf("peer %d shows %v of %s, which does not announce it", i, l.Entry, l.Owner)
			}
		}
		if i < 3 {
			checkTable(t, n.State)
		}
	}
}

func TestConvergenceUnderLossAndChurn(t *testing.T) {
	peers := 200
	if testing.Short() {
		peers = 80
	}
	w := newSim(seed.New(t), peers, 6, 0.2)
	for i := range w.nodes {
		w.churn(t, i)
	}
	t.Logf("convergence after start: %d s of simulated time", w.converge(t))
	w.check(t)
	for range 4 {
		for range 40 {
			if i := w.rng.IntN(len(w.nodes)); !w.nodes[i].dead {
				w.churn(t, i)
			}
		}
		for range 5 {
			i := w.rng.IntN(len(w.nodes))
			if w.nodes[i].dead {
				w.boot(i)
				w.churn(t, i)
			} else {
				w.kill(i)
			}
		}
		w.closeRing()
		w.updatePeers()
		w.step(t)
	}
	t.Logf("convergence after churn: %d s", w.converge(t))
	w.check(t)
}

// The cost of one new name in bytes does not grow with the number of existing names.
func TestCostOfChangeIsConstant(t *testing.T) {
	const n = 100
	w := newSim(1, n, 8, 0)
	for i := range w.nodes {
		for range 10 {
			w.churn(t, i)
		}
	}
	w.converge(t)
	for range 30 { // until the last digests are exchanged
		w.step(t)
	}
	quiet := w.sent
	for range 30 {
		w.step(t)
	}
	quiet = w.sent - quiet
	before := w.sent
	w.announce(w.nodes[0], change(t, w.nodes[0].State, nil, []Entry{entry("late.weft.internal", "c", "10.0.0.9")}))
	for range 30 {
		w.step(t)
	}
	cost := (w.sent - before) / n
	t.Logf("%d bytes a peer at rest in 30 s, %d with one change", quiet/n, cost)
	if cost > quiet/n+4096 {
		t.Errorf("one change costs each peer %d bytes, at rest it sends %d", cost, quiet/n)
	}
}
