package bindings

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

const (
	simChannel = 8
	simDelay   = 20 * time.Millisecond  // of a hop
	simRTO     = 200 * time.Millisecond // the kernel sends a lost segment again (RFC 6298, TCP_RTO_MIN)
)

// sim is a mesh without goroutines and sockets: States joined by gossip engines, over sessions that
// lose packets. TCP sends these again, so what is behind them waits.
type sim struct {
	t     *testing.T
	rng   *rand.Rand
	now   time.Time
	loss  float64
	nodes []*simNode
	air   flights
	free  map[[2]int]time.Time // when the last packet of a session arrives
	// missing counts the peers that have not heard of a change.
	missing map[Change]int
	slowest time.Duration
	began   map[Change]time.Time
}

type simNode struct {
	*State
	engine *gossip.Engine
	list   []Binding
	last   int // address that it gave; none is given twice, so each change is another one
}

// flight is a message on its way.
type flight struct {
	at       time.Time
	from, to int
	msg      []byte
}

type flights []flight

func (f flights) Len() int           { return len(f) }
func (f flights) Less(i, j int) bool { return f[i].at.Before(f[j].at) }
func (f flights) Swap(i, j int)      { f[i], f[j] = f[j], f[i] }
func (f *flights) Push(x any)        { *f = append(*f, x.(flight)) }
func (f *flights) Pop() any {
	last := len(*f) - 1
	x := (*f)[last]
	*f = (*f)[:last]
	return x
}

// simAddr is an address of host i, which owns all of 10.x.y.0/24.
func simAddr(i, n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 32 + byte(i>>8), byte(i), byte(n)})
}

func newSim(t *testing.T, seed uint64, n, degree int, loss float64) *sim {
	w := &sim{
		t: t, rng: rand.New(rand.NewPCG(seed, 0)), now: time.Unix(1_700_000_000, 0), loss: loss, free: make(map[[2]int]time.Time),
		missing: make(map[Change]int), began: make(map[Change]time.Time),
	}
	known := make(map[peer.Name]peer.Key)
	for i := range n {
		known[name(i)] = peer.Key{1, byte(i), byte(i >> 8)}
	}
	ownerOf := func(a netip.Addr) (peer.Name, bool) {
		b := a.As4()
		return name(int(b[1]-32)<<8 | int(b[2])), true
	}
	for i := range n {
		id := peer.Cheap{ID: known[name(i)]}
		s := New(Config{Self: name(i), Signer: id, Verifier: id, Start: w.now, OwnerOf: ownerOf})
		e := gossip.NewEngine(rand.New(rand.NewPCG(seed, uint64(i+1))))
		e.Register(simChannel, s)
		w.nodes = append(w.nodes, &simNode{State: s, engine: e})
	}
	for i := range n {
		own := make(map[peer.Name]peer.Key, n)
		for k, v := range known {
			own[k] = v
		}
		w.nodes[i].SetOwners(own)
		w.join(i, (i+1)%n)
		for range degree/2 - 1 {
			if j := w.rng.IntN(n); j != i {
				w.join(i, j)
			}
		}
	}
	return w
}

func (w *sim) join(i, j int) {
	w.nodes[i].engine.NeighbourUp(name(j))
	w.nodes[j].engine.NeighbourUp(name(i))
}

func index4(n peer.Name) int { return int(n[4])<<8 | int(n[5]) }

// send gives the messages of a node to its sessions.
func (w *sim) send(i int) {
	n := w.nodes[i]
	dirty := n.engine.Dirty()
	slices.SortFunc(dirty, peer.Name.Compare)
	for _, to := range dirty {
		for b := n.engine.Next(to); b != nil; b = n.engine.Next(to) {
			at := w.now.Add(simDelay)
			for rto := simRTO; w.rng.Float64() < w.loss; rto *= 2 {
				at = at.Add(rto)
			}
			session := [2]int{i, index4(to)}
			if at.Before(w.free[session]) {
				at = w.free[session]
			}
			w.free[session] = at
			heap.Push(&w.air, flight{at, i, index4(to), b})
		}
	}
}

// announce replaces the bindings of a host.
func (w *sim) announce(i int) {
	n := w.nodes[i]
	deltas, err := n.Announce(n.list)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range n.Table().Update(false) {
		w.missing[c], w.began[c] = len(w.nodes)-1, w.now
	}
	for _, d := range deltas {
		n.engine.Announce(simChannel, d)
	}
	w.send(i)
}

// change adds a container to a host, or removes one.
func (w *sim) change(i int) {
	n := w.nodes[i]
	if len(n.list) > 0 && w.rng.IntN(2) == 0 {
		k := w.rng.IntN(len(n.list))
		n.list = slices.Delete(n.list, k, k+1)
	} else {
		n.last++
		a := simAddr(i, n.last)
		b := a.As4()
		n.list = append(n.list, Binding{MAC{0x02, 0x42, b[0], b[1], b[2], b[3]}, Container, []netip.Addr{a}})
	}
	w.announce(i)
}

// run lets time pass until nothing is on its way, or for a while.
func (w *sim) run(d time.Duration) {
	end := w.now.Add(d)
	for len(w.air) > 0 && w.air[0].at.Before(end) {
		f := heap.Pop(&w.air).(flight)
		w.now = f.at
		n := w.nodes[f.to]
		if _, err := n.engine.Receive(name(f.from), f.msg); err != nil {
			w.t.Fatal(err)
		}
		for _, c := range n.Table().Update(false) {
			if w.missing[c]--; w.missing[c] == 0 {
				w.slowest = max(w.slowest, w.now.Sub(w.began[c]))
			}
		}
		w.send(f.to)
	}
	w.now = end
}

// A change of a binding is known on all hosts within a second, although one packet of twenty is
// lost. With WEFT_SOAK there are a thousand hosts.
func TestChangesAreKnownEverywhereInASecond(t *testing.T) {
	t.Parallel()
	hosts := 200
	if os.Getenv("WEFT_SOAK") != "" {
		hosts = 1000
	}
	w := newSim(t, seed.New(t), hosts, 8, 0.05)
	for i := range w.nodes {
		w.send(i) // what sessions begin with
	}
	w.run(10 * time.Second)
	const changes = 30
	for range changes {
		w.change(w.rng.IntN(hosts))
		w.run(100 * time.Millisecond)
	}
	w.run(10 * time.Second)
	for c, n := range w.missing {
		if n > 0 {
			t.Errorf("%d of %d hosts never heard of %s", n, hosts, fmt.Sprint(c))
		}
	}
	t.Logf("%d hosts: the slowest of %d changes was known everywhere after %v", hosts, changes, w.slowest)
	if w.slowest > time.Second {
		t.Errorf("a change was known everywhere after %v, want at most 1 s", w.slowest)
	}
}
