package ipam

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
)

// emptyView is a View without peers: the large simulation moves only gossip.
type emptyView struct{}

func (emptyView) Reachable(peer.Name) bool  { return false }
func (emptyView) Peers() []peer.Name        { return nil }
func (emptyView) Nickname(peer.Name) string { return "" }

// Key gives each peer the key that launch gives it.
func (emptyView) Key(n peer.Name) (peer.Key, bool) {
	return largeKey(largeIndex(n)).Key(), true
}
func (emptyView) Place(peer.Name) (netip.Addr, bool) { return netip.Addr{}, false }
func (emptyView) Target(peer.Name) bool              { return true }
func (emptyView) AwaitsTarget() bool                 { return false }
func (emptyView) Collides() bool                     { return false }
func (emptyView) Banned() bool                       { return false }

const (
	largeTopology = 1
	largeRing     = 2
)

// large is a mesh of pure machines: topology and ring of each peer, moved by
// its gossip engine over links that lose messages.
type large struct {
	t     *testing.T
	rng   *rand.Rand
	now   time.Time
	loss  float64
	peers []*largePeer
	links [][]int
	sent  uint64 // bytes
}

// largePeer is one peer of it.
type largePeer struct {
	core   *core
	topo   *topology.State
	engine *gossip.Engine
	down   bool
}

func largeName(i int) peer.Name { return peer.Name{2, 0, 0, 1, byte(i >> 8), byte(i)} }

func largeIndex(n peer.Name) int { return int(n[4])<<8 | int(n[5]) }

func largeKey(i int) peer.Cheap { return peer.Cheap{ID: peer.Key{byte(i), byte(i >> 8), 1}} }

// launch starts peer i without a disk, and links it with its living neighbours.
func (w *large) launch(i int) {
	id := largeKey(i)
	b := &largePeer{engine: gossip.NewEngine(w.rng)}
	b.core = newCore(Config{Self: largeName(i), Signer: id, Verifier: id, Range: pfx("10.32.0.0/12"), Init: Init{Mode: Seed}}, emptyView{}, w.rng)
	var err error
	if b.topo, err = topology.New(topology.Config{Self: largeName(i), Instance: w.rng.Uint64(), Signer: id, Verifier: id,
		Book: new(peer.Book), Start: w.now}); err != nil {
		w.t.Fatal(err)
	}
	b.engine.Register(largeTopology, b.topo)
	b.engine.Register(largeRing, largeChannel{w, i})
	w.peers[i] = b
	for _, j := range w.links[i] {
		if o := w.peers[j]; o != nil && !o.down {
			b.engine.NeighbourUp(largeName(j))
			o.engine.NeighbourUp(largeName(i))
		}
	}
}

func (w *large) kill(i int) {
	w.peers[i].down = true
	for _, j := range w.links[i] {
		w.peers[j].engine.NeighbourDown(largeName(i))
		w.announceLinks(j)
	}
}

// announceLinks publishes the links of peer i.
func (w *large) announceLinks(i int) {
	var l []topology.Link
	for _, j := range w.links[i] {
		if !w.peers[j].down {
			l = append(l, topology.Link{To: largeName(j), Flags: topology.LinkSession})
		}
	}
	if d := w.peers[i].topo.SetLinks(l); d != nil {
		w.peers[i].engine.Announce(largeTopology, d)
	}
}

// act runs f in the core of peer i and floods what it announces.
func (w *large) act(i int, f func(c *core)) {
	_, effects := w.peers[i].core.step(w.now, func() { f(w.peers[i].core) })
	for _, e := range effects {
		if a, ok := e.(effAnnounce); ok {
			w.peers[i].engine.Announce(largeRing, a.delta)
		}
	}
}

// largeChannel is the channel of a core without its driver.
type largeChannel struct {
	w *large
	i int
}

func (c largeChannel) Digest() []byte { return c.w.peers[c.i].core.digest() }

func (c largeChannel) Missing(d []byte) (deltas [][]byte, wants bool, err error) {
	return c.w.peers[c.i].core.missing(d)
}

func (c largeChannel) Merge(from peer.Name, delta []byte) (news []byte, err error) {
	c.w.act(c.i, func(k *core) { news, err = k.merge(from, delta) })
	return news, err
}

func (c largeChannel) Join(older, newer []byte) []byte { return joinDeltas(older, newer) }

// second lets one second pass, in which a message makes at most hops hops.
func (w *large) second(hops int) {
	w.now = w.now.Add(time.Second)
	for _, p := range w.peers {
		if !p.down {
			p.engine.Tick(w.now)
		}
	}
	type msg struct {
		from, to int
		b        []byte
	}
	for range hops {
		var air []msg
		for i, p := range w.peers {
			if p.down {
				continue
			}
			for _, n := range p.engine.Dirty() {
				for b := p.engine.Next(n); b != nil; b = p.engine.Next(n) {
					w.sent += uint64(len(b))
					if w.rng.Float64() >= w.loss {
						air = append(air, msg{i, largeIndex(n), b})
					}
				}
			}
		}
		for _, m := range air {
			if p := w.peers[m.to]; !p.down {
				// A record that arrives before the records that it builds on is
				// refused. Digests bring it again.
				_, _ = p.engine.Receive(largeName(m.from), m.b)
			}
		}
	}
}

// agree reports whether all living peers hold the same topology and ring.
func (w *large) agree() bool {
	var topo, state []byte
	for _, p := range w.peers {
		if p.down {
			continue
		}
		t, r := p.topo.Digest(), p.core.digest()
		if topo == nil {
			topo, state = t, r
		}
		if !bytes.Equal(topo, t) || !bytes.Equal(state, r) || !p.core.ring.Ready() {
			return false
		}
	}
	return true
}

// settle lets time pass until all peers agree.
func (w *large) settle(what string) {
	w.t.Helper()
	w.sent = 0
	for s := range 180 {
		w.second(4)
		if w.agree() {
			w.t.Logf("%s: equal after %d simulated seconds, %d bytes per peer", what, s+1, w.sent/uint64(len(w.peers)))
			return
		}
	}
	w.t.Fatalf("%s: peers still differ after 3 minutes", what)
}

// give makes a random peer give half of one of its ranges away. The decision is signed as
// the voters would, and appears at one peer that knows all the others.
func (w *large) give() {
	var at int
	for i, p := range w.peers {
		if !p.down && p.core.ring.Slot() >= w.peers[at].core.ring.Slot() {
			at = i
		}
	}
	r := w.peers[at].core.ring
	entries := r.Entries()
	e := entries[w.rng.IntN(len(entries))]
	giver := largeIndex(e.Owner.Name)
	to := w.rng.IntN(len(w.peers))
	a, err := r.Give(largeKey(giver), e.Owner, ring.HolderOf(largeName(to), largeKey(to).Key()), addr.Of(e.Range.Block(e.Range.Size().Half())))
	if err != nil {
		return // the last address of a range, or a gift to itself
	}
	body := r.Body([]*ring.Action{a})
	var votes []ring.Vote
	for i, h := range r.Voters()[:ring.Quorum(len(r.Voters()))] {
		k := largeKey(largeIndex(h.Name))
		msg := ring.VoteMessage(r.Genesis().ID(), r.Slot()+1, 0, ring.BodyID(body))
		votes = append(votes, ring.Vote{Voter: i, Key: k.Key(), Sig: k.Sign(ring.VoteDomain, msg)})
	}
	w.act(at, func(c *core) {
		out, err := c.ring.Decide(ring.NewDecision(body, 0, votes))
		if err != nil {
			w.t.Fatal(err)
		}
		c.publish(out)
	})
}

// One thousand peers, each with four neighbours; one message in five is lost.
// While ranges are given away, peers go down and come back without their state, as
// new instances. All topologies and all rings become equal.
func TestThousandPeersConverge(t *testing.T) {
	const count, voters = 1000, 100
	w := &large{t: t, rng: seed.Rand(t), now: time.Unix(1_700_000_000, 0), loss: 0.2,
		peers: make([]*largePeer, count), links: make([][]int, count)}
	link := func(i, j int) {
		if slices.Contains(w.links[i], j) {
			return
		}
		w.links[i], w.links[j] = append(w.links[i], j), append(w.links[j], i)
	}
	for i := range count {
		link(i, (i+1)%count)
		if j := (i + 2 + w.rng.IntN(count-4)) % count; j != i {
			link(i, j)
		}
	}
	for i := range count {
		w.launch(i)
	}
	for i := range count {
		w.announceLinks(i)
	}
	seeds := make([]peer.Name, voters)
	for i := range seeds {
		seeds[i] = largeName(i)
	}
	w.act(0, func(c *core) { c.startNamed(seeds...) })
	w.settle("from nothing")

	var dead []int
	for range 10 {
		for range 12 {
			w.give()
		}
		if i := w.rng.IntN(count); !w.peers[i].down {
			w.kill(i)
			dead = append(dead, i)
		}
		w.second(4)
	}
	for _, i := range dead {
		w.launch(i)
		for _, j := range append(w.links[i], i) {
			w.announceLinks(j)
		}
	}
	w.settle("after churn")
	if n := len(w.peers[0].core.ring.Entries()); n < voters+50 {
		t.Errorf("only %d entries in the ring", n)
	}

	for before := w.peers[7].core.ring.Epoch(); w.peers[7].core.ring.Epoch() == before; {
		w.give()
		w.second(1)
	}
	w.settle("one change")
}
