package records

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

// sim is a mesh without goroutines and sockets: maps joined by gossip engines over links that
// lose messages. The topology reports changes to all peers at once.
type sim struct {
	rng    *rand.Rand
	now    time.Time
	loss   float64
	limits Limits
	nodes  []*simNode
	island map[int]bool // a part that no message enters or leaves
	old    [][]byte     // deltas of honest peers, for liars to replay
	sent   uint64       // bytes
	errors int          // messages for which an honest peer would end the session
}

type simNode struct {
	*texts
	engine *gossip.Engine
	links  map[int]bool
	dead   bool
	liar   bool             // it passes nothing on, and sends lies
	values map[where]string // what it announced
	next   uint8            // the bucket of a liar's next record
}

func simIndex(n peer.Name) int { return int(n[4])<<8 | int(n[5]) }

func newSim(t testing.TB, seed uint64, n, liars, degree int, loss float64, limits Limits) *sim {
	w := &sim{rng: rand.New(rand.NewPCG(seed, 0)), now: epoch, loss: loss, limits: limits}
	for i := range n {
		w.nodes = append(w.nodes, &simNode{links: make(map[int]bool), liar: i < liars})
		w.boot(t, i)
	}
	for i := range n {
		for range degree / 2 {
			if j := w.rng.IntN(n); j != i {
				w.join(i, j)
			}
		}
	}
	w.closeRing(t)
	return w
}

// boot starts a router without any state.
func (w *sim) boot(t testing.TB, i int) {
	n := w.nodes[i]
	n.texts = newTexts(t, i, w.now, w.limits)
	n.engine = gossip.NewEngine(rand.New(rand.NewPCG(w.rng.Uint64(), uint64(i))))
	n.engine.Register(6, n.texts)
	n.dead, n.values = false, make(map[where]string)
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

// closeRing joins each living honest peer to the next one, as dialling does for peers whose
// neighbours died, and reports to all which peers are alive.
func (w *sim) closeRing(t testing.TB) {
	t.Helper()
	last := -1
	for i := range 2 * len(w.nodes) {
		if i %= len(w.nodes); !w.nodes[i].dead && !w.nodes[i].liar {
			if last >= 0 && last != i {
				w.join(last, i)
			}
			last = i
		}
	}
	w.updateOwners()
}

// apart reports whether no message passes between two peers.
func (w *sim) apart(i, j int) bool { return w.island[i] != w.island[j] }

func (w *sim) updateOwners() {
	for i, n := range w.nodes {
		if n.dead {
			continue
		}
		known := make(map[peer.Name]peer.Key)
		for j, other := range w.nodes {
			if !other.dead && !w.apart(i, j) {
				known[nameOf(j)] = signerOf(j).ID
			}
		}
		w.announce(n, n.SetOwners(known))
	}
}

func (w *sim) announce(n *simNode, deltas [][]byte) {
	for _, d := range deltas {
		if n.liar {
			continue
		}
		n.engine.Announce(6, d)
		if w.rng.IntN(20) == 0 {
			w.old = append(w.old, d)
		}
	}
}

// change sets and deletes values of a router.
func (w *sim) change(t testing.TB, i int) {
	n := w.nodes[i]
	for range 1 + w.rng.IntN(3) {
		bucket, text := uint8(w.rng.IntN(4)), fmt.Sprintf("value %d of peer %d", w.rng.IntN(1000), i)
		if w.rng.IntN(3) == 0 {
			text = ""
		}
		w.announce(n, n.set(t, bucket, text))
		if n.values[place(nameOf(i), bucket)] = text; text == "" {
			delete(n.values, place(nameOf(i), bucket))
		}
	}
}

// lie returns a delta that a liar sends.
func (w *sim) lie(i int) []byte {
	n := w.nodes[i]
	const domain = signDomain + "test"
	victim := w.rng.IntN(len(w.nodes))
	mine := header{owner: nameOf(i), key: signerOf(i).ID, incarnation: micros(epoch), version: uint64(w.rng.IntN(1000)), bucket: uint8(w.rng.IntN(8))}
	theirs := mine
	theirs.owner = nameOf(victim)
	switch w.rng.IntN(8) {
	case 0: // a made-up owner
		mine.owner = peer.Name{2, 9, byte(w.rng.IntN(256)), byte(w.rng.IntN(256)), byte(i >> 8), byte(i)}
		return sign(mine, make([]byte, 4000), domain, signerOf(i))
	case 1: // an old version
		return w.old[w.rng.IntN(len(w.old))]
	case 2: // a version or an incarnation that leaves none above it
		mine.version = math.MaxUint64
		return sign(mine, []byte("jump"), domain, signerOf(i))
	case 3:
		mine.incarnation = math.MaxUint64
		return sign(mine, []byte("jump"), domain, signerOf(i))
	case 4: // another peer's name with the own key
		theirs.version = 1 << 30
		return sign(theirs, []byte("lie"), domain, signerOf(i))
	case 5: // a forged signature
		theirs.version = 1 << 30
		raw := sign(theirs, []byte("lie"), domain, signerOf(i))
		key := signerOf(victim).ID
		copy(raw[11:], key[:])
		return raw
	default: // huge buckets under its own name, of some liars, more than fit
		if i%8 != 0 {
			return w.old[w.rng.IntN(len(w.old))]
		}
		n.next++
		mine.bucket, mine.version = n.next, uint64(w.now.Sub(epoch)/time.Second)
		return sign(mine, make([]byte, 2000+w.rng.IntN(6000)), domain, signerOf(i))
	}
}

// step simulates one second, in which a message crosses up to four hops.
func (w *sim) step(t testing.TB) {
	w.now = w.now.Add(time.Second)
	for i, n := range w.nodes {
		if n.dead {
			continue
		}
		n.SetTime(w.now)
		deltas := n.Tick(w.now)
		if !n.liar {
			n.engine.Tick(w.now)
			w.announce(n, deltas)
			continue
		}
		for _, j := range slices.Sorted(maps.Keys(n.links)) {
			if w.rng.IntN(len(n.links)) == 0 && !w.apart(i, j) {
				w.receive(t, i, j, slices.Concat([]byte{3, 6}, w.lie(i)))
			}
		}
	}
	for range 4 {
		type msg struct {
			from, to int
			b        []byte
		}
		var air []msg
		for i, n := range w.nodes {
			if n.dead || n.liar {
				continue
			}
			dirty := n.engine.Dirty()
			slices.SortFunc(dirty, peer.Name.Compare)
			for _, to := range dirty {
				for b := n.engine.Next(to); b != nil; b = n.engine.Next(to) {
					w.sent += uint64(len(b))
					if w.rng.Float64() >= w.loss && !w.apart(i, simIndex(to)) {
						air = append(air, msg{i, simIndex(to), b})
					}
				}
			}
		}
		for _, m := range air {
			w.receive(t, m.from, m.to, m.b)
		}
	}
}

func (w *sim) receive(t testing.TB, from, to int, b []byte) {
	n := w.nodes[to]
	if n.dead || n.liar {
		return
	}
	if _, err := n.engine.Receive(nameOf(from), b); err != nil {
		if w.errors++; !w.nodes[from].liar {
			t.Fatalf("an honest peer would lose its session: %v", err)
		}
	}
}

// faults counts the values of reachable honest peers that honest peers lack, and those that
// they show and should not.
func (w *sim) faults() (lost, wrong int) {
	for i, n := range w.nodes {
		if n.dead || n.liar {
			continue
		}
		for j, owner := range w.nodes {
			if owner.liar {
				continue
			}
			var want map[where]string
			if !owner.dead && !w.apart(i, j) {
				want = owner.values
			}
			for bucket := range uint8(4) {
				p := place(nameOf(j), bucket)
				if got := n.seen[p]; got == "" && want[p] != "" {
					lost++
				} else if got != want[p] {
					wrong++
				}
			}
		}
	}
	return lost, wrong
}

// converge steps until all honest peers show what the honest peers that they reach
// announce, and returns the seconds that it took.
func (w *sim) converge(t testing.TB) int {
	t.Helper()
	lost, wrong := 0, 0
	for s := range 120 {
		w.step(t)
		if s%4 > 0 {
			continue
		}
		if lost, wrong = w.faults(); lost+wrong == 0 {
			return s + 1
		}
	}
	t.Fatalf("after 120 seconds %d values are missing and %d are wrong", lost, wrong)
	return 0
}

// checkBounds wants every copy to be within its limits.
func (w *sim) checkBounds(t testing.TB) (dropped uint64) {
	t.Helper()
	for i, n := range w.nodes {
		if n.dead || n.liar {
			continue
		}
		s := n.Stats()
		if s.Bytes > s.MaxBytes || s.Waiting > s.MaxWaiting || len(n.banned) > maxBanned || len(n.spent) > len(n.links) {
			t.Fatalf("peer %d exceeds its limits: %+v", i, s)
		}
		if i%50 == 0 {
			n.check(t)
		}
		for name := range n.banned {
			if j := simIndex(name); j < len(w.nodes) && !w.nodes[j].liar {
				t.Fatalf("peer %d refuses the honest peer %d", i, j)
			}
		}
		dropped += s.Dropped
	}
	return dropped
}

// A third of the members lies while the others change values, lose messages, are parted,
// die and start again. With WEFT_SOAK there are a thousand.
func TestConvergenceWithLiars(t *testing.T) {
	t.Parallel()
	peers, perOwner := 200, 1<<11
	if os.Getenv("WEFT_SOAK") != "" {
		peers = 1000
	}
	liars := peers / 3
	limits := Limits{Owner: 24 << 10, Total: peers * perOwner * 5 / 8}
	w := newSim(t, seed.New(t), peers, liars, 6, 0.1, limits)
	for i := liars; i < peers; i++ {
		w.change(t, i)
	}
	t.Logf("after the start: %d simulated seconds", w.converge(t))
	for round := range 3 {
		for range peers / 10 {
			if i := liars + w.rng.IntN(peers-liars); !w.nodes[i].dead {
				w.change(t, i)
			}
		}
		for range peers / 50 {
			i := liars + w.rng.IntN(peers-liars)
			if w.nodes[i].dead {
				w.boot(t, i)
				w.change(t, i)
			} else {
				w.kill(i)
			}
		}
		w.island = nil
		if round == 1 {
			w.island = make(map[int]bool)
			for i := liars; i < peers; i += 1 + w.rng.IntN(3) {
				w.island[i] = true
			}
			for i := range liars / 2 {
				w.island[i] = true
			}
		}
		w.closeRing(t)
		w.step(t)
		w.checkBounds(t)
	}
	t.Logf("after changes, a partition and restarts: %d s", w.converge(t))
	dropped := w.checkBounds(t)
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	t.Logf("%d lies would have cost a session, %d owners were dropped, %d MiB were sent, %d MiB for all", w.errors, dropped, w.sent>>20, mem.HeapAlloc>>20)
	if w.errors == 0 {
		t.Error("the lies had no effect at all")
	}
	// Nothing that was there is lost or hidden while the lies go on.
	for range 10 {
		w.step(t)
		if lost, wrong := w.faults(); lost+wrong > 0 {
			t.Fatalf("%d values vanished, %d are wrong", lost, wrong)
		}
		w.checkBounds(t)
	}
}

// The cost of one change in bytes does not grow with the number of records, and equal copies
// cost a few bytes.
func TestCostOfChangeIsConstant(t *testing.T) {
	t.Parallel()
	const n = 100
	w := newSim(t, 1, n, 0, 8, 0, Limits{})
	for i := range w.nodes {
		for range 10 {
			w.change(t, i)
		}
	}
	w.converge(t)
	for range 30 { // until the last digests are exchanged
		w.step(t)
	}
	run := func() uint64 {
		before := w.sent
		for range 30 {
			w.step(t)
		}
		return (w.sent - before) / n
	}
	quiet := run()
	w.announce(w.nodes[0], w.nodes[0].set(t, 200, "late"))
	cost := run()
	t.Logf("%d bytes a peer at rest in 30 s, %d with one change", quiet, cost)
	if quiet > 200 {
		t.Errorf("equal copies cost each peer %d bytes in 30 s", quiet)
	}
	if cost > quiet+4096 {
		t.Errorf("one change costs each peer %d bytes, at rest it sends %d", cost, quiet)
	}
}
